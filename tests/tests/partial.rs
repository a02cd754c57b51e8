//! A change below a mapping takes only the chunks it concerns: the rest stays direct.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_client::{File, ImporterSpec, MapFlags, Mapping, Session};
use peerfs_tests::ScratchMount;

const CHUNK: u64 = 2 << 20;
const CHUNKS: u64 = 6;

/// Chunks that still move their bytes directly.
fn direct_chunks(mapping: &Mapping) -> Result<Vec<u64>> {
    let mut direct = Vec::new();
    for chunk in 0..CHUNKS {
        let mut buffer = [0; 4096];
        if mapping.read_at(chunk * CHUNK, &mut buffer)?.fallback == 0 {
            direct.push(chunk);
        }
    }
    Ok(direct)
}

fn told(heard: &Mutex<BTreeSet<u64>>) -> Vec<u64> {
    heard.lock().expect("no panic").iter().copied().collect()
}

#[test]
fn a_mapping_over_many_chunks_loses_only_those_that_change() -> Result<()> {
    let scratch = ScratchMount::new("128M", &["--cmb", "32M"])?;
    let path = scratch.join("mapped");
    std::fs::write(&path, vec![5; (CHUNKS * CHUNK) as usize])?;
    let file = File::open(&path)?;
    let session = Session::open(scratch.path(), ImporterSpec::cpu())?;
    let mapping = session.map(&file, .., MapFlags::empty())?;
    let heard: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
    let listener = Arc::clone(&heard);
    mapping.on_revoke(move |revocation| {
        listener.lock().expect("no panic").insert(revocation.file_offset / CHUNK);
    });
    assert_eq!(direct_chunks(&mapping)?, [0, 1, 2, 3, 4, 5]);

    // Past the page cache, so that nothing but the change itself concerns the mapping.
    let plain = OpenOptions::new().write(true).open(&path)?;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&plain, punch, (CHUNK + 8192) as i64, 4096)?;
    assert_eq!((direct_chunks(&mapping)?, told(&heard)), (vec![0, 2, 3, 4, 5], vec![1]), "a hole of one block");

    plain.write_all_at(&[9], 3 * CHUNK + 5)?;
    assert_eq!((direct_chunks(&mapping)?, told(&heard)), (vec![0, 2, 4, 5], vec![1, 3]), "one byte through the page cache");

    plain.set_len(4 * CHUNK + CHUNK / 2)?;
    let left = direct_chunks(&mapping)?;
    assert!(left.starts_with(&[0, 2]) && !left.contains(&4), "the chunk that was cut in half: {left:?}");
    assert!(told(&heard).iter().all(|chunk| ![0, 2].contains(chunk)), "{:?}", told(&heard));

    // What was lost comes back when it is mapped anew, while the old mapping keeps what it has.
    drop(plain);
    let again = session.map(&file, CHUNK..CHUNK + 8192, MapFlags::empty())?;
    assert!(again.segments().iter().all(|segment| segment.reason.is_none()), "{:?}", again.segments());
    assert_eq!(direct_chunks(&mapping)?[..2], [0, 2]);
    let mut byte = [0];
    mapping.read_at(3 * CHUNK + 5, &mut byte)?;
    assert_eq!(byte, [9]);
    Ok(())
}
