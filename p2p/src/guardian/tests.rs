//! The guardian as a real process. This test binary plays the server and the guardian, too: the tests named
//! `as_...` do nothing unless an environment variable asks them to.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Guardian, run};
use crate::custody::Custody;

const ROLE: &str = "PEERFS_TEST_ROLE";
const FOLDER: &str = "PEERFS_TEST_FOLDER";

fn role(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("test binary"));
    command.args(["--exact", &format!("guardian::tests::as_{name}"), "--nocapture", "--test-threads=1"]).env(ROLE, name);
    command
}

fn plays(name: &str) -> bool {
    env::var(ROLE).is_ok_and(|role| role == name)
}

#[test]
fn as_guardian() {
    if plays("guardian") {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().expect("channel");
        run(socket).expect("guardian");
        std::process::exit(0);
    }
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("test file")
}

#[test]
fn as_server() {
    if !plays("server") {
        return;
    }
    let folder = env::var_os(FOLDER).expect("folder");
    let folder = Path::new(&folder);
    let lock = open(&folder.join("lock"));
    lock.lock().expect("lock");
    let guardian = Guardian::spawn_command(|| role("guardian"), Some(lock.try_clone().expect("dup").into())).expect("guardian");
    guardian.hold(1, open(&folder.join("window")).into()).expect("hold");
    guardian.hold(2, open(&folder.join("released")).into()).expect("hold");
    guardian.hold_sequence(1, open(&folder.join("page")).into()).expect("hold");
    guardian.release(2);
    guardian.ping().expect("in order after the release");
    println!("\nREADY");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_server_is_cut_and_its_lock_goes_last() {
    let folder = tempfile::tempdir().expect("tempdir");
    for name in ["window", "released", "page"] {
        fs::write(folder.path().join(name), vec![0; 8192]).expect("write");
    }
    fs::write(folder.path().join("lock"), "").expect("write");
    let mut server = role("server").env(FOLDER, folder.path()).stdout(Stdio::piped()).spawn().expect("server");
    let out = BufReader::new(server.stdout.take().expect("piped"));
    let ready = out.lines().any(|line| line.expect("line") == "READY");
    assert!(ready, "the server ended early");
    let lock = open(&folder.path().join("lock"));
    assert!(lock.try_lock().is_err(), "the server holds the lock");
    server.kill().expect("kill");
    server.wait().expect("wait");
    lock.lock().expect("the guardian lets go of the lock");
    let length = |name: &str| fs::metadata(folder.path().join(name)).expect("stat").len();
    assert_eq!((length("window"), length("released")), (0, 8192));
    let mut flag = [0; 8];
    open(&folder.path().join("page")).read_exact_at(&mut flag, 0).expect("read");
    assert_ne!(u64::from_ne_bytes(flag), 0, "the sequence page says that the server is gone");
}

#[test]
fn a_killed_guardian_is_replaced_and_told_everything() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("window");
    fs::write(&path, vec![0; 4096]).expect("write");
    let guardian = Guardian::spawn_command(|| role("guardian"), None).expect("guardian");
    guardian.hold(7, open(&path).into()).expect("hold");
    let first = guardian.pid().expect("running");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first as i32), nix::sys::signal::Signal::SIGKILL).expect("kill");
    // Asking fails or waits for the lock while it is replaced; a new one answers sooner or later.
    while guardian.pid().is_none_or(|pid| pid == first) || guardian.ping().is_err() {
        std::thread::yield_now();
    }
    assert_eq!(fs::metadata(&path).expect("stat").len(), 4096, "the death of a guardian cuts nothing");
    drop(guardian);
    assert_eq!(fs::metadata(&path).expect("stat").len(), 0, "the new one knew of the window");
}

#[test]
fn a_guardian_that_hangs_with_nothing_to_guard_does_not_hold_the_server() {
    let guardian = Guardian::spawn_command(|| role("guardian"), None).expect("guardian");
    let pid = nix::unistd::Pid::from_raw(guardian.pid().expect("running") as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stop");
    let stopped = nix::sys::wait::WaitPidFlag::WSTOPPED | nix::sys::wait::WaitPidFlag::WNOWAIT;
    nix::sys::wait::waitid(nix::sys::wait::Id::Pid(pid), stopped).expect("it stops");
    drop(guardian);
    assert!(nix::sys::signal::kill(pid, None).is_err(), "it was left behind");
}

#[test]
fn a_command_that_is_no_guardian_is_an_error() {
    let err = Guardian::spawn_command(|| Command::new("true"), None).expect_err("no answer");
    assert!(err.to_string().contains("starting the guardian"), "{err}");
}
