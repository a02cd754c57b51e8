//! Windows under hostile holders, races and failing devices.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use peerfs_blockdev::{
    Aperture, ApertureKind, BlockDevice, BlockDeviceExt, Cmb, Effect, Engine, FaultDevice, FaultRule, MemDevice, OpKind, Run,
    Trigger, WindowSpec,
};

const MIB: u64 = 1 << 20;

fn spec(device_offset: u64, length: u64, valid_length: u64) -> WindowSpec {
    let run = Run { window_offset: 0, device_offset, length };
    WindowSpec { owner: 1, length, runs: vec![run], valid_length }
}

/// Every rule of windows holds for both.
const KINDS: [ApertureKind; 2] = [ApertureKind::Windowed, ApertureKind::Identity];

fn aperture(kind: ApertureKind, device: Arc<dyn BlockDevice>, engine: Arc<Engine>) -> Cmb {
    let size = device.info().size_bytes;
    match kind {
        ApertureKind::Windowed => Cmb::new(device, engine, size),
        ApertureKind::Identity => Cmb::identity(device, engine),
    }
}

fn on_memory(kind: ApertureKind, size: u64) -> (Arc<MemDevice>, Cmb) {
    let device = Arc::new(MemDevice::new(size).expect("memory device"));
    let engine = device.engine().clone();
    (device.clone(), aperture(kind, device, engine))
}

fn on_faults(kind: ApertureKind, size: u64) -> (FaultDevice, Cmb) {
    let device = MemDevice::new(size).expect("memory device");
    let engine = device.engine().clone();
    let faults = FaultDevice::new(Arc::new(device), 7);
    (faults.clone(), aperture(kind, Arc::new(faults), engine))
}

/// What a holder tries against a grant; each must leave the daemon able to cut and write back.
fn attack(grant: &File) {
    for seal in [SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_WRITE, SealFlag::F_SEAL_FUTURE_WRITE] {
        assert!(fcntl(grant, FcntlArg::F_ADD_SEALS(seal)).is_err(), "a holder sealed the window");
    }
    assert!(grant.set_len(64 * MIB).is_err(), "a holder grew the window");
    let bigger = fallocate(grant, FallocateFlags::empty(), 0, (64 * MIB) as i64);
    assert!(bigger.is_err(), "a holder grew the window");
}

#[test]
fn a_hostile_writer_harms_only_itself() {
    for kind in KINDS {
        for harm in ["truncate", "shrink", "punch"] {
            let (device, cmb) = on_memory(kind, 4 * MIB);
            device.write_at(0, &vec![9; 4 * MIB as usize]).expect("write");
            let window = cmb.open_window(spec(MIB, MIB, MIB)).expect("window");
            window.set_writable();
            let grant = File::from(window.grant_fd(true).expect("grant"));
            grant.write_all_at(&[5; 4096], 8192).expect("a granted store");
            attack(&grant);
            match harm {
                "truncate" => grant.set_len(0).expect("own harm"),
                "shrink" => grant.set_len(4096).expect("own harm"),
                _ => {
                    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    fallocate(&grant, mode, 0, MIB as i64).expect("own harm");
                }
            }
            let mut block = vec![0; 4096];
            cmb.read_at(MIB + 8192, &mut block).expect("served from the held pages");
            assert!(block.iter().all(|b| *b == 5), "{harm}");
            cmb.write_at(MIB, &[6; 4096]).expect("write");
            window.cut();
            assert!(grant.set_len(4096).is_err(), "a cut window was regrown");
            window.write_back().expect("write back");
            let mut got = vec![0; MIB as usize];
            device.read_at(MIB, &mut got).expect("read");
            assert!(got[..4096].iter().all(|b| *b == 6), "{harm}");
            assert!(got[8192..12288].iter().all(|b| *b == 5), "{harm}");
            assert!(got[4096..8192].iter().chain(&got[12288..]).all(|b| *b == 9), "{harm}");
        }
    }
}

/// Body of the child of the test below: standard input is a read-only grant.
#[test]
fn child_tries_to_reopen() {
    if std::env::var_os("PEERFS_TEST_HOSTILE_CHILD").is_none() {
        return;
    }
    let grant = File::open("/proc/self/fd/0").map(drop);
    assert!(grant.is_err(), "mode 0 must stop a reopen");
    let writable = OpenOptions::new().write(true).open("/proc/self/fd/0");
    assert!(writable.is_err(), "a reader became a writer");
    let stdin = std::io::stdin();
    let grant = File::from(std::os::fd::AsFd::as_fd(&stdin).try_clone_to_owned().expect("dup"));
    assert!(grant.write_at(&[1], 0).is_err(), "stored through a read-only grant");
    assert!(grant.set_len(0).is_err(), "truncated through a read-only grant");
    assert!(grant.set_permissions(PermissionsExt::from_mode(0o666)).is_err(), "fchmod by a stranger");
    attack(&grant);
    let mut byte = [0];
    grant.read_exact_at(&mut byte, 0).expect("reading is granted");
    assert_eq!(byte, [9]);
}

#[test]
fn an_unprivileged_reader_stays_a_reader() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root to become another user");
        return;
    }
    let (device, cmb) = on_memory(ApertureKind::Windowed, MIB);
    device.write_at(0, &vec![9; MIB as usize]).expect("write");
    let window = cmb.open_window(spec(0, MIB, MIB)).expect("window");
    let grant = window.grant_fd(false).expect("grant");
    let child = Command::new("/proc/self/exe")
        .args(["--exact", "child_tries_to_reopen", "--nocapture"])
        .env("PEERFS_TEST_HOSTILE_CHILD", "1")
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::from(grant))
        .output()
        .expect("the test can run itself");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
    window.cut();
    window.write_back().expect("write back");
}

#[test]
fn the_last_store_before_the_cut_reaches_the_device() {
    for kind in KINDS {
        let (device, cmb) = on_memory(kind, 4 * MIB);
        for round in 0..20u64 {
            let window = cmb.open_window(spec(MIB, 2 * MIB, 2 * MIB)).expect("window");
            window.set_writable();
            let grant = File::from(window.grant_fd(true).expect("grant"));
            let (started, begun) = std::sync::mpsc::channel();
            let storer = thread::spawn(move || {
                let mut last = None;
                for value in 1u64.. {
                    let at = (value * 4096 + round * 8) % (2 * MIB - 8);
                    if grant.write_all_at(&value.to_le_bytes(), at).is_err() {
                        return last;
                    }
                    last = Some((at, value));
                    if value == 200 {
                        started.send(()).expect("the test waits");
                    }
                }
                last
            });
            begun.recv().expect("the storer runs");
            window.cut();
            let (at, value) = storer.join().expect("no panic").expect("it stored");
            window.write_back().expect("write back");
            let mut got = vec![0; 2 * MIB as usize];
            device.read_at(MIB, &mut got).expect("read");
            let at = at as usize;
            assert_eq!(got[at..at + 8], value.to_le_bytes(), "round {round}");
        }
    }
}

#[test]
fn a_raw_write_under_way_is_in_the_window() {
    for kind in KINDS {
        let (faults, cmb) = on_faults(kind, 4 * MIB);
        let hold = faults.hold(OpKind::Write);
        let mut buf = cmb.buffer(8192);
        buf.fill(3);
        let write = cmb.submit(peerfs_blockdev::Io::Write { offset: MIB, buf });
        hold.wait_for(1);
        // The owner of the write does not wait for it: the window must, and without the owner.
        let opener = thread::spawn({
            let cmb = cmb.clone();
            move || cmb.open_window(spec(MIB, MIB, MIB)).expect("window")
        });
        hold.release();
        let window = opener.join().expect("no panic");
        let mut got = [0; 8192];
        File::from(window.grant_fd(false).expect("grant")).read_exact_at(&mut got, 0).expect("read");
        assert!(got.iter().all(|b| *b == 3), "the window was filled before the write");
        write.wait().expect("write");
    }
}

#[test]
fn writes_racing_with_windows_are_never_lost() {
    for kind in KINDS {
        let (device, cmb) = on_memory(kind, 4 * MIB);
        thread::scope(|scope| {
            for part in 0..2u64 {
                let cmb = &cmb;
                scope.spawn(move || {
                    for value in 0..400u64 {
                        let fill = (value % 251) as u8;
                        let offset = part * 8192 + 4096 * (value % 2);
                        cmb.write_at(offset, &[fill; 4096]).expect("write");
                        let mut got = [0; 4096];
                        cmb.read_at(offset, &mut got).expect("read");
                        assert!(got.iter().all(|b| *b == fill), "lost write {value} of part {part}");
                    }
                });
            }
            scope.spawn(|| {
                for round in 0..200 {
                    let window = cmb.open_window(spec(0, 16384, 16384)).expect("window");
                    if round % 2 == 0 {
                        window.set_writable();
                    }
                    window.cut();
                    window.write_back().expect("write back");
                }
            });
        });
        let mut through = vec![0; 16384];
        let mut below = vec![0; 16384];
        cmb.read_at(0, &mut through).expect("read");
        device.read_at(0, &mut below).expect("read");
        assert_eq!(through, below);
    }
}

#[test]
fn a_failed_write_back_keeps_the_window_and_can_be_repeated() {
    for kind in KINDS {
        let (faults, cmb) = on_faults(kind, 4 * MIB);
        let window = cmb.open_window(spec(0, MIB, MIB)).expect("window");
        window.set_writable();
        let grant = File::from(window.grant_fd(true).expect("grant"));
        grant.write_all_at(&[8; 4096], 4096).expect("store");
        window.cut();
        faults.add_rule(FaultRule { kind: OpKind::Write, trigger: Trigger::Always, effect: Effect::Error(libc::EIO) });
        assert_eq!(window.write_back().expect_err("the device fails").errno(), libc::EIO);
        let mut got = [0; 4096];
        cmb.read_at(4096, &mut got).expect("the window is the authority");
        assert!(got.iter().all(|b| *b == 8));
        assert_eq!(Aperture::info(&cmb).used_bytes, MIB);
        faults.clear_rules();
        window.write_back().expect("second try");
        window.write_back().expect("nothing left to do");
        assert_eq!(Aperture::info(&cmb).used_bytes, 0);
        faults.read_at(4096, &mut got).expect("read");
        assert!(got.iter().all(|b| *b == 8));
    }
}

#[test]
fn a_failed_fill_leaves_nothing_behind() {
    for kind in KINDS {
        let (faults, cmb) = on_faults(kind, 4 * MIB);
        faults.add_rule(FaultRule {
            kind: OpKind::Read,
            trigger: Trigger::Range { offset: MIB, length: 1 },
            effect: Effect::Error(libc::EIO),
        });
        assert!(cmb.open_window(spec(MIB, MIB, MIB)).is_err());
        assert_eq!(Aperture::info(&cmb).used_bytes, 0);
        faults.clear_rules();
        cmb.open_window(spec(MIB, MIB, MIB)).expect("the range is free");
    }
}

#[test]
fn bytes_beyond_the_end_of_the_file_are_zeros() {
    for kind in KINDS {
        let (device, cmb) = on_memory(kind, MIB);
        device.write_at(0, &[9; 16384]).expect("write");
        let window = cmb.open_window(spec(0, 16384, 5000)).expect("window");
        let grant = File::from(window.grant_fd(true).expect("grant"));
        let mut seen = vec![0; 16384];
        grant.read_exact_at(&mut seen, 0).expect("read");
        assert!(seen[..5000].iter().all(|b| *b == 9) && seen[5000..].iter().all(|b| *b == 0));
        window.set_writable();
        grant.write_all_at(&[7; 8000], 4000).expect("store");
        // The filesystem writes ahead of the end it is about to move: that must stay.
        cmb.write_at(8192, &[4; 4096]).expect("write");
        window.set_valid_length(10_000);
        window.cut();
        window.write_back().expect("write back");
        let mut got = vec![0; 16384];
        device.read_at(0, &mut got).expect("read");
        assert!(got[4000..5000].iter().all(|b| *b == 7));
        assert!(got[5000..8192].iter().all(|b| *b == 0), "a peer's leftovers became file content");
        assert!(got[8192..10_000].iter().all(|b| *b == 4), "the extension was lost");
        assert!(got[12_288..].iter().all(|b| *b == 0));
    }
}

#[test]
fn a_window_that_ends_in_the_middle_of_an_extension_keeps_what_was_written() {
    for kind in KINDS {
        let (device, cmb) = on_memory(kind, MIB);
        let window = cmb.open_window(spec(0, 16384, 5000)).expect("window");
        window.set_writable();
        let grant = File::from(window.grant_fd(true).expect("grant"));
        grant.write_all_at(&[7; 8000], 5000).expect("a peer's store behind the end");
        // The filesystem writes first and moves the end afterwards: a revocation may come in between.
        cmb.write_at(4096, &[4; 4096]).expect("write");
        window.flush().expect("flush");
        window.cut();
        window.write_back().expect("write back");
        let mut got = vec![0; 16384];
        device.read_at(0, &mut got).expect("read");
        assert!(got[4096..8192].iter().all(|b| *b == 4), "the extension was lost");
        assert!(got[8192..].iter().all(|b| *b == 0), "a peer's leftovers stayed");
    }
}

#[test]
fn a_grant_is_refused_after_the_cut() {
    for kind in KINDS {
        let (_device, cmb) = on_memory(kind, MIB);
        let window = cmb.open_window(spec(0, MIB, MIB)).expect("window");
        let grant = File::from(window.grant_fd(false).expect("grant"));
        window.cut();
        assert_eq!(grant.metadata().expect("stat").len(), 0);
        assert!(window.grant_fd(false).is_err());
    }
}

/// Bytes of memory that the kernel has given to this memory file of ours.
fn resident_bytes(size: u64) -> u64 {
    let descriptors = fs::read_dir("/proc/self/fd").expect("procfs");
    let files = descriptors.filter_map(|entry| fs::metadata(entry.ok()?.path()).ok());
    files.filter(|file| file.len() == size).map(|file| file.blocks() * 512).max().unwrap_or(0)
}

#[test]
fn an_identity_window_is_the_only_home_of_its_blocks_until_the_cut() {
    // A size that no other test uses names the device's file.
    let size = 5 * MIB + 4096;
    let (device, memory) = on_memory(ApertureKind::Identity, size);
    memory.write_at(0, &vec![9; size as usize]).expect("write");
    let info = Aperture::info(&memory);
    assert_eq!((info.kind, info.capacity_bytes, info.used_bytes), (ApertureKind::Identity, size, 0));
    assert_eq!(resident_bytes(size), size);
    let window = memory.open_window(spec(MIB, 2 * MIB, 2 * MIB)).expect("window");
    assert_eq!(resident_bytes(size), size - 2 * MIB, "the old home was given up");
    assert_eq!(Aperture::info(&memory).used_bytes, 2 * MIB);
    memory.write_at(MIB, &[6; 4096]).expect("write");
    window.flush().expect("nothing to do");
    assert_eq!(resident_bytes(size), size - 2 * MIB, "nothing is written through");
    let mut got = vec![0; 3 * MIB as usize];
    memory.read_at(0, &mut got).expect("read");
    assert!(got[..MIB as usize].iter().chain(&got[MIB as usize + 4096..]).all(|b| *b == 9));
    assert!(got[MIB as usize..][..4096].iter().all(|b| *b == 6));
    window.cut();
    window.write_back().expect("relocation");
    assert_eq!((resident_bytes(size), Aperture::info(&memory).used_bytes), (size, 0));
    let mut relocated = vec![0; 3 * MIB as usize];
    device.read_at(0, &mut relocated).expect("read");
    assert!(relocated == got);
}

#[test]
fn reads_racing_with_identity_windows_never_see_the_home_that_was_given_up() {
    let (_device, memory) = on_memory(ApertureKind::Identity, 4 * MIB);
    memory.write_at(0, &[7; 65536]).expect("write");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut got = vec![0; 65536];
                while !done.load(Ordering::Relaxed) {
                    memory.read_at(0, &mut got).expect("read");
                    assert!(got.iter().all(|b| *b == 7), "a read saw punched memory");
                }
            });
        }
        for _ in 0..300 {
            let window = memory.open_window(spec(0, 65536, 65536)).expect("window");
            window.cut();
            window.write_back().expect("relocation");
        }
        done.store(true, Ordering::Relaxed);
    });
}
