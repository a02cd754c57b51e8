//! The commands on a real mount. They need /dev/fuse and the right to mount,
//! and fail where there is none: an untested mount is no tested mount.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Scratch, fail, peerfs, succeed};
use nix::sys::statvfs::FsFlags;
use serde_json::Value;

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(arguments)).expect("JSON")
}

/// A volume of 64 MiB, mounted with these arguments.
fn mounted(arguments: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    succeed(&["mkfs", &scratch.text("v.img"), "--size", "64M"]);
    mount(&scratch, arguments);
    scratch
}

fn mount(scratch: &Scratch, arguments: &[&str]) {
    let (image, mnt) = (scratch.text("v.img"), scratch.mnt());
    succeed(&[&["mount", image.as_str(), mnt.as_str()], arguments].concat());
}

/// Bytes that differ everywhere.
fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}

fn write(scratch: &Scratch, name: &str, bytes: &[u8]) -> String {
    let mut file = File::create(scratch.join(name)).expect("the mount takes files");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("room");
    scratch.text(name)
}

fn server_pid(scratch: &Scratch) -> u32 {
    json(&["info", &scratch.mnt(), "--json"])["server_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process")
}

#[test]
fn files_survive_a_remount() {
    let scratch = mounted(&[]);
    let bytes = content(3 << 20);
    write(&scratch, "mnt/file", &bytes);
    let pid = server_pid(&scratch);
    succeed(&["umount", &scratch.mnt()]);
    assert!(
        !fs::exists(format!("/proc/{pid}")).is_ok_and(|exists| exists && !is_zombie(pid)),
        "umount returned before the server ended"
    );
    assert!(succeed(&["fsck", &scratch.text("v.img")]).contains("clean"));
    mount(&scratch, &["-o", "ro,noatime,nodev,fsname=name,deadline_ms=50"]);
    assert_eq!(fs::read(scratch.join("mnt/file")).expect("synced"), bytes);
    assert!(File::create(scratch.join("mnt/other")).is_err(), "mounted read-only");
    let info = json(&["info", &scratch.mnt(), "--json"]);
    assert_eq!((&info["read_only"], &info["deadline_ms"]), (&Value::Bool(true), &Value::from(50)));
    let table = fs::read_to_string("/proc/self/mountinfo").expect("procfs");
    assert!(table.lines().any(|line| line.contains(&scratch.mnt()) && line.contains(" name ro")), "{table}");
    succeed(&["umount", &scratch.mnt()]);
}

/// Its parent may be slow to collect it where there is no proper init.
fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn mounting_lets_go_of_the_callers_pipes() {
    let scratch = Scratch::new();
    // `succeed` reads stdout and stderr to their end: it would wait for the server otherwise.
    succeed(&["mount", "mem:32M", &scratch.mnt()]);
    assert_eq!(json(&["info", &scratch.mnt(), "--json"])["device"]["backend"], "mem");
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn memory_is_an_aperture_by_itself() {
    let scratch = Scratch::new();
    succeed(&["mount", "mem:64M", &scratch.mnt()]);
    let aperture = || json(&["info", &scratch.mnt(), "--json"])["aperture"].clone();
    assert_eq!((&aperture()["kind"], &aperture()["capacity_bytes"]), (&Value::from("identity"), &Value::from(64 << 20)));
    let bytes = content((9 << 20) + 5000);
    let file = write(&scratch, "mnt/file", &bytes);
    for _ in 0..2 {
        let mapped = json(&["map", &file, "--json", "--checksum"]);
        assert_eq!((&mapped["bytes_direct"], &mapped["bytes_fallback"]), (&Value::from(bytes.len()), &Value::from(0)));
        assert_eq!(mapped["crc32c"], format!("{:08x}", crc32c::crc32c(&bytes)));
        assert_eq!(fs::read(&file).expect("read"), bytes);
    }
    assert_eq!(aperture()["used_bytes"], 0, "every block moved back to memory of the device");
    succeed(&["umount", &scratch.mnt()]);

    succeed(&["mount", "mem:64M", &scratch.mnt(), "--cmb", "8M"]);
    assert_eq!((&aperture()["kind"], &aperture()["capacity_bytes"]), (&Value::from("windowed"), &Value::from(8 << 20)));
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn query_and_map_agree() {
    let scratch = mounted(&["--cmb", "16M"]);
    let bytes = content(4 << 20);
    let file = write(&scratch, "mnt/file", &bytes);
    let sparse = scratch.text("mnt/sparse");
    File::create(&sparse).and_then(|file| file.write_all_at(&bytes[..8192], 1 << 20)).expect("room");

    let asked = json(&["query", &file, "--json"]);
    assert_eq!((&asked["bytes_direct"], &asked["bytes_fallback"]), (&Value::from(4 << 20), &Value::from(0)));
    assert!(asked["revocable_by"].as_array().is_some_and(|triggers| triggers.len() > 3));
    let mapped = json(&["map", &file, "--json", "--checksum", "--repeat", "3"]);
    assert_eq!(mapped["bytes_direct"], asked["bytes_direct"].as_u64().map(|bytes| bytes * 4).into_iter().sum::<u64>());
    assert_eq!(mapped["crc32c"], format!("{:08x}", crc32c::crc32c(&bytes)));
    for rate in ["memcpy", "mapped", "read"] {
        assert!(mapped["rates"][rate].as_f64().is_some_and(|rate| rate > 0.0), "{mapped}");
    }

    let asked = json(&["query", &sparse, "--json"]);
    assert_eq!(asked["refusals"][0]["reason"], "Hole");
    assert_eq!((&asked["bytes_direct"], &asked["bytes_fallback"]), (&Value::from(8192), &Value::from(1 << 20)));
    let mapped = json(&["map", &sparse, "--json"]);
    assert_eq!((&mapped["bytes_direct"], &mapped["bytes_fallback"]), (&Value::from(8192), &Value::from(1 << 20)));
    assert!(succeed(&["query", &sparse]).contains("write the range first"));
    assert!(succeed(&["map", &sparse]).contains("Hole"));
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn every_kind_of_file_gets_an_answer() {
    let scratch = mounted(&["-o", "pin_quota=2M"]);
    fs::create_dir(scratch.join("mnt/directory")).expect("room");
    nix::unistd::mkfifo(&scratch.join("mnt/fifo"), nix::sys::stat::Mode::S_IRUSR).expect("room");
    drop(UnixListener::bind(scratch.join("mnt/socket")).expect("room"));
    for name in ["directory", "fifo", "socket"] {
        let answer = json(&["query", &scratch.text(&format!("mnt/{name}")), "--json"]);
        assert_eq!(answer["refusals"][0]["reason"], "NotRegularFile", "{name}");
        assert_eq!(answer["bytes_direct"], 0, "{name}");
    }
    let empty = write(&scratch, "mnt/empty", b"");
    assert_eq!(json(&["query", &empty, "--json"])["refusals"][0]["reason"], "BeyondEof");
    assert_eq!(json(&["map", &empty, "--json"])["bytes_read"], 0);
    let file = write(&scratch, "mnt/file", &content(8192));
    let reason =
        |arguments: &[&str]| json(&[&["query", file.as_str(), "--json"], arguments].concat())["refusals"][0]["reason"].clone();
    assert_eq!(reason(&["--importer", "static"]), "NotifierRequired");
    assert_eq!(reason(&["--importer", "readonly", "--write"]), "WriteForbidden");
    assert_eq!(reason(&["--pin"]), Value::Null);
    assert_eq!(reason(&["--pin", "--importer", "static"]), Value::Null);
    let large = write(&scratch, "mnt/large", &content(4 << 20));
    assert_eq!(json(&["query", &large, "--json", "--pin"])["refusals"][0]["reason"], "PinQuota");
    assert_eq!(reason(&["--atomic"]), Value::Null);
    assert_eq!(reason(&["--atomic", "--importer", "nonatomic"]), "AtomicUnsupported");
    assert_eq!(reason(&["--offset", "1"]), "Misaligned");
    assert_eq!(reason(&["--offset", "1M"]), "BeyondEof");
    fail(1, &["query", &file, "--importer", "nonsense"]);
    fail(1, &["map", &file, "--importer", "nonsense"]);
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_file_is_mapped_at_one_address_for_processor_and_device() {
    let scratch = mounted(&[]);
    let file = write(&scratch, "mnt/file", &content(3 << 20));
    let answer = &json(&["map", &file, "--va-bits", "40", "--json"])["same_address"];
    assert_eq!((answer["bytes_equal"].as_u64(), answer["va_bits"].as_u64()), (Some(3 << 20), Some(40)), "{answer}");
    let address = answer["address"].as_u64().expect("an address");
    assert!(address > 0 && address + (3 << 20) <= 1 << 40, "{address:#x}");
    assert!(answer["bytes_direct"].as_u64() > Some(0));
    fail(2, &["map", &file, "--va-bits", "12"]);
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_held_mapping_is_listed_and_revoked() {
    let scratch = mounted(&[]);
    let file = write(&scratch, "mnt/file", &content(2 << 20));
    let mut holder = Command::new(env!("CARGO_BIN_EXE_peerfs"))
        .args(["map", &file, "--hold", "60"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary under test starts");
    let mut lines = BufReader::new(holder.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("mapping ")));
    let ledger = json(&["mappings", &scratch.mnt(), "--json"]);
    assert_eq!(ledger["mappings"][0]["pid"], holder.id());
    assert!(succeed(&["mappings", &scratch.mnt()]).contains("cpu"));
    assert!(succeed(&["importers", &scratch.mnt()]).contains("cpu"));
    let revoked = json(&["revoke", &file, "--json"]);
    assert_eq!((&revoked["grants"], &revoked["enforced"]), (&Value::from(1), &Value::from(0)));
    assert!(lines.any(|line| line.starts_with("revoked: ")));
    assert_eq!(json(&["revoke", "--all", &scratch.mnt(), "--json"])["grants"], 0);
    assert!(succeed(&["info", &scratch.mnt()]).contains("Administrator"));

    // The holder keeps the mount busy.
    let said = fail(1, &["umount", &scratch.mnt()]);
    assert!(said.contains("busy") && said.contains("--force"), "{said}");
    assert!(succeed(&["umount", "--force", &scratch.mnt()]).contains("detached"));
    holder.kill().and_then(|()| holder.wait()).expect("our own child");
    // The volume is free as soon as the server has closed it.
    mount(&scratch, &[]);
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_hung_holder_is_cut_at_the_deadline() {
    let scratch = mounted(&["-o", "deadline_ms=100"]);
    let file = write(&scratch, "mnt/file", &content(2 << 20));
    let mut holder = Command::new(env!("CARGO_BIN_EXE_peerfs"))
        .args(["map", &file, "--hold", "60", "--hung"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary under test starts");
    let mut lines = BufReader::new(holder.stdout.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("mapping ")));
    let start = Instant::now();
    let revoked = json(&["revoke", &file, "--json"]);
    assert_eq!((&revoked["grants"], &revoked["enforced"]), (&Value::from(1), &Value::from(1)));
    assert!(revoked["latency_us"].as_u64().is_some_and(|latency| latency >= 100_000), "{revoked}");
    assert!(start.elapsed() < Duration::from_secs(10));
    holder.kill().and_then(|()| holder.wait()).expect("our own child");
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_volume_in_use_is_refused_by_every_name() {
    let scratch = mounted(&[]);
    let (image, other) = (scratch.text("v.img"), scratch.text("other"));
    fs::create_dir(scratch.join("other")).expect("room");
    std::os::unix::fs::symlink("v.img", scratch.join("symbolic.img")).expect("room");
    fs::hard_link(scratch.join("v.img"), scratch.join("hard.img")).expect("room");
    let looped = LoopDevice::over(&scratch.join("v.img"));
    let mut names = vec![image.clone(), scratch.text("symbolic.img"), scratch.text("hard.img")];
    names.extend(looped.iter().map(|device| device.0.clone()));
    let mut refused = vec![vec!["mkfs", &image, "--force"], vec!["fsck", &image]];
    for name in &names {
        refused.push(vec!["mount", name, &other]);
        refused.push(vec!["mount", name, &other, "-o", "ro"]);
    }
    let holder = format!("in use by process {} (", server_pid(&scratch));
    let start = Instant::now();
    thread::scope(|scope| {
        for arguments in &refused {
            let (holder, mnt) = (&holder, scratch.mnt());
            scope.spawn(move || {
                let said = fail(1, arguments);
                assert!(said.contains(holder) && said.contains(&mnt), "{said}");
            });
        }
    });
    assert!(start.elapsed() < Duration::from_secs(30), "the wait is bounded");
    succeed(&["umount", &scratch.mnt()]);
    if let Some(device) = &looped {
        succeed(&["mount", &device.0, &scratch.mnt()]);
        let said = fail(1, &["mount", &image, &other]);
        assert!(said.contains("in use by process"), "the file below a loop device in use: {said}");
        succeed(&["umount", &scratch.mnt()]);
    }
    succeed(&["fsck", &image]);
}

#[test]
fn free_space_is_trimmed_when_asked() {
    let scratch = mounted(&[]);
    let allocated = || fs::metadata(scratch.join("v.img")).expect("just made").blocks() * 512;
    write(&scratch, "mnt/kept", &content(4 << 20));
    write(&scratch, "mnt/freed", &content(20 << 20));
    let before = allocated();
    fs::remove_file(scratch.join("mnt/freed")).expect("just made");
    File::open(scratch.mnt()).and_then(|root| root.sync_all()).expect("commit");
    let all = json(&["trim", &scratch.mnt(), "--json"])["bytes_discarded"].as_u64().expect("bytes");
    assert!(allocated() + (20 << 20) <= before && all >= 20 << 20, "{before} bytes became {}, of {all}", allocated());
    let nothing = json(&["trim", &scratch.mnt(), "--minimum", "1G", "--json"]);
    assert_eq!(nothing["bytes_discarded"], 0);
    assert!(succeed(&["trim", &scratch.mnt(), "--offset", "32M", "--length", "1M"]).contains(" discarded"));
    assert_eq!(fs::read(scratch.join("mnt/kept")).expect("kept"), content(4 << 20));
    let said = fail(1, &["trim", &scratch.mnt(), "--offset", "1T"]);
    assert!(said.contains("beyond the end"), "{said}");
    assert!(fail(1, &["trim", "/proc"]).contains("not on a peerfs mount"));
    succeed(&["umount", &scratch.mnt()]);
    mount(&scratch, &["-o", "ro"]);
    assert!(fail(1, &["trim", &scratch.mnt()]).contains("read-only"));
    succeed(&["umount", &scratch.mnt()]);
}

/// A loop device over a file, taken away at the end.
struct LoopDevice(String);

impl LoopDevice {
    /// `None` where none can be set up.
    fn over(file: &Path) -> Option<LoopDevice> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        if !output.status.success() {
            eprintln!("no loop device is tried, for none can be set up");
            return None;
        }
        Some(LoopDevice(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !Command::new("losetup").args(["--detach", &self.0]).status().is_ok_and(|status| status.success()) {
            eprintln!("{} stays", self.0);
        }
    }
}

#[test]
fn signals_end_a_server_in_order_even_when_it_is_busy() {
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGHUP] {
        let scratch = Scratch::new();
        let image = scratch.text("v.img");
        succeed(&["mkfs", &image, "--size", "64M"]);
        let mut server = Command::new(env!("CARGO_BIN_EXE_peerfs"))
            .args(["mount", &image, &scratch.mnt(), "--foreground"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary under test starts");
        let mut stdout = BufReader::new(server.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("piped");
        assert!(line.contains("is mounted on"), "{line}");
        let mut busy = File::create(scratch.join("mnt/open")).expect("mounted");
        busy.write_all(b"written, not synced").expect("room");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).expect("a process number"));
        nix::sys::signal::kill(pid, signal).expect("our own child");
        assert!(server.wait().expect("our own child").success());
        assert!(busy.read(&mut [0]).is_err(), "the file of an ended server answers");
        assert_eq!(json(&["info", &image, "--json"])["volume"]["clean"], true);
        mount(&scratch, &[]);
        assert_eq!(fs::read(scratch.join("mnt/open")).expect("committed at the end"), b"written, not synced");
        succeed(&["umount", &scratch.mnt()]);
    }
}

#[test]
fn signals_under_load_end_a_server_in_order() {
    let scratch = mounted(&[]);
    let server = server_pid(&scratch);
    let process = peerfs_sys::ProcessHandle::open(server).expect("our own server");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server).expect("a process number"));
    // After the mount there is no such directory.
    fs::create_dir(scratch.join("mnt/load")).expect("room");
    let acknowledged = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0_u64.. {
                if fs::write(scratch.join(&format!("mnt/load/{number}")), number.to_le_bytes()).is_err() {
                    break;
                }
                acknowledged.store(number + 1, Ordering::Release);
            }
        });
        let deadline = Instant::now() + Duration::from_secs(20);
        while acknowledged.load(Ordering::Acquire) < 100 {
            assert!(Instant::now() < deadline, "the writer writes");
            thread::yield_now();
        }
        // The second one finds the first at work.
        for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGTERM] {
            nix::sys::signal::kill(pid, signal).expect("our own server");
        }
        assert!(process.wait_exit(Duration::from_secs(30)).expect("poll"), "the server ends");
    });
    let image = scratch.text("v.img");
    assert_eq!(json(&["info", &image, "--json"])["volume"]["clean"], true);
    succeed(&["fsck", &image]);
    mount(&scratch, &[]);
    for number in 0..acknowledged.load(Ordering::Acquire) {
        let bytes = fs::read(scratch.join(&format!("mnt/load/{number}"))).expect("committed at the end");
        assert_eq!(bytes, number.to_le_bytes());
    }
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_killed_server_is_unmounted_and_mounted_again_at_once() {
    let scratch = mounted(&[]);
    let bytes = content(1 << 20);
    write(&scratch, "mnt/file", &bytes);
    let server = peerfs_sys::ProcessHandle::open(server_pid(&scratch)).expect("our own server");
    server.kill().expect("our own server");
    assert!(server.wait_exit(Duration::from_secs(10)).expect("poll"));
    assert!(fail(1, &["info", &scratch.mnt()]).contains("umount"));
    let start = Instant::now();
    succeed(&["umount", &scratch.mnt()]);
    mount(&scratch, &[]);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(fs::read(scratch.join("mnt/file")).expect("synced"), bytes);
    succeed(&["umount", &scratch.mnt()]);
    succeed(&["fsck", &scratch.text("v.img")]);
}

#[test]
fn damaged_volumes_are_refused_in_one_line() {
    let scratch = Scratch::new();
    let image = scratch.text("v.img");
    let mut state = 7_u64;
    for _ in 0..8 {
        succeed(&["mkfs", &image, "--size", "16M", "--force"]);
        let file = File::options().write(true).open(&image).expect("just made");
        for _ in 0..200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            file.write_all_at(&[(state >> 56) as u8], 8192 + (state >> 20) % (256 << 10)).expect("room");
        }
        let tried = peerfs(&["mount", &image, &scratch.mnt()]);
        match tried.code {
            Some(0) => assert!(peerfs(&["umount", "--force", &scratch.mnt()]).code.is_some()),
            Some(1) => assert_eq!(tried.stderr.lines().count(), 1, "{}", tried.stderr),
            other => panic!("{other:?}: {}", tried.stderr),
        }
    }
}

#[test]
fn the_log_gets_what_the_background_server_says() {
    let scratch = Scratch::new();
    let log = scratch.text("log");
    let output = Command::new(env!("CARGO_BIN_EXE_peerfs"))
        .args(["mount", "mem:32M", &scratch.mnt(), "--log", &log])
        .env("RUST_LOG", "info")
        .output()
        .expect("the binary under test starts");
    assert!(output.status.success());
    let server = server_pid(&scratch);
    let link = fs::read_link(format!("/proc/{server}/fd/2")).expect("our own server");
    assert_eq!(link, scratch.join("log"));
    assert_eq!(fs::read_link(format!("/proc/{server}/fd/0")).expect("our own server"), std::path::Path::new("/dev/null"));
    assert_eq!(fs::read_link(format!("/proc/{server}/cwd")).expect("our own server"), std::path::Path::new("/"));
    let other = fail(1, &["mount", "mem:32M", &scratch.mnt(), "--log", &scratch.text("no/such/log")]);
    assert!(other.contains("log"), "{other}");
    let root = File::open(scratch.mnt()).expect("mounted");
    nix::unistd::syncfs(root.as_fd()).expect("mounted");
    drop(root);
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn systemd_is_told_when_the_mount_is_usable() {
    let scratch = Scratch::new();
    let manager = UnixDatagram::bind(scratch.join("notify")).expect("room");
    manager.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let mut server = Command::new(env!("CARGO_BIN_EXE_peerfs"))
        .args(["mount", "mem:32M", &scratch.mnt(), "--foreground"])
        .env("NOTIFY_SOCKET", scratch.join("notify"))
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary under test starts");
    let hear = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).expect("a message in time");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    assert_eq!(hear().trim_end(), "READY=1");
    assert_eq!(json(&["info", &scratch.mnt(), "--json"])["device"]["backend"], "mem");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).expect("a process number"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our own child");
    assert_eq!(hear().trim_end(), "STOPPING=1");
    assert!(server.wait().expect("our own child").success());
}

#[test]
fn called_by_mount_it_answers_as_mount_does() {
    let scratch = Scratch::new();
    let helper = scratch.join("mount.fuse.peerfs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_peerfs"), &helper).expect("room");
    let image = scratch.text("v.img");
    succeed(&["mkfs", &image, "--size", "64M"]);
    let mnt = scratch.mnt();
    let call = |arguments: &[&str]| Command::new(&helper).args(arguments).output().expect("the helper starts").status.code();
    assert_eq!(call(&[&image, &mnt, "-f", "-o", "rw,noauto"]), Some(0));
    fail(1, &["info", &mnt]);
    assert_eq!(call(&[&image, &mnt, "-o", "turbo"]), Some(1));
    assert_eq!(call(&[&image, &mnt, "-N", "1"]), Some(1));
    assert_eq!(call(&[&scratch.text("missing"), &mnt]), Some(32));
    assert_eq!(call(&[&image, &mnt, "-n", "-o", "rw,cmb=8M,user=root", "-t", "fuse.peerfs"]), Some(0));
    assert_eq!(json(&["info", &mnt, "--json"])["aperture"]["capacity_bytes"], 8 << 20);
    // With what mount(8) adds from fstab and from the table of mounts.
    let file = scratch.join("mnt/file");
    std::fs::write(&file, [1; 4096]).expect("write");
    let change = |to| call(&[&image, &mnt, "-o", &format!("cmb=8M,devmem_main=1M,devmem=1M,user=root,nofail,remount,{to}")]);
    assert_eq!(change("ro"), Some(0));
    let refused = std::fs::write(&file, [2; 4096]).expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(nix::libc::EROFS));
    assert_eq!(change("rw"), Some(0));
    std::fs::write(&file, [3; 4096]).expect("write");
    let open = std::fs::File::options().write(true).open(&file).expect("open");
    assert_eq!(change("ro"), Some(32), "somebody writes");
    drop(open);
    std::fs::create_dir(scratch.join("mnt/folder")).expect("a folder");
    assert_eq!(call(&[&image, &scratch.text("mnt/folder"), "-o", "remount,ro"]), Some(32));
    // What mount(8) has merged with the table of mounts names what is set; what stands in fstab names some of it.
    let flags = || nix::sys::statvfs::statvfs(mnt.as_str()).expect("statvfs").flags() & (FsFlags::ST_NOEXEC | FsFlags::ST_NODEV);
    let merged = |flags: &str| call(&[&image, &mnt, "-o", &format!("rw,{flags},relatime,remount,user_id=0,group_id=0")]);
    assert_eq!(merged("nosuid,nodev,noexec"), Some(0));
    assert_eq!(flags(), FsFlags::ST_NOEXEC | FsFlags::ST_NODEV);
    assert_eq!(merged("nosuid,noexec"), Some(0));
    assert_eq!(flags(), FsFlags::ST_NOEXEC);
    assert_eq!(call(&[&image, &mnt, "-o", "cmb=8M,rw,remount"]), Some(0));
    assert_eq!(flags(), FsFlags::ST_NOEXEC);
    succeed(&["umount", &mnt]);
}
