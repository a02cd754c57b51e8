//! Clones: what is shared, what is copied when, and what every change leaves to the other file.

use super::*;
use crate::store::testdev::Rng;

const WHOLE: CloneRange = CloneRange { source_offset: 0, destination_offset: 0, length: 0 };
const BLOCK: u64 = 4096;

fn used(fs: &Mounted) -> u64 {
    fs.core.sync().expect("sync");
    fs.core.statfs().map(|space| space.blocks - space.free).expect("statfs")
}

/// A file of `blocks` blocks, each filled with its number, and a clone of it.
fn pair(fs: &Mounted, blocks: u64) -> ((Ino, Handle), (Ino, Handle)) {
    let (source, clone) = (fs.create(ROOT_INO, "source"), fs.create(ROOT_INO, "clone"));
    for block in 0..blocks {
        fs.write(source.1, block * BLOCK, &[(block + 1) as u8; BLOCK as usize]);
    }
    let before = used(fs);
    assert_eq!(fs.reflink(source.0, clone.0, WHOLE), Ok(blocks * BLOCK));
    assert!(used(fs) - before < 4, "nothing was copied");
    (source, clone)
}

fn shared(fs: &Mounted, ino: Ino) -> Vec<bool> {
    let survey = fs.core.survey_extents(ino, peerfs_p2p::Range::ALL).expect("a file");
    let state = |extent: &peerfs_p2p::Extent| {
        let shared = matches!(extent.state, peerfs_p2p::ExtentState::Mapped { shared: true, .. });
        vec![shared; (extent.length / BLOCK) as usize]
    };
    survey.extents.iter().flat_map(state).collect()
}

#[test]
fn a_clone_shares_until_one_of_the_two_is_written() {
    let fs = Mounted::new(16 << 20);
    let ((source, from), (clone, to)) = pair(&fs, 8);
    assert_eq!((shared(&fs, source), shared(&fs, clone)), (vec![true; 8], vec![true; 8]));
    fs.write(from, 2 * BLOCK, &[0xaa; BLOCK as usize]);
    fs.write(to, 5 * BLOCK + 7, b"xyz");
    assert_eq!(fs.read(to, 2 * BLOCK, 4), [3; 4], "the clone keeps the old block");
    assert_eq!(fs.read(from, 5 * BLOCK + 6, 5), [6; 5]);
    assert_eq!(fs.read(to, 5 * BLOCK + 6, 5), [6, b'x', b'y', b'z', 6]);
    let expected = [true, true, false, true, true, false, true, true];
    assert!(!shared(&fs, source)[2]);
    assert!(!shared(&fs, clone)[5]);
    fs.core.sync().expect("sync");
    assert_eq!((shared(&fs, source), shared(&fs, clone)), (expected.to_vec(), expected.to_vec()));
    let fs = fs.remount();
    let again = fs.core.open(ALICE, clone, READ_WRITE).expect("open").handle;
    assert_eq!(fs.read(again, 5 * BLOCK + 6, 5), [6, b'x', b'y', b'z', 6]);
}

/// Changes the destination of a clone.
type Change = fn(&Mounted, Ino, Handle);

#[test]
fn every_change_leaves_the_other_file_alone() {
    let changes: [(&str, Change); 6] = [
        ("truncate", |fs, ino, _| fs.truncate(ino, 100)),
        ("truncate twice", |fs, ino, _| {
            fs.truncate(ino, 3 * BLOCK + 5);
            fs.truncate(ino, 8 * BLOCK);
        }),
        ("punch", |fs, _, handle| {
            fs.core.fallocate(ALICE, handle, FallocateMode::PunchHole, 1000, 5 * BLOCK).expect("punch");
        }),
        ("zero", |fs, _, handle| {
            let zero = FallocateMode::ZeroRange { keep_size: false };
            fs.core.fallocate(ALICE, handle, zero, 1000, 9 * BLOCK).expect("zero");
        }),
        ("write", |fs, _, handle| fs.write(handle, BLOCK - 1, &[0xee; 2 * BLOCK as usize])),
        ("clone into it", |fs, ino, _| {
            let range = CloneRange { source_offset: 0, destination_offset: 4 * BLOCK, length: 2 * BLOCK };
            assert_eq!(fs.reflink(ino, ino, range), Ok(2 * BLOCK));
        }),
    ];
    for (what, change) in changes {
        let fs = Mounted::new(16 << 20);
        let ((source, from), (clone, to)) = pair(&fs, 8);
        let before = fs.read(to, 0, 8 * BLOCK as u32);
        change(&fs, source, from);
        assert!(fs.read(to, 0, 8 * BLOCK as u32) == before, "{what}");
        let changed = fs.read(from, 0, 10 * BLOCK as u32);
        let fs = fs.remount();
        let handle = |ino| fs.core.open(ALICE, ino, READ_WRITE).expect("open").handle;
        assert!(fs.read(handle(clone), 0, 8 * BLOCK as u32) == before, "{what}, after a remount");
        assert!(fs.read(handle(source), 0, 10 * BLOCK as u32) == changed, "{what}, after a remount");
    }
}

#[test]
fn the_last_owner_frees_the_blocks() {
    let fs = Mounted::new(16 << 20);
    let empty = used(&fs);
    let ((source, from), (clone, to)) = pair(&fs, 512);
    let third = fs.create(ROOT_INO, "third");
    assert_eq!(fs.reflink(clone, third.0, WHOLE), Ok(512 * BLOCK));
    for (name, (ino, handle)) in [("source", (source, from)), ("third", third), ("clone", (clone, to))] {
        assert!(used(&fs) >= empty + 512, "{name} still owns them");
        fs.core.unlink(ALICE, ROOT_INO, name.as_bytes()).expect("unlink");
        fs.core.release(handle);
        fs.core.forget(ino, 1);
    }
    assert!(used(&fs) < empty + 8);
    fs.remount();
}

#[test]
fn a_block_whose_other_owner_left_in_a_change_that_a_crash_takes_back_is_not_written_in_place() {
    for seed in 0..8 {
        let fs = Mounted::new(16 << 20);
        let ((source, from), (clone, to)) = pair(&fs, 8);
        fs.core.sync().expect("sync");
        fs.truncate(source, 0);
        fs.write(to, 0, &[0xbb; 8 * BLOCK as usize]);
        fs.core.fsync(from, true).ok();
        let image = fs.disk.crash_image(&mut Rng::new(seed));
        drop(fs);
        let disk = Arc::new(TestDevice::from_image(image));
        assert_clean(&disk);
        let fs = Mounted::on(disk);
        let handle = |ino| fs.core.open(ALICE, ino, READ_WRITE).expect("open").handle;
        let old = fs.read(handle(source), 0, 8 * BLOCK as u32);
        assert!(old.chunks(BLOCK as usize).zip(1..).all(|(block, number)| block.iter().all(|b| *b == number)), "seed {seed}");
        fs.read(handle(clone), 0, 1);
    }
}

#[test]
fn what_cannot_be_cloned_is_refused() {
    let fs = Mounted::new(16 << 20);
    let ((source, from), (clone, to)) = pair(&fs, 4);
    let refused = |range| code(fs.reflink(source, clone, range));
    assert_eq!(refused(CloneRange { source_offset: 1, ..WHOLE }), libc::EINVAL);
    assert_eq!(refused(CloneRange { destination_offset: 512, ..WHOLE }), libc::EINVAL);
    assert_eq!(refused(CloneRange { length: 100, ..WHOLE }), libc::EINVAL);
    assert_eq!(refused(CloneRange { length: 5 * BLOCK, ..WHOLE }), libc::EINVAL);
    assert_eq!(refused(CloneRange { source_offset: 1 << 40, ..WHOLE }), libc::EINVAL);
    assert_eq!(refused(CloneRange { length: u64::MAX - 4095, source_offset: 8192, ..WHOLE }), libc::EINVAL);
    assert_eq!(refused(CloneRange { destination_offset: 16 << 40, ..WHOLE }), libc::EFBIG);
    assert_eq!(code(fs.reflink(source, source, WHOLE)), libc::EINVAL);
    let name = fs.core.name_source(from).expect("a name");
    let reader = fs.core.open(ALICE, clone, OpenFlags { write: false, ..READ_WRITE }).expect("open").handle;
    assert_eq!(code(fs.core.reflink(ALICE, reader, name, WHOLE)), libc::EBADF);
    let writer = fs.core.open(ALICE, source, OpenFlags { read: false, ..READ_WRITE }).expect("open").handle;
    assert_eq!(code(fs.core.name_source(writer)), libc::EBADF);
    assert_eq!(code(fs.core.reflink(ALICE, to, name ^ 1, WHOLE)), libc::EXDEV);
}

#[test]
fn a_tail_is_cloned_only_to_a_tail() {
    let fs = Mounted::new(16 << 20);
    let (source, from) = fs.create(ROOT_INO, "source");
    let (target, to) = fs.create(ROOT_INO, "target");
    fs.write(from, 0, &[7; 5000]);
    assert_eq!(fs.reflink(source, target, WHOLE), Ok(5000));
    assert_eq!(fs.read(to, 0, 9000), [7; 5000]);
    fs.truncate(target, 6000);
    assert_eq!((fs.read(to, 5000, 2000), fs.read(from, 4990, 100)), (vec![0; 1000], vec![7; 10]), "grown in a copy");
    assert_eq!(code(fs.reflink(source, target, WHOLE)), libc::EINVAL, "the target goes on behind it");
    fs.remount();
}

#[test]
fn a_file_of_many_extents_is_freed_whole() {
    const EXTENTS: u64 = 9000;
    let fs = Mounted::new(64 << 20);
    let data = |fs: &Mounted| {
        let metadata: u64 = fs.core.volume().metadata_extents().iter().map(|range| range.count).sum();
        used(fs) - metadata
    };
    let empty = data(&fs);
    let (ino, file) = fs.create(ROOT_INO, "many");
    for extent in 0..EXTENTS {
        fs.write(file, 2 * extent * BLOCK, &[1; BLOCK as usize]);
    }
    assert_eq!(data(&fs), empty + EXTENTS);
    fs.core.unlink(ALICE, ROOT_INO, b"many").expect("unlink");
    fs.core.release(file);
    fs.core.forget(ino, 1);
    assert_eq!(data(&fs), empty);
    fs.remount();
}

/// A file of the storm: every block of it has one byte throughout.
fn storm(fs: &Mounted, files: [(Ino, Handle); 2], worker: u64) {
    let mut rng = Rng::new(worker);
    let one_byte = |handle, block| {
        let data = fs.read(handle, block * BLOCK, BLOCK as u32);
        assert!(data.iter().all(|byte| *byte == data[0]), "worker {worker}: a block of two writes");
    };
    for step in 0..400 {
        let turned = rng.below(2) as usize;
        let ((ino, handle), (other, _)) = (files[turned], files[1 - turned]);
        let block = rng.below(16);
        match rng.below(8) {
            0 => fs.truncate(ino, block * BLOCK),
            1 => fs.core.fallocate(ALICE, handle, FallocateMode::PunchHole, block * BLOCK, 2 * BLOCK).expect("punch"),
            2 => drop(fs.core.fsync(handle, false)),
            3 | 4 => {
                let at = block * BLOCK;
                let range = CloneRange { source_offset: at, destination_offset: rng.below(16) * BLOCK, length: 2 * BLOCK };
                // What the others truncate meanwhile cannot be cloned.
                let cloned = fs.reflink(other, ino, range);
                assert!(cloned.as_ref().is_ok_and(|length| *length == 2 * BLOCK) || code(cloned) == libc::EINVAL);
            }
            5 => one_byte(handle, block),
            _ => fs.write(handle, block * BLOCK, &[(step * 3 + worker + 1) as u8; 2 * BLOCK as usize]),
        }
    }
    (0..16).for_each(|block| one_byte(files[0].1, block));
}

#[test]
fn clones_in_both_directions_among_writes_keep_whole_blocks_and_counts() {
    let fs = Mounted::new(64 << 20);
    let files = [fs.create(ROOT_INO, "a"), fs.create(ROOT_INO, "b")];
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let fs = &fs;
            scope.spawn(move || storm(fs, files, worker));
        }
    });
    fs.remount();
}

#[test]
fn a_file_shortened_inside_a_shared_block_gets_a_block_of_its_own() {
    let fs = Mounted::new(16 << 20);
    let ((source, from), (clone, to)) = pair(&fs, 3);
    fs.truncate(source, 2 * BLOCK + 100);
    assert_eq!((shared(&fs, source), shared(&fs, clone)[..2].to_vec()), (vec![true, true, false], vec![true; 2]));
    assert_eq!((fs.read(from, 2 * BLOCK, 200), fs.read(to, 2 * BLOCK, 200)), (vec![3; 100], vec![3; 200]));
    fs.truncate(clone, BLOCK);
    fs.remount();
}

#[test]
fn a_file_of_many_extents_is_shortened_whole_or_in_part() {
    const EXTENTS: u64 = 10_000;
    for seed in 0..4 {
        let fs = Mounted::new(64 << 20);
        let (ino, file) = fs.create(ROOT_INO, "many");
        for extent in 0..EXTENTS {
            fs.write(file, 2 * extent * BLOCK, &[1; BLOCK as usize]);
        }
        fs.core.sync().expect("sync");
        fs.truncate(ino, BLOCK + 5);
        assert_eq!((fs.core.attr(ino).map(|attr| attr.size), fs.read(file, 0, 2).len()), (Ok(BLOCK + 5), 2));
        let image = fs.disk.crash_image(&mut Rng::new(seed));
        drop(fs);
        let disk = Arc::new(TestDevice::from_image(image));
        assert_clean(&disk);
        let fs = Mounted::on(disk);
        let size = fs.core.attr(ino).expect("attr").size;
        assert!(size == BLOCK + 5 || size > 2 * BLOCK, "seed {seed}: {size}");
        fs.remount();
    }
}
