//! Content of files: growth, holes, allocation, handles, attributes.

use super::*;
use crate::coherence::Coherence;
use crate::store::testdev::Rng;

const MIB: u64 = 1 << 20;

#[test]
fn bytes_behind_the_end_never_come_to_light() {
    let fs = Mounted::new(32 * MIB);
    let (ino, file) = fs.create(ROOT_INO, "f");
    fs.write(file, 0, &[7; 10_000]);
    fs.truncate(ino, 100);
    fs.truncate(ino, 9_000);
    assert!(fs.read(file, 0, 100).iter().all(|b| *b == 7));
    assert!(fs.read(file, 100, 20_000).iter().all(|b| *b == 0));
    assert_eq!(fs.read(file, 100, 20_000).len(), 8_900);
    fs.write(file, 0, &[8; 5_000]);
    fs.truncate(ino, 4_500);
    fs.write(file, 20_000, b"x");
    assert_eq!(fs.read(file, 4_400, 200), [[8; 100], [0; 100]].concat());
    assert_eq!(fs.read(file, 20_000, 100), b"x");
    fs.core.release(file);
    fs.remount();
}

#[test]
fn random_writes_match_a_vector() {
    for seed in 0..6 {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let fs = Mounted::new(32 * MIB);
        let (ino, file) = fs.create(ROOT_INO, "f");
        let mut model: Vec<u8> = Vec::new();
        for step in 0..300 {
            let offset = rng.below(200_000);
            let mut length = 1 + rng.below(30_000);
            let mut offset = offset;
            if rng.below(2) == 0 {
                offset &= !4095;
                length = length.next_multiple_of(4096);
            }
            let end = offset + length;
            let zero = |model: &mut Vec<u8>| {
                let (from, to) = ((offset as usize).min(model.len()), (end as usize).min(model.len()));
                model[from..to].fill(0);
            };
            let allocate = |mode| {
                let done = fs.core.fallocate(ALICE, file, mode, offset, length);
                assert_eq!(done, Ok(()), "seed {seed} step {step}");
            };
            match rng.below(8) {
                0 => {
                    allocate(FallocateMode::PunchHole);
                    zero(&mut model);
                }
                1 => {
                    let keep_size = rng.below(2) == 0;
                    allocate(FallocateMode::ZeroRange { keep_size });
                    if !keep_size && model.len() < end as usize {
                        model.resize(end as usize, 0);
                    }
                    zero(&mut model);
                }
                2 => {
                    let keep_size = rng.below(2) == 0;
                    allocate(FallocateMode::Allocate { keep_size });
                    if !keep_size && model.len() < end as usize {
                        model.resize(end as usize, 0);
                    }
                }
                3 => {
                    fs.truncate(ino, offset);
                    model.resize(offset as usize, 0);
                }
                _ => {
                    let data: Vec<u8> = (0..length).map(|_| rng.next() as u8 | 1).collect();
                    fs.write(file, offset, &data);
                    if model.len() < end as usize {
                        model.resize(end as usize, 0);
                    }
                    model[offset as usize..end as usize].copy_from_slice(&data);
                }
            }
            assert_eq!(fs.core.attr(ino).expect("attr").size, model.len() as u64);
            assert!(fs.read(file, 0, 1 << 20) == model, "seed {seed} step {step}");
            let at = rng.below(model.len() as u64 + 10);
            let part = fs.read(file, at, 5_000);
            let from = (at as usize).min(model.len());
            assert!(part == model[from..model.len().min(from + 5_000)], "seed {seed} step {step}");
        }
        fs.core.release(file);
        let fs = fs.remount();
        let file = fs.core.open(ALICE, ino, READ_WRITE).expect("open").handle;
        assert!(fs.read(file, 0, 1 << 20) == model, "seed {seed}");
    }
}

#[test]
fn a_sparse_file_of_16_tib() {
    let fs = Mounted::new(32 * MIB);
    let (ino, file) = fs.create(ROOT_INO, "huge");
    let last = (16 << 40) - 1;
    fs.write(file, last, b"z");
    assert_eq!(fs.core.attr(ino).expect("attr").size, 16 << 40);
    assert_eq!(fs.core.attr(ino).expect("attr").blocks, 8);
    assert_eq!(code(fs.core.write(ALICE, file, 16 << 40, b"y", DIRECT)), libc::EFBIG);
    assert_eq!(fs.core.write(ALICE, file, last, b"yy", DIRECT), Ok(1));
    assert_eq!(fs.core.lseek(file, 0, SeekWhence::Data), Ok(last & !4095));
    assert_eq!(fs.core.lseek(file, 5, SeekWhence::Hole), Ok(5));
    assert_eq!(fs.core.lseek(file, last, SeekWhence::Hole), Ok(16 << 40));
    assert_eq!(code(fs.core.lseek(file, 16 << 40, SeekWhence::Hole)), libc::ENXIO);
    let beyond = FallocateMode::Allocate { keep_size: true };
    assert_eq!(code(fs.core.fallocate(ALICE, file, beyond, last, 2)), libc::EFBIG);
    fs.truncate(ino, 0);
    assert_eq!(fs.core.attr(ino).expect("attr").blocks, 0);
    fs.core.release(file);
    fs.remount();
}

#[test]
fn growing_files_stay_in_one_piece() {
    let fs = Mounted::new(64 * MIB);
    let (first, a) = fs.create(ROOT_INO, "a");
    let (second, b) = fs.create(ROOT_INO, "b");
    for step in 0..2048 {
        fs.write(a, step * 4096, &[1; 4096]);
        fs.write(b, step * 4096, &[2; 4096]);
    }
    for ino in [first, second] {
        let survey = fs.core.survey_extents(ino, peerfs_p2p::Range::ALL).expect("survey");
        assert!(survey.extents.len() <= 16, "{} extents", survey.extents.len());
        let covered: u64 = survey.extents.iter().map(|extent| extent.length).sum();
        assert_eq!(covered, survey.size);
    }
    let held = fs.core.statfs().expect("statfs").free;
    fs.core.release(a);
    fs.core.release(b);
    assert!(fs.core.statfs().expect("statfs").free > held);
    fs.remount();
}

#[test]
fn an_open_file_outlives_its_name() {
    let fs = Mounted::new(32 * MIB);
    let free = fs.core.statfs().expect("statfs").free;
    let (ino, file) = fs.create(ROOT_INO, "f");
    fs.write(file, 0, &[3; 100_000]);
    fs.core.unlink(ALICE, ROOT_INO, b"f").expect("unlink");
    fs.core.forget(ino, 1);
    assert_eq!(fs.core.getattr(ino).expect("attr").nlink, 0);
    assert_eq!(fs.read(file, 99_999, 10), [3]);
    assert_eq!(code(fs.core.link(ALICE, ino, ROOT_INO, b"g")), libc::ENOENT);
    fs.core.release(file);
    assert_eq!(code(fs.core.getattr(ino)), libc::ENOENT);
    assert_eq!(fs.core.statfs().expect("statfs").free, free);
    fs.remount();
}

#[test]
fn orphans_of_a_crash_are_freed_at_the_next_mount() {
    let fs = Mounted::new(32 * MIB);
    let (ino, file) = fs.create(ROOT_INO, "f");
    fs.write(file, 0, &[3; 100_000]);
    fs.core.setxattr(ALICE, ino, b"user.a", b"b", XattrMode::Any).expect("setxattr");
    fs.core.unlink(ALICE, ROOT_INO, b"f").expect("unlink");
    fs.core.sync().expect("sync");
    let image = fs.disk.crash_image(&mut Rng::new(1));
    let disk = Arc::new(TestDevice::from_image(image));
    assert_clean(&disk);
    let fs = Mounted::on(disk);
    assert_eq!(code(fs.core.getattr(ino)), libc::ENOENT);
    fs.remount();
}

#[test]
fn attributes_follow_posix() {
    let fs = Mounted::new(32 * MIB);
    let (ino, file) = fs.create(ROOT_INO, "f");
    let set = |set| fs.core.setattr(ALICE, ino, None, set).expect("setattr");
    let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    assert_eq!(set(mode(0o6755)).mode, libc::S_IFREG | 0o6755);
    let chown = SetAttr { uid: Some(5), ..SetAttr::default() };
    assert_eq!(set(chown).mode, libc::S_IFREG | 0o755);
    set(mode(0o6745));
    let chgrp = SetAttr { gid: Some(7), ..SetAttr::default() };
    let root = Caller { uid: 0, ..ALICE };
    assert_eq!(fs.core.setattr(root, ino, None, chgrp).expect("setattr").mode, libc::S_IFREG | 0o2745, "root may keep it");
    assert_eq!(set(SetAttr { gid: Some(1000), ..SetAttr::default() }).mode, libc::S_IFREG | 0o745, "7 was not her group");
    assert_eq!(set(mode(0o6755)).mode, libc::S_IFREG | 0o6755);
    assert_eq!(set(SetAttr::default()).mode, libc::S_IFREG | 0o6755, "it is not hers");
    let owner = Caller { uid: 5, ..ALICE };
    assert_eq!(fs.core.setattr(owner, ino, None, SetAttr::default()).expect("chown").mode, libc::S_IFREG | 0o755);
    set(mode(0o6745));
    let kill = WriteOrigin { kill_suid: true, ..DIRECT };
    fs.core.write(ALICE, file, 0, b"x", kill).expect("write");
    assert_eq!(fs.core.attr(ino).expect("attr").mode, libc::S_IFREG | 0o2745, "it is the writer's group");
    let early = Timestamp { seconds: -5, nanoseconds: 7 };
    let times = SetAttr { atime: Some(SetTime::At(early)), mtime: Some(SetTime::Now), ..SetAttr::default() };
    assert_eq!(set(times).atime, early);
    let silent = fs.core.open(ALICE, ino, OpenFlags { no_atime: true, ..READ_WRITE }).expect("open").handle;
    assert_eq!(fs.read(silent, 0, 1), b"x");
    assert_eq!(fs.core.attr(ino).expect("attr").atime, early);
    fs.core.release(silent);
    assert_eq!(fs.read(file, 0, 1), b"x");
    assert!(fs.core.attr(ino).expect("attr").atime > early);
    let before = fs.core.attr(ino).expect("attr");
    fs.core.release(file);
    let fs = fs.remount();
    assert_eq!(fs.core.attr(ino), Ok(before));
}

#[test]
fn attributes_with_names() {
    let fs = Mounted::new(32 * MIB);
    let (ino, _) = fs.create(ROOT_INO, "f");
    let set = |name: &[u8], value: &[u8], mode| fs.core.setxattr(ALICE, ino, name, value, mode);
    assert_eq!(code(fs.core.getxattr(ino, b"user.a")), libc::ENODATA);
    assert_eq!(code(set(b"user.a", b"1", XattrMode::Replace)), libc::ENODATA);
    assert_eq!(set(b"user.a", b"1", XattrMode::Create), Ok(()));
    assert_eq!(code(set(b"user.a", b"2", XattrMode::Create)), libc::EEXIST);
    assert_eq!(set(b"trusted.b", &[9; 65536], XattrMode::Any), Ok(()));
    assert_eq!(code(set(b"user.c", &[9; 65537], XattrMode::Any)), libc::E2BIG);
    assert_eq!(code(set(b"nobody.c", b"", XattrMode::Any)), libc::EOPNOTSUPP);
    assert_eq!(code(set(&[b'u'; 256], b"", XattrMode::Any)), libc::ERANGE);
    let root = Caller { uid: 0, gid: 0, ..ALICE };
    assert_eq!(fs.core.listxattr(root, ino), Ok(b"trusted.b\0user.a\0".to_vec()));
    assert_eq!(fs.core.listxattr(ALICE, ino), Ok(b"user.a\0".to_vec()), "not for everybody");
    assert_eq!(code(set(b"user.", b"1", XattrMode::Any)), libc::EINVAL);
    assert_eq!(fs.core.removexattr(ALICE, ino, b"system.posix_acl_access"), Ok(()), "there is none, as asked");
    assert_eq!(fs.core.getxattr(ino, b"trusted.b"), Ok(vec![9; 65536]));
    assert_eq!(fs.core.removexattr(ALICE, ino, b"user.a"), Ok(()));
    assert_eq!(code(fs.core.removexattr(ALICE, ino, b"user.a")), libc::ENODATA);

    assert_eq!(fs.core.direct_policy(ino), None);
    let policy = b"user.peerfs.direct";
    assert_eq!(code(set(policy, b"sometimes", XattrMode::Any)), libc::EINVAL);
    assert_eq!(set(policy, b"never", XattrMode::Any), Ok(()));
    assert_eq!(fs.core.direct_policy(ino), Some(peerfs_p2p::DirectPolicy::Never));
    assert_eq!(fs.core.removexattr(ALICE, ino, policy), Ok(()));
    assert_eq!(fs.core.direct_policy(ino), None);
    fs.remount();
}

#[test]
fn a_read_only_mount_refuses_changes() {
    let fs = Mounted::new(32 * MIB);
    let (ino, file) = fs.create(ROOT_INO, "f");
    fs.write(file, 0, b"abc");
    fs.core.release(file);
    fs.core.close().expect("close");
    let options = MountOptions { read_only: true, ..MountOptions::default() };
    let fs = Mounted::with(fs.disk, options);
    assert_eq!(code(fs.core.mkdir(ALICE, ROOT_INO, b"d", 0o755)), libc::EROFS);
    assert_eq!(code(fs.core.open(ALICE, ino, READ_WRITE)), libc::EROFS);
    let flags = OpenFlags { write: false, ..READ_WRITE };
    let file = fs.core.open(ALICE, ino, flags).expect("open").handle;
    assert_eq!(fs.read(file, 0, 9), b"abc");
    fs.core.close().expect("close");
}

#[test]
fn a_failed_commit_makes_the_volume_read_only() {
    let fs = Mounted::new(32 * MIB);
    let (_, file) = fs.create(ROOT_INO, "f");
    fs.write(file, 0, b"abc");
    fs.core.fsync(file, false).expect("fsync");
    fs.write(file, 0, b"abcd");
    fs.disk.fail(fs.disk.steps(), 1000);
    assert_eq!(code(fs.core.fsync(file, false)), libc::EIO);
    assert_eq!(code(fs.core.write(ALICE, file, 0, b"x", DIRECT)), libc::EROFS);
    assert_eq!(code(fs.core.fsync(file, false)), libc::EIO);
    assert_eq!(fs.read(file, 0, 9), b"abcd");
}

/// Counts what the mapping engine is told, and that it is told without locks.
#[derive(Default)]
struct Told {
    core: std::sync::OnceLock<std::sync::Weak<Core>>,
    calls: std::sync::Mutex<Vec<String>>,
}

impl Told {
    fn note(&self, ino: Ino, what: String) {
        self.calls.lock().expect("no panic").push(what);
        let core = self.core.get().and_then(std::sync::Weak::upgrade).expect("set");
        // Would hang if the caller held the inode.
        core.touch_written(ino).expect("touch");
    }
}

impl Coherence for Told {
    fn close_range(&self, ino: Ino, range: peerfs_p2p::Range, trigger: peerfs_abi::Trigger) -> crate::coherence::ClosedRange {
        self.note(ino, format!("close {}.. {trigger}", range.start));
        Box::new(())
    }
    fn cached_read(&self, ino: Ino, range: peerfs_p2p::Range, cpu_writers: u32) {
        self.note(ino, format!("read {}..{} writers {cpu_writers}", range.start, range.end));
    }
    fn cached_write(&self, ino: Ino, range: peerfs_p2p::Range) {
        self.note(ino, format!("write {}..{}", range.start, range.end));
    }
    fn partial_write(&self, ino: Ino, range: peerfs_p2p::Range) -> crate::coherence::ClosedRange {
        self.note(ino, format!("partial {}..{}", range.start, range.end));
        Box::new(())
    }
    fn before_sharing(&self, ino: Ino, range: peerfs_p2p::Range) -> Option<crate::coherence::ClosedRange> {
        self.note(ino, format!("share {}..{}", range.start, range.end));
        Some(Box::new(()))
    }
    fn writable_cached_open(&self, ino: Ino) {
        self.note(ino, "writer".into());
    }
    fn flush(&self, ino: Ino) -> Result<(), peerfs_blockdev::DeviceError> {
        self.note(ino, "flush".into());
        Ok(())
    }
    fn size_changed(&self, ino: Ino, old_size: u64, new_size: u64) {
        self.note(ino, format!("size {old_size} {new_size}"));
    }
    fn is_mapped(&self, _ino: Option<Ino>) -> bool {
        false
    }
}

#[test]
fn the_mapping_engine_is_told_without_locks_held() {
    let fs = Mounted::new(32 * MIB);
    let told = Arc::new(Told::default());
    assert!(told.core.set(Arc::downgrade(&fs.core)).is_ok());
    let (ino, file) = fs.create(ROOT_INO, "f");
    fs.core.set_coherence(told.clone());
    let other = fs.core.open(ALICE, ino, READ_WRITE).expect("open").handle;
    let cached = WriteOrigin { through_cache: true, ..DIRECT };
    fs.core.write(ALICE, file, 0, &[1; 8192], cached).expect("write");
    fs.write(file, 0, &[1; 8192]);
    fs.write(file, 4097, &[1; 10]);
    fs.core.read(file, 0, 10, true).expect("read");
    fs.core.fsync(file, true).expect("fsync");
    fs.truncate(ino, 100);
    fs.core.fallocate(ALICE, file, FallocateMode::PunchHole, 10, 10).expect("punch");
    fs.core.release(other);
    fs.core.unlink(ALICE, ROOT_INO, b"f").expect("unlink");
    fs.core.release(file);
    told.core.get().expect("set").upgrade().expect("alive").forget(ino, 1);
    let calls = told.calls.lock().expect("no panic").join(", ");
    assert_eq!(
        calls,
        "writer, write 0..8192, size 0 8192, partial 4097..4107, read 0..10 writers 2, flush, close 100.. Truncate, \
         size 8192 100, close 0.. Punch, close 0.. Unlink"
    );
}

#[test]
fn growth_closes_the_block_that_the_file_ends_in() {
    let fs = Mounted::new(32 * MIB);
    let told = Arc::new(Told::default());
    assert!(told.core.set(Arc::downgrade(&fs.core)).is_ok());
    let (ino, file) = fs.create(ROOT_INO, "f");
    fs.core.set_coherence(told.clone());
    fs.write(file, 0, &[1; 100]);
    fs.truncate(ino, 5000);
    fs.write(file, 4096, &[2; 4096]);
    fs.truncate(ino, 8000);
    fs.write(file, 12_288, &[3; 4096]);
    fs.truncate(ino, 16_000);
    fs.core.fallocate(ALICE, file, FallocateMode::Allocate { keep_size: false }, 0, 20_000).expect("allocate");
    fs.core.fallocate(ALICE, file, FallocateMode::ZeroRange { keep_size: false }, 20_480, 100).expect("zero");
    fs.core.fallocate(ALICE, file, FallocateMode::Allocate { keep_size: true }, 0, 40_960).expect("allocate");
    let calls = told.calls.lock().expect("no panic").join(", ");
    assert_eq!(
        calls,
        "partial 0..100, size 0 100, partial 100..5000, size 100 5000, partial 5000..8192, size 5000 8192, \
         close 8000.. Truncate, size 8192 8000, partial 8000..16384, size 8000 16384, close 16000.. Truncate, \
         size 16384 16000, partial 16000..20000, size 16000 20000, close 20480.. Punch, partial 20000..20580, size 20000 20580"
    );
}

#[test]
fn a_failed_write_leaves_everything_consistent() {
    for seed in 0..10 {
        println!("seed {seed}");
        let mut rng = Rng::new(seed);
        let fs = Mounted::new(32 * MIB);
        let (ino, file) = fs.create(ROOT_INO, "f");
        for _ in 0..200 {
            let before = fs.core.attr(ino).expect("attr");
            let (offset, length) = (rng.below(300_000), 1 + rng.below(50_000));
            let fails = rng.below(2) == 0;
            if fails {
                fs.disk.fail(fs.disk.steps() + rng.below(2), 1);
            }
            let done = match rng.below(4) {
                0 => fs.core.fallocate(ALICE, file, FallocateMode::ZeroRange { keep_size: false }, offset, length),
                1 => fs.core.fallocate(ALICE, file, FallocateMode::PunchHole, offset, length),
                2 => {
                    let set = SetAttr { size: Some(offset), ..SetAttr::default() };
                    fs.core.setattr(ALICE, ino, None, set).map(drop)
                }
                _ => fs.core.write(ALICE, file, offset, &vec![1; length as usize], DIRECT).map(drop),
            };
            if let Err(error) = done {
                assert_eq!(error.code(), libc::EIO);
                let after = fs.core.attr(ino).expect("attr");
                assert_eq!((after.size, after.blocks), (before.size, before.blocks));
            }
            fs.disk.fail(u64::MAX, 0);
            let report = crate::store::check_volume(fs.core.volume()).expect("fsck");
            assert!(report.is_clean(), "{report:?}");
        }
        fs.core.release(file);
        fs.remount();
    }
}

/// Opening with O_TRUNC is a change even where there is nothing to cut off, and ends set-id bits.
#[test]
fn truncating_by_open() {
    let mounted = Mounted::new(64 << 20);
    let (ino, handle) = mounted.create(ROOT_INO, "file");
    let keep = FallocateMode::Allocate { keep_size: true };
    mounted.core.fallocate(ALICE, handle, keep, 0, 1 << 20).unwrap();
    let long_ago = SetTime::At(Timestamp { seconds: 1, nanoseconds: 0 });
    let set = SetAttr { mode: Some(0o6755), mtime: Some(long_ago), ..SetAttr::default() };
    mounted.core.setattr(ALICE, ino, None, set).unwrap();

    let truncate = OpenFlags { truncate: true, ..READ_WRITE };
    let root = Caller { uid: 0, gid: 0, tid: 1, umask: 0 };
    mounted.core.open(root, ino, truncate).unwrap();
    let attr = mounted.core.getattr(ino).unwrap();
    assert_eq!((attr.mode & 0o7777, attr.blocks), (0o6755, 0));
    assert!(attr.mtime.seconds > 1);

    mounted.core.open(ALICE, ino, truncate).unwrap();
    assert_eq!(mounted.core.getattr(ino).unwrap().mode & 0o7777, 0o755);
}

/// The kernel leaves set-id bits to the filesystem.
#[test]
fn changing_the_content_ends_set_id_bits() {
    let mounted = Mounted::new(64 << 20);
    let (ino, handle) = mounted.create(ROOT_INO, "file");
    let mode_after = |caller: Caller, change: &dyn Fn(Caller)| {
        let set = SetAttr { mode: Some(0o6755), ..SetAttr::default() };
        mounted.core.setattr(caller, ino, None, set).unwrap();
        change(caller);
        mounted.core.getattr(ino).unwrap().mode & 0o7777
    };
    let root = Caller { uid: 0, gid: 0, tid: 1, umask: 0 };
    let truncate = |caller| {
        let set = SetAttr { size: Some(100), ..SetAttr::default() };
        mounted.core.setattr(caller, ino, None, set).unwrap();
    };
    let allocate = |caller| {
        mounted.core.fallocate(caller, handle, FallocateMode::Allocate { keep_size: false }, 0, 8192).unwrap();
    };
    assert_eq!((mode_after(ALICE, &truncate), mode_after(root, &truncate)), (0o755, 0o6755));
    assert_eq!((mode_after(ALICE, &allocate), mode_after(root, &allocate)), (0o755, 0o6755));
    let chown = |caller| {
        let set = SetAttr { uid: Some(1), ..SetAttr::default() };
        mounted.core.setattr(caller, ino, None, set).unwrap();
    };
    assert_eq!(mode_after(root, &chown), 0o755);
}

/// The kernel sends no fsync after an O_SYNC write that bypasses its cache.
#[test]
fn a_synchronous_write_through_a_direct_handle_survives_a_crash() {
    let mounted = Mounted::new(64 << 20);
    let (ino, _) = mounted.create(ROOT_INO, "file");
    let direct = mounted.core.open(ALICE, ino, OpenFlags { direct: true, ..READ_WRITE }).unwrap();
    let synchronous = WriteOrigin { synchronous: true, ..DIRECT };
    mounted.core.write(ALICE, direct.handle, 0, b"durable", synchronous).unwrap();
    let image = mounted.disk.crash_image(&mut Rng::new(1));
    let mounted = Mounted::on(Arc::new(TestDevice::from_image(image)));
    let ino = mounted.core.lookup(ROOT_INO, b"file").unwrap().ino;
    let opened = mounted.core.open(ALICE, ino, READ_WRITE).unwrap();
    assert_eq!(mounted.read(opened.handle, 0, 100), b"durable");
}
