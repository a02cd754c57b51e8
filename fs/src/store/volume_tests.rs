//! The volume against models, and what mkfs, mount and fsck say about bad images.

use std::collections::BTreeMap;
use std::sync::Arc;

use peerfs_blockdev::{BLOCK_BYTES, BlockDevice, BlockDeviceExt};

use super::testdev::{DISCARDED, Rng, TestDevice};
use super::*;

const MIB: u64 = 1 << 20;

fn formatted(size: u64) -> Arc<TestDevice> {
    let device = Arc::new(TestDevice::new(size));
    Volume::format(device.clone(), &FormatOptions { label: "test".into(), ..Default::default() }).unwrap();
    device
}

fn open(device: &Arc<TestDevice>) -> Volume {
    Volume::open(device.clone(), &OpenOptions { read_only: false, cache_bytes: 4 << 20, discard: false }).unwrap()
}

fn file(ino: u64, blocks: u64) -> Inode {
    let time = Timestamp::default();
    Inode {
        ino,
        generation: 1,
        mode: FileKind::Regular.mode_bits() | 0o644,
        uid: 0,
        gid: 0,
        nlink: 1,
        size: blocks * BLOCK_BYTES,
        blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        rdev: 0,
        flags: 0,
        next_cookie: 0,
        parent: 0,
    }
}

/// A file of `blocks` blocks in the root directory.
fn create(volume: &Volume, blocks: u64) -> Result<u64, StoreError> {
    let mut batch = Batch::new();
    let ino = volume.get::<Counter>(&Key::Counter(counter::NEXT_INO))?.unwrap().0;
    batch.put(&Key::Counter(counter::NEXT_INO), &Counter(ino + 1));
    let mut root = volume.inode(ROOT_INO)?.unwrap();
    let entry = DirentByName { ino, kind: FileKind::Regular, cookie: root.next_cookie };
    batch.put_dirent(ROOT_INO, format!("file {ino}").as_bytes(), entry);
    root.next_cookie += 1;
    batch.put_inode(&root);
    batch.put_inode(&file(ino, blocks));
    if blocks > 0 {
        let allocation = volume.allocate(AllocRequest { blocks, near: None })?;
        let mut file_block = 0;
        for piece in allocation.pieces() {
            let extent = Extent { device_block: piece.start, len_blocks: piece.count, flags: 0 };
            batch.put_extent(ino, file_block, &extent);
            file_block += piece.count;
        }
        batch.claim(allocation);
    }
    volume.apply(batch)?;
    Ok(ino)
}

fn remove(volume: &Volume, ino: u64) -> Result<(), StoreError> {
    let mut batch = Batch::new();
    let name = format!("file {ino}");
    let entry: DirentByName = volume.get(&Key::DirentName(ROOT_INO, name.as_bytes()))?.expect("the file is there");
    batch.delete_dirent(ROOT_INO, name.as_bytes(), entry.cookie);
    batch.delete(&Key::Inode(ino));
    for (file_block, extent) in volume.extents_from(ino, 0, usize::MAX)? {
        batch.delete(&Key::Extent(ino, file_block));
        batch.free(BlockRange::new(extent.device_block, extent.len_blocks));
    }
    volume.apply(batch)?;
    Ok(())
}

fn assert_clean(device: &Arc<TestDevice>) -> Report {
    let report = check(device.clone()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.problems);
    assert_eq!(report.used_blocks + report.free_blocks, report.total_blocks);
    report
}

#[test]
fn a_new_volume_is_clean_and_says_so() {
    let device = formatted(16 * MIB);
    let report = assert_clean(&device);
    assert_eq!((report.inodes, report.directories), (1, 1));
    let dynamic: Arc<dyn BlockDevice> = device.clone();
    let summary = probe(&dynamic).unwrap();
    assert!(summary.clean && summary.same_host);
    assert_eq!((summary.label.as_str(), summary.size_bytes), ("test", 16 * MIB));
    let volume = open(&device);
    assert_eq!(volume.inode(ROOT_INO).unwrap().unwrap().mode, libc::S_IFDIR | 0o755);
    assert!(!probe(&dynamic).unwrap().clean);
    volume.close().unwrap();
    assert!(probe(&dynamic).unwrap().clean);
}

#[test]
fn mkfs_refuses_what_it_would_destroy() {
    let device = formatted(16 * MIB);
    let again = Volume::format(device.clone(), &FormatOptions::default());
    assert!(matches!(again, Err(StoreError::InUse { .. })));
    let force = FormatOptions { force: true, ..Default::default() };
    Volume::format(device.clone(), &force).unwrap();
    let mut image = vec![0; 16 * MIB as usize];
    image[1080..1082].copy_from_slice(&[0x53, 0xef]);
    let ext4 = Arc::new(TestDevice::from_image(image));
    let error = Volume::format(ext4.clone(), &FormatOptions::default()).unwrap_err();
    assert!(error.to_string().contains("ext4"), "{error}");
    Volume::format(ext4, &force).unwrap();
    let tiny = Arc::new(TestDevice::new(MIB));
    let error = Volume::format(tiny, &FormatOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::TooSmall { .. }));
}

#[test]
fn bad_images_are_refused_with_the_reason() {
    let open_image = |image: Vec<u8>| Volume::open(Arc::new(TestDevice::from_image(image)), &OpenOptions::default()).map(drop);
    let good = formatted(16 * MIB).image();
    assert!(matches!(open_image(vec![0; 8 << 20]), Err(StoreError::NotPeerfs { .. })));
    assert!(matches!(open_image(vec![]), Err(StoreError::NotPeerfs { .. })));
    let short = good[..15 << 20].to_vec();
    assert!(matches!(open_image(short), Err(StoreError::Truncated { .. })));
    let block = BLOCK_BYTES as usize;
    for damaged in [0, block] {
        let mut one = good.clone();
        one[damaged + 100] ^= 1;
        open_image(one).unwrap();
    }
    let mut both = good.clone();
    both[100] ^= 1;
    both[block + 100] ^= 1;
    assert!(matches!(open_image(both), Err(StoreError::CorruptSuperblock { .. })));
    let mut no_database = good.clone();
    no_database[2 * block..20 * block].fill(0);
    assert!(matches!(open_image(no_database), Err(StoreError::CorruptMetadata { .. })));
}

/// Flipped bits in the metadata: the probe answers, whatever they hit.
#[test]
fn mutated_images_never_panic_the_probe() {
    let device = formatted(16 * MIB);
    let volume = open(&device);
    for _ in 0..50 {
        create(&volume, 2).unwrap();
    }
    volume.close().unwrap();
    let good = device.image();
    let mut rng = Rng::new(11);
    let mut refused = 0;
    for _ in 0..300 {
        let mut image = good.clone();
        for _ in 0..1 + rng.below(4) {
            let bit = rng.below(MIB * 8);
            image[bit as usize / 8] ^= 1 << (bit % 8);
        }
        let device = Arc::new(TestDevice::from_image(image));
        refused += u32::from(open_probe(device.clone()).is_err());
        drop(check(device));
    }
    assert!(refused > 0);
}

#[test]
fn context_ids_are_never_given_twice() {
    let device = formatted(16 * MIB);
    let first = open(&device).reserve_context_ids(10).unwrap();
    let volume = open(&device);
    let second = volume.reserve_context_ids(1).unwrap();
    assert_eq!((first, second), (1..11, 11..12));
}

#[test]
fn a_read_only_volume_writes_nothing() {
    let device = formatted(16 * MIB);
    let volume = open(&device);
    let ino = create(&volume, 3).unwrap();
    volume.commit().unwrap();
    drop(volume);
    let before = device.image();
    let options = OpenOptions { read_only: true, cache_bytes: 4 << 20, discard: false };
    let volume = Volume::open(device.clone(), &options).unwrap();
    assert_eq!(volume.inode(ino).unwrap().unwrap().blocks, 3);
    assert_eq!(volume.commit().unwrap_err().errno(), libc::EROFS);
    let mut batch = Batch::new();
    batch.put_inode(&file(99, 0));
    assert_eq!(volume.apply(batch).unwrap_err().errno(), libc::EROFS);
    volume.close().unwrap();
    assert!(device.image() == before);
}

/// The overlay and the database together behave as one ordered map, across commits and reopening.
#[test]
fn records_agree_with_a_map() {
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let device = formatted(16 * MIB);
        let mut volume = open(&device);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let range = Key::extents_of(77);
        for _ in 0..3000 {
            match rng.below(20) {
                0..9 => {
                    let mut batch = Batch::new();
                    for _ in 0..1 + rng.below(4) {
                        let key = Key::Extent(77, rng.below(200));
                        if rng.below(3) == 0 {
                            batch.delete(&key);
                            model.remove(&key.encode());
                        } else {
                            let value = vec![rng.next() as u8; rng.below(300) as usize];
                            batch.put_raw(&key, &value);
                            model.insert(key.encode(), value);
                        }
                    }
                    volume.apply(batch).unwrap();
                }
                9..12 => {
                    let key = Key::Extent(77, rng.below(200));
                    let found = volume.get_raw(&key).unwrap();
                    assert_eq!(found.as_deref(), model.get(&key.encode()).map(Vec::as_slice));
                }
                12..16 => {
                    let from = Key::Extent(77, rng.below(200)).encode();
                    let limit = 1 + rng.below(40) as usize;
                    let found = volume.scan(from.clone()..range.end.clone(), limit).unwrap();
                    let expected: Vec<_> = model.range(from..).take(limit).collect();
                    assert_eq!(found.len(), expected.len(), "seed {seed}");
                    for ((key, value), (model_key, model_value)) in found.iter().zip(expected) {
                        assert_eq!((key, &value[..]), (model_key, &model_value[..]), "seed {seed}");
                    }
                }
                16..18 => {
                    let to = Key::Extent(77, rng.below(200)).encode();
                    let found = volume.kv().last_before(range.start.clone()..to.clone()).unwrap();
                    let expected = model.range(..to).next_back();
                    assert_eq!(
                        found.as_ref().map(|(key, value)| (key, &value[..])),
                        expected.map(|(key, value)| (key, &value[..])),
                        "seed {seed}"
                    );
                }
                18 => drop(volume.commit().unwrap()),
                _ if rng.below(20) == 0 => {
                    volume.close().unwrap();
                    volume = open(&device);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn files_come_and_go_and_the_volume_stays_consistent() {
    for seed in 0..4 {
        let mut rng = Rng::new(seed);
        let device = formatted(32 * MIB);
        let volume = open(&device);
        let mut files = Vec::new();
        for _ in 0..600 {
            match rng.below(10) {
                0..6 => match create(&volume, rng.below(200)) {
                    Ok(ino) => files.push(ino),
                    Err(StoreError::NoSpace { .. }) if !files.is_empty() => {
                        let victim = files.swap_remove(rng.below(files.len() as u64) as usize);
                        remove(&volume, victim).unwrap();
                    }
                    Err(error) => panic!("seed {seed}: {error}"),
                },
                6..8 if !files.is_empty() => {
                    let victim = files.swap_remove(rng.below(files.len() as u64) as usize);
                    remove(&volume, victim).unwrap();
                }
                8 => drop(volume.commit().unwrap()),
                _ => {}
            }
        }
        let live = check_volume(&volume).unwrap();
        assert!(live.is_clean(), "seed {seed}: {:#?}", live.problems);
        volume.close().unwrap();
        let report = assert_clean(&device);
        assert_eq!(report.inodes, 1 + files.len() as u64);
        let volume = open(&device);
        assert_eq!(volume.space().free, report.free_blocks, "seed {seed}");
    }
}

fn blocks_of(volume: &Volume, ino: u64) -> Vec<BlockRange> {
    let extents = volume.extents_from(ino, 0, usize::MAX).unwrap();
    extents.into_iter().map(|(_, extent)| BlockRange::new(extent.device_block, extent.len_blocks)).collect()
}

fn all_hold(device: &TestDevice, blocks: &[BlockRange], byte: u8) -> bool {
    blocks.iter().all(|range| {
        let mut seen = vec![0; (range.count * BLOCK_BYTES) as usize];
        device.read_at(range.start * BLOCK_BYTES, &mut seen).unwrap();
        seen == vec![byte; seen.len()]
    })
}

#[test]
fn only_what_no_commit_needs_is_discarded() {
    for seed in 0..4 {
        let mut rng = Rng::new(seed);
        let device = formatted(16 * MIB);
        let options = OpenOptions { discard: seed % 2 == 0, ..OpenOptions::default() };
        let volume = Volume::open(device.clone(), &options).unwrap();
        let everything = BlockRange::new(0, volume.total_blocks());
        let (mut files, mut removed) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            match rng.below(8) {
                0..4 if files.len() < 40 => {
                    let ino = create(&volume, 1 + rng.below(40)).unwrap();
                    let (blocks, byte) = (blocks_of(&volume, ino), (ino % 200) as u8);
                    for range in &blocks {
                        device.write_at(range.start * BLOCK_BYTES, &vec![byte; (range.count * BLOCK_BYTES) as usize]).unwrap();
                    }
                    files.push((ino, blocks, byte));
                }
                4..6 if !files.is_empty() && removed.len() < 20 => {
                    let victim = files.swap_remove(rng.below(files.len() as u64) as usize);
                    remove(&volume, victim.0).unwrap();
                    removed.push(victim);
                }
                6 => {
                    volume.commit().unwrap();
                    let gone = removed.drain(..).all(|(_, blocks, byte)| !all_hold(&device, &blocks, byte));
                    assert!(gone || !options.discard, "seed {seed}: freed and not discarded");
                }
                _ => drop(volume.trim(everything, rng.below(64)).unwrap()),
            }
            let mut needed = files.iter().chain(&removed);
            assert!(needed.all(|(_, blocks, byte)| all_hold(&device, blocks, *byte)), "seed {seed}: lost");
        }
        volume.commit().unwrap();
        let free = volume.space().free;
        let taken = volume.allocate(AllocRequest { blocks: 100, near: None }).unwrap();
        assert_eq!(volume.trim(everything, 0).unwrap(), free - 100, "seed {seed}");
        drop(taken);
        assert_eq!(volume.space().free, free);
        volume.close().unwrap();
        let report = assert_clean(&device);
        let discarded =
            device.image().chunks(BLOCK_BYTES as usize).filter(|block| block.iter().all(|byte| *byte == DISCARDED)).count();
        assert!(discarded as u64 >= report.free_blocks - 100, "seed {seed}");
    }
}

#[test]
fn everything_can_be_deleted_from_a_full_volume() {
    let device = formatted(8 * MIB);
    let volume = open(&device);
    let mut files = Vec::new();
    let full = loop {
        match create(&volume, 1) {
            Ok(ino) => files.push(ino),
            Err(error) => break error,
        }
    };
    assert_eq!(full.errno(), libc::ENOSPC);
    volume.commit().unwrap();
    for (count, ino) in files.into_iter().enumerate() {
        remove(&volume, ino).unwrap();
        if count % 100 == 0 {
            volume.commit().unwrap();
        }
    }
    volume.close().unwrap();
    assert_clean(&device);
}

#[test]
fn quarantined_blocks_are_free_after_the_next_mount() {
    let device = formatted(16 * MIB);
    let volume = open(&device);
    let before = volume.space().free;
    let allocation = volume.allocate(AllocRequest { blocks: 40, near: None }).unwrap();
    let mut batch = Batch::new();
    batch.quarantine(allocation.pieces()[0]);
    batch.claim(allocation);
    volume.apply(batch).unwrap();
    assert_eq!((volume.space().free, volume.space().quarantined), (before - 40, 40));
    volume.close().unwrap();
    assert_clean(&device);
    let volume = open(&device);
    assert_eq!(volume.space().free, before);
    volume.close().unwrap();
    assert_clean(&device);
}

/// Each contradiction is found under its own name.
#[test]
fn the_check_finds_contradictions() {
    type Damage = fn(&Volume, &mut Batch, u64);
    type Expect = fn(&Problem) -> bool;
    let cases: &[(Damage, Expect)] = &[
        (|_, b, ino| b.delete(&Key::Inode(ino)), |p| matches!(p, Problem::DanglingName { .. })),
        (|_, b, ino| b.put_inode(&file(ino, 9)), |p| matches!(p, Problem::WrongBlockCount { .. })),
        (
            |_, b, ino| b.put_inode(&Inode { nlink: 2, ..file(ino, 4) }),
            |p| matches!(p, Problem::WrongLinkCount { counted: 1, recorded: 2, .. }),
        ),
        (|_, b, ino| b.delete(&Key::Extent(ino, 0)), |p| matches!(p, Problem::Leaked { .. })),
        (|_, b, _| b.put_inode(&file(2000, 0)), |p| matches!(p, Problem::Unreachable { ino: 2000 })),
        (|_, b, _| b.put_inode(&file(2000, 0)), |p| matches!(p, Problem::InodeCounter { .. })),
        (|_, b, _| b.put_raw(&Key::Xattr(999, b"user.a"), b"x"), |p| matches!(p, Problem::WrongOwner { ino: 999, .. })),
        (|_, b, ino| b.put_raw(&Key::Orphan(ino), b""), |p| matches!(p, Problem::BadOrphan { .. })),
        (|_, b, _| b.delete(&Key::DirentCookie(ROOT_INO, 3)), |p| matches!(p, Problem::EntryMismatch { .. })),
        (|_, b, _| b.put(&Key::Free(1), &BlockCount(1)), |p| matches!(p, Problem::OwnedTwice { first: _, .. })),
        (|_, b, _| b.put(&Key::Free(4095), &BlockCount(9)), |p| matches!(p, Problem::OutsideDevice { .. })),
        (
            |v, b, ino| {
                let (_, extent) = v.extents_from(ino, 0, 1).unwrap()[0];
                b.put_extent(ino, 0, &Extent { flags: extent_flags::SHARED, ..extent });
                let shared = SharedRun { len_blocks: extent.len_blocks, references: 2 };
                b.put(&Key::Shared(extent.device_block), &shared);
            },
            |p| matches!(p, Problem::WrongReferences { counted: 1, recorded: 2, .. }),
        ),
        (|_, b, ino| b.put_raw(&Key::Inode(ino), b"junk"), |p| matches!(p, Problem::BadRecord { .. })),
        (|_, b, _| b.delete(&Key::Inode(ROOT_INO)), |p| matches!(p, Problem::NoRoot)),
    ];
    for (index, (damage, expected)) in cases.iter().enumerate() {
        let device = formatted(16 * MIB);
        let volume = open(&device);
        let ino = create(&volume, 4).unwrap();
        let mut batch = Batch::new();
        damage(&volume, &mut batch, ino);
        volume.apply(batch).unwrap();
        volume.close().unwrap();
        let report = check(device).unwrap();
        assert!(report.problems.iter().any(expected), "case {index}: {:?}", report.problems);
    }
}

#[test]
fn threads_share_commits() {
    let device = formatted(16 * MIB);
    let volume = Arc::new(open(&device));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let volume = volume.clone();
            scope.spawn(move || {
                for step in 0..100 {
                    let mut batch = Batch::new();
                    batch.put_raw(&Key::Xattr(thread, b"user.step"), &[step]);
                    let applied = volume.apply(batch).unwrap();
                    let committed = volume.commit().unwrap();
                    assert!(committed >= applied);
                    let found = volume.get_raw(&Key::Xattr(thread, b"user.step")).unwrap();
                    assert_eq!(found.as_deref(), Some(&[step][..]));
                }
            });
        }
    });
}
