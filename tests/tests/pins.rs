//! Pins on a real mount: who keeps one alive, what the CPU may do meanwhile, and
//! what becomes of the file below it.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use peerfs_client::{ImporterFlags, ImporterSpec, MapFlags, Mapping, PinKind, Reason, Session};
use peerfs_sys::{FileView, Sharing, Window, receive_with_fd};
use peerfs_tests::ScratchMount;

const SIZE: u64 = 1 << 20;
const OLD: u8 = 0x11;
const PATIENCE: Duration = Duration::from_secs(30);

/// A mount with one file, and an importer that cannot be revoked. Dropped in this order.
struct Scene {
    session: Session,
    file: peerfs_client::File,
    path: PathBuf,
    mount: ScratchMount,
}

impl Scene {
    fn new(options: &[&str]) -> Scene {
        let mount = ScratchMount::new("64M", &[&["--cmb", "16M"], options].concat()).expect("a mount");
        let path = mount.join("file");
        std::fs::write(&path, vec![OLD; SIZE as usize]).expect("a file");
        let file = peerfs_client::File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
        let rigid = ImporterSpec { flags: ImporterFlags::WRITE, ..ImporterSpec::cpu() };
        let session = Session::open(mount.path(), rigid).expect("a session");
        Scene { session, file, path, mount }
    }

    fn pin(&self, flags: MapFlags) -> Mapping {
        self.pin_of(&self.file, flags)
    }

    /// The kernel tells the server of a closed handle some time after close(2): until then it counts as a writer.
    fn pin_of(&self, file: &peerfs_client::File, flags: MapFlags) -> Mapping {
        let start = Instant::now();
        let mapping = loop {
            let mapping = self.session.map(file, .., flags | MapFlags::PIN).expect("map");
            let refused = mapping.segments().iter().any(|segment| segment.reason == Some(Reason::CpuWriter));
            if !refused || start.elapsed() > PATIENCE {
                break mapping;
            }
        };
        assert!(mapping.segments().iter().all(|segment| segment.reason.is_none()), "{:?}", mapping.segments());
        assert!(mapping.segments().iter().all(|segment| segment.pin.is_some()), "{:?}", mapping.segments());
        mapping
    }

    /// A descriptor that outlives mapping and session.
    fn take(&self, flags: MapFlags) -> OwnedFd {
        let mapping = self.pin(flags);
        let fd = mapping.pins()[0].fd.try_clone_to_owned().expect("dup");
        drop(mapping);
        fd
    }

    fn pins(&self) -> u64 {
        self.mount.info().expect("info")["pins"].as_u64().expect("a number")
    }

    fn await_pins(&self, count: u64) {
        let start = Instant::now();
        while self.pins() != count {
            assert!(start.elapsed() < PATIENCE, "{} pins instead of {count}", self.pins());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the server has looked for pins without holders at least once: it ended another one meanwhile.
    fn assert_alive(&self) {
        let path = self.mount.join("other");
        std::fs::write(&path, [0; 4096]).expect("another file");
        let other = peerfs_client::File::open(&path).expect("open");
        let before = self.pins();
        let mapping = self.pin_of(&other, MapFlags::empty());
        let held = mapping.pins()[0].fd.try_clone_to_owned().expect("dup");
        drop(mapping);
        assert_eq!(self.pins(), before + 1);
        drop(held);
        self.await_pins(before);
    }

    fn free_bytes(&self) -> u64 {
        // What is freed comes back with the next commit.
        File::open(self.mount.path()).expect("root").sync_all().expect("fsync");
        self.mount.info().expect("info")["volume"]["free_bytes"].as_u64().expect("a number")
    }
}

fn bytes(window: &Window, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    window.read(offset, &mut bytes).expect("the pin is there");
    bytes
}

fn map(fd: &OwnedFd, writable: bool) -> Window {
    Window::map(fd, SIZE as usize, writable).expect("mmap")
}

#[test]
fn a_pin_lives_as_long_as_any_holder() {
    let scene = Scene::new(&[]);
    // Before anybody holds it, beyond its mapping: here the library holds it, and lets go with the mapping.
    let mapping = scene.pin(MapFlags::empty());
    assert!(peerfs_sys::has_udmabuf() || mapping.pins()[0].kind == PinKind::Memfd);
    assert_eq!(scene.pins(), 1);
    drop(mapping);
    scene.await_pins(0);

    // Every descriptor closed, one mapping kept.
    let fd = scene.take(MapFlags::empty());
    let window = map(&fd, false);
    drop(fd);
    scene.assert_alive();
    assert_eq!(bytes(&window, 0, 4096), vec![OLD; 4096]);
    drop(window);
    scene.await_pins(0);

    // On its way over a socket, with nobody at either end who has it open.
    let (sender, receiver) = UnixStream::pair().expect("sockets");
    let fd = scene.take(MapFlags::empty());
    let raw = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).expect("send");
    drop(fd);
    scene.assert_alive();
    let (_, passed) = receive_with_fd(&receiver, &mut [0; 1]).expect("receive");
    assert_eq!(bytes(&map(&passed.expect("a descriptor"), false), 0, 1), [OLD]);
    scene.await_pins(0);
}

#[test]
fn a_pin_survives_fork_and_exec_and_ends_with_a_kill() {
    let scene = Scene::new(&[]);
    // Another program has it as its standard output.
    let fd = scene.take(MapFlags::empty());
    let mut holder = Command::new("sleep").arg("1000").stdout(Stdio::from(fd)).spawn().expect("sleep");
    scene.assert_alive();
    holder.kill().expect("kill");
    holder.wait().expect("wait");
    scene.await_pins(0);

    // A shell forks a copy of itself that executes nothing, and is killed.
    let fd = scene.take(MapFlags::empty());
    let mut shell = Command::new("sh")
        .args(["-c", "exec 3<&0; (read line <&3; read line <&3) & echo ready >&2; wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::from(fd))
        .stderr(Stdio::piped())
        .spawn()
        .expect("sh");
    let end = shell.stdin.take();
    let mut ready = [0; 6];
    std::io::Read::read_exact(shell.stderr.as_mut().expect("piped"), &mut ready).expect("the child is there");
    shell.kill().expect("kill");
    shell.wait().expect("wait");
    scene.assert_alive();
    drop(end);
    scene.await_pins(0);
}

#[test]
fn quotas_are_seen_and_kept() {
    let scene = Scene::new(&["-o", "pin_quota=512K"]);
    let info = scene.mount.info().expect("info");
    assert_eq!((&info["pin_quota_bytes"], &info["pinned_bytes"]), (&(512 << 10).into(), &0.into()));
    let mapping = scene.session.map(&scene.file, .., MapFlags::PIN).expect("map");
    let shape: Vec<_> = mapping.segments().iter().map(|segment| (segment.length, segment.reason)).collect();
    assert_eq!(shape, [(512 << 10, None), (512 << 10, Some(Reason::PinQuota))]);
    assert_eq!(scene.mount.info().expect("info")["pinned_bytes"], 512 << 10);
    let mut all = vec![0; SIZE as usize];
    mapping.read_at(0, &mut all).expect("the rest by fallback");
    assert!(all.iter().all(|byte| *byte == OLD));
    drop(mapping);
    scene.await_pins(0);
    let without = scene.session.map(&scene.file, .., MapFlags::empty()).expect("map");
    assert_eq!(without.segments()[0].reason, Some(Reason::NotifierRequired));
}

#[test]
fn the_page_cache_keeps_away_from_a_pin_that_is_written() {
    let scene = Scene::new(&[]);
    let reader = File::open(&scene.path).expect("open");
    let refused = scene.session.map(&scene.file, .., MapFlags::PIN | MapFlags::WRITE).expect("map");
    assert_eq!(refused.segments()[0].reason, Some(Reason::CpuWriter));
    drop((refused, reader));
    let start = Instant::now();
    // The kernel tells of the close a moment later.
    let fd = loop {
        let mapping = scene.session.map(&scene.file, .., MapFlags::PIN | MapFlags::WRITE).expect("map");
        if let [pin] = mapping.pins()[..] {
            break pin.fd.try_clone_to_owned().expect("dup");
        }
        assert!(start.elapsed() < PATIENCE, "{:?}", mapping.segments());
    };
    let window = map(&fd, true);
    let cpu = OpenOptions::new().read(true).write(true).open(&scene.path).expect("open");
    assert!(FileView::map(&cpu, SIZE as usize, Sharing::Shared, false).is_err(), "shared mmap beside a pin that writes");
    // Both see each other at once.
    window.write(0, &[0x22; 4096]).expect("store");
    let mut seen = [0; 4096];
    cpu.read_exact_at(&mut seen, 0).expect("read");
    assert_eq!(seen, [0x22; 4096]);
    cpu.write_all_at(&[0x33; 4096], 8192).expect("write");
    assert_eq!(bytes(&window, 8192, 4096), vec![0x33; 4096]);
    window.write(4096, &[0x44; 4096]).expect("store");
    drop((window, fd));
    scene.await_pins(0);
    drop(cpu);
    let content = std::fs::read(&scene.path).expect("read");
    assert_eq!((content[0], content[4096], content[8192], content[12288]), (0x22, 0x44, 0x33, OLD));
}

#[test]
fn a_file_changes_below_a_pin_at_once_and_nobody_sees_anothers_bytes() {
    let scene = Scene::new(&[]);
    let fd = scene.take(MapFlags::empty());
    let window = map(&fd, false);
    let before = scene.free_bytes();
    let cpu = OpenOptions::new().read(true).write(true).open(&scene.path).expect("open");
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&cpu, hole, 0, 65536).expect("punch");
    cpu.set_len(SIZE / 2).expect("truncate");
    cpu.set_len(SIZE).expect("extend");
    cpu.write_all_at(&[0x55; 65536], SIZE - 65536).expect("write");
    cpu.write_all_at(&[0x66; 65536], 0).expect("fill the hole");
    // What the file gave up is nobody's meanwhile.
    std::fs::write(scene.mount.join("greedy"), vec![0x77; 32 << 20]).expect("a large file");
    cpu.sync_all().expect("fsync");
    let pinned = bytes(&window, 0, SIZE as usize);
    let kept = |range: std::ops::Range<u64>| pinned[range.start as usize..range.end as usize].iter().all(|byte| *byte == OLD);
    assert!(kept(0..65536) && kept(SIZE / 2..SIZE), "the pin keeps what the file gave up");
    assert!(kept(65536..SIZE / 2));
    let content = std::fs::read(&scene.path).expect("read");
    assert!(content[..65536].iter().all(|byte| *byte == 0x66));
    assert!(content[65536..(SIZE / 2) as usize].iter().all(|byte| *byte == OLD));
    assert!(content[(SIZE / 2) as usize..(SIZE - 65536) as usize].iter().all(|byte| *byte == 0));
    assert!(content[(SIZE - 65536) as usize..].iter().all(|byte| *byte == 0x55));

    // Unlinked, it is gone for everybody but the pin; its space comes back with the pin's end.
    drop(cpu);
    std::fs::remove_file(scene.mount.join("greedy")).expect("unlink");
    std::fs::remove_file(&scene.path).expect("unlink");
    assert_eq!(bytes(&window, 131072, 4096), vec![OLD; 4096]);
    drop((window, fd));
    scene.await_pins(0);
    let Scene { session, file, mount, .. } = scene;
    drop((session, file));
    let start = Instant::now();
    let free = || {
        File::open(mount.path()).expect("root").sync_all().expect("fsync");
        mount.info().expect("info")["volume"]["free_bytes"].as_u64().expect("a number")
    };
    while free() < before + SIZE - 65536 {
        assert!(start.elapsed() < PATIENCE, "{} of {} bytes came back", free(), before + SIZE);
        thread::sleep(Duration::from_millis(20));
    }
    let mut mount = mount;
    mount.umount().expect("umount");
    mount.fsck().expect("nothing is lost or owned twice");
}

#[test]
fn an_administrator_cuts_a_pin() {
    let scene = Scene::new(&[]);
    let fd = scene.take(MapFlags::WRITE);
    let window = map(&fd, true);
    window.write(0, &[0x22; 4096]).expect("store");
    let revoked = scene.file.revoke(..).expect("revoke");
    assert_eq!((revoked.pins_cut, scene.pins()), (0, 1), "not without being asked to");
    let revoked = scene.file.revoke_pins(..).expect("revoke");
    assert_eq!((revoked.pins_cut, revoked.pins_detached, scene.pins()), (1, 0, 0));
    assert!(window.read(0, &mut [0; 1]).is_err() && window.write(0, &[1]).is_err());
    let mut seen = [0; 4096];
    scene.file.read_at(0, &mut seen).expect("read");
    assert_eq!(seen, [0x22; 4096], "its last store is the file's");
}

#[test]
fn a_hostile_holder_hurts_nobody() {
    let scene = Scene::new(&[]);
    let fd = scene.take(MapFlags::WRITE);
    let window = map(&fd, true);
    let held = File::from(fd);
    assert!(held.set_len(0).is_err() && held.set_len(2 * SIZE).is_err());
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    assert!(fallocate(&held, hole, 0, 4096).is_err());
    let seal = nix::fcntl::FcntlArg::F_ADD_SEALS(nix::fcntl::SealFlag::F_SEAL_SHRINK);
    assert!(nix::fcntl::fcntl(held.as_fd(), seal).is_err());
    let again = format!("/proc/self/fd/{}", held.as_raw_fd());
    assert!(File::open(&again).is_err() && OpenOptions::new().write(true).open(&again).is_err(), "reopened");
    assert_eq!(bytes(&window, 0, 4096), vec![OLD; 4096]);
    drop((window, held));
    scene.await_pins(0);
    assert_eq!(std::fs::read(&scene.path).expect("read"), vec![OLD; SIZE as usize]);
}

#[test]
fn a_crash_cuts_pins_and_the_next_mount_frees_their_blocks() {
    let mut scene = Scene::new(&[]);
    let before = scene.free_bytes();
    let fd = scene.take(MapFlags::empty());
    let window = map(&fd, false);
    let truncated = File::options().write(true).open(&scene.path).expect("open");
    truncated.set_len(0).expect("truncate");
    truncated.sync_all().expect("fsync");
    drop(truncated);
    assert_eq!(scene.free_bytes(), before, "quarantined, not free");
    assert_eq!(bytes(&window, 0, 1), [OLD]);
    scene.mount.crash().expect("crash");
    let start = Instant::now();
    while window.read(0, &mut [0; 1]).is_ok() {
        assert!(start.elapsed() < PATIENCE, "the guardian does not cut");
        thread::sleep(Duration::from_millis(5));
    }
    drop((window, fd));
    scene.mount.mount(&["--cmb", "16M"]).expect("mount");
    let start = Instant::now();
    while scene.free_bytes() < before + SIZE {
        assert!(start.elapsed() < PATIENCE, "{} free, {before} before", scene.free_bytes());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(scene.pins(), 0);
}
