//! A volume in mapped memory on a real mount. What is mapped is an ordinary file (`nodax`): persistent memory is
//! hardware, but for the flushes of the processor's caches everything else is the same.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Output};

use peerfs_client::{File, ImporterSpec, MapFlags, Reason, Session};
use peerfs_sys::AlignedBuf;
use peerfs_tests::{Media, ScratchMount, peerfs};

const MIB: usize = 1 << 20;

fn mount(options: &[&str]) -> ScratchMount {
    ScratchMount::on(Media::Mapped, "64M", options).expect("a mount")
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 249) as u8).collect()
}

/// Writes a file and makes it durable.
fn written(path: &Path, bytes: &[u8]) {
    let file = fs::File::create(path).expect("create");
    file.write_all_at(bytes, 0).expect("write");
    file.sync_all().expect("fsync");
}

fn open(path: &Path) -> File {
    File::open_with(path, OpenOptions::new().read(true).write(true)).expect("open")
}

fn told(arguments: &[&str]) -> Output {
    Command::new(peerfs()).args(arguments).output().expect("peerfs")
}

#[test]
fn files_survive_remounts_and_crashes() {
    let mut mount = mount(&[]);
    let bytes = content(5 * MIB + 77);
    written(&mount.join("file"), &bytes);
    mount.umount().expect("umount");
    mount.fsck().expect("fsck");
    mount.mount(&[]).expect("mount");
    assert!(fs::read(mount.join("file")).expect("read") == bytes);
    written(&mount.join("synced"), &bytes);
    mount.crash().expect("crash");
    mount.fsck().expect("fsck after a crash");
    mount.mount(&["-o", "ro"]).expect("mount read-only");
    assert!(fs::read(mount.join("synced")).expect("read") == bytes);
    assert!(fs::write(mount.join("file"), "x").is_err());
    mount.umount().expect("umount");
    let volume = told(&["info", "--json", &mount.device()]);
    let volume: serde_json::Value = serde_json::from_slice(&volume.stdout).expect("JSON");
    assert_eq!(volume["device"], mount.device().as_str());
}

#[test]
fn clients_fall_back_and_are_told_why() {
    let mount = mount(&[]);
    let aperture = &mount.info().expect("info")["aperture"];
    assert_eq!((&aperture["name"], &aperture["kind"]), (&"persistent memory".into(), &"identity".into()));
    assert_eq!((&aperture["path"], &aperture["grantable"]), (&"direct-window".into(), &false.into()));
    assert_eq!(aperture["capacity_bytes"], 64 * MIB);
    let bytes = content(MIB);
    let path = mount.join("file");
    written(&path, &bytes);
    let (file, session) = (open(&path), Session::open(mount.path(), ImporterSpec::cpu()).expect("a session"));
    for flags in [MapFlags::empty(), MapFlags::WRITE, MapFlags::PIN] {
        let mapping = session.map(&file, .., flags).expect("map");
        let reasons: Vec<_> = mapping.segments().iter().map(|segment| segment.reason).collect();
        assert_eq!(reasons, [Some(Reason::NoGrantObject)], "{flags:?}");
        let mut read = vec![0; MIB];
        let moved = mapping.read_at(0, &mut read).expect("read");
        assert!(read == bytes && moved.direct() == 0 && moved.fallback == MIB as u64);
    }
    let query = told(&["query", path.to_str().expect("UTF-8")]);
    let query = String::from_utf8(query.stdout).expect("text");
    assert!(query.contains("NoGrantObject") && query.contains("--cmb SIZE"), "{query}");
    let info = told(&["info", mount.path().to_str().expect("UTF-8")]);
    let info = String::from_utf8(info.stdout).expect("text");
    assert!(info.contains("persistent memory, identity, direct-window, 0 B of 64.0 MiB used"), "{info}");
    assert_eq!(mount.info().expect("info")["windows"], 0, "nothing was opened on the way");
}

#[test]
fn a_software_cmb_over_it_serves_clients() {
    let options = ["--cmb", "16M"];
    let mut mount = mount(&options);
    let mut bytes = content(3 * MIB + 100);
    let path = mount.join("file");
    written(&path, &bytes);
    let (file, session) = (open(&path), Session::open(mount.path(), ImporterSpec::cpu()).expect("a session"));
    let mapping = session.map(&file, .., MapFlags::WRITE).expect("map");
    let mut read = vec![0; bytes.len()];
    let moved = mapping.read_at(0, &mut read).expect("read");
    assert!(read == bytes && moved.direct_window == bytes.len() as u64, "{moved:?}");
    bytes[MIB..MIB + 5000].fill(3);
    let moved = mapping.write_at(MIB as u64, &bytes[MIB..MIB + 5000]).expect("write");
    assert_eq!(moved.direct_window, 5000);
    fs::File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    drop((mapping, session, file));
    mount.crash().expect("crash");
    mount.fsck().expect("fsck");
    mount.mount(&options).expect("mount");
    assert!(fs::read(mount.join("file")).expect("read") == bytes, "what the importer stored was synced");
}

#[test]
fn without_dax_only_who_asks_gets_it() {
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").expect("a folder");
    let path = folder.path().join("volume");
    let device = format!("pmem:{}", path.display());
    let refused = told(&["mkfs", &device, "--size", "16M"]);
    let line = String::from_utf8(refused.stderr).expect("text");
    assert!(!refused.status.success() && line.lines().count() == 1, "{line}");
    assert!(line.contains("not on a DAX filesystem") && line.contains(",nodax") && line.contains("image:"), "{line}");
    assert!(!path.exists(), "the file it made is gone again");
    let made = told(&["mkfs", &format!("{device},nodax"), "--size", "16M"]);
    assert!(made.status.success(), "{made:?}");
    assert!(!told(&["fsck", &device]).status.success());
    assert!(told(&["fsck", &format!("{device},nodax")]).status.success());
}

#[test]
fn a_file_truncated_under_the_mount_is_eio_and_no_crash() {
    for options in [&[][..], &["--cmb", "16M"]] {
        let mut mount = mount(options);
        let server = mount.server_pid().expect("a server");
        let path = mount.join("file");
        written(&path, &content(40 * MIB));
        let volume = fs::File::options().write(true).open(mount.image()).expect("open");
        volume.set_len(32 << 20).expect("truncate");
        let direct = fs::File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).expect("open");
        let mut buffer = AlignedBuf::zeroed(MIB);
        let read = (0..40).find_map(|mib| direct.read_exact_at(&mut buffer, mib * MIB as u64).err());
        assert_eq!(read.expect("half of the volume is gone").raw_os_error(), Some(libc::EIO));
        let written = (0..40).find_map(|mib| direct.write_all_at(&buffer, mib * MIB as u64).err());
        assert_eq!(written.expect("half of the volume is gone").raw_os_error(), Some(libc::EIO));
        drop(direct);
        assert!(mount.alive() && mount.server_pid().expect("a server") == server);
        let table = open(&path).query(.., MapFlags::empty(), "cpu").expect("query");
        assert!(table.refusals().iter().any(|refused| refused.0 == Reason::MediaError), "{:?}", table.refusals());
        volume.set_len(64 << 20).expect("restore");
        mount.umount().expect("the metadata was not touched");
        mount.fsck().expect("fsck");
    }
}
