//! A SIGBUS that has nothing to do with guarded copies ends where it would have
//! ended without them. The cases change the process, so each runs in one of its own.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use peerfs_sys::Window;

const ROLE: &str = "PEERFS_TEST_ROLE";
const CAUGHT: i32 = 42;

fn run(role: &str) -> ExitStatus {
    let program = std::env::current_exe().expect("own path");
    Command::new(program).args(["--exact", "child", "--nocapture"]).env(ROLE, role).status().expect("child")
}

#[test]
fn another_handler_still_gets_its_own_faults() {
    assert_eq!(run("handler").code(), Some(CAUGHT));
}

#[test]
fn without_a_handler_a_raw_access_still_kills() {
    assert_eq!(run("default").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_sent_signal_still_kills() {
    assert_eq!(run("sent").signal(), Some(libc::SIGBUS));
}

extern "C" fn caught(_signal: i32) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(CAUGHT) };
}

fn cut_window() -> Window {
    let fd = nix::sys::memfd::memfd_create(c"cut", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("memfd");
    let file = File::from(fd);
    file.set_len(4096).expect("room");
    let window = Window::map(&file, 4096, true).expect("map");
    file.set_len(0).expect("cut");
    window
}

#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let caught = caught as extern "C" fn(i32) as libc::sighandler_t;
    let first = match role.as_str() {
        "handler" => Some(caught),
        // Rust's own handler, kept in the remaining role, swallows the first signal that is sent.
        "sent" => Some(libc::SIG_DFL),
        _ => None,
    };
    if let Some(first) = first {
        // SAFETY: the handler is async-signal-safe.
        unsafe { libc::signal(libc::SIGBUS, first) };
    }
    let window = cut_window();
    assert!(window.read(0, &mut [0; 8]).is_err());
    assert!(window.write(0, &[0; 8]).is_err());
    if role == "sent" {
        // SAFETY: sends a signal to ourselves.
        unsafe { libc::raise(libc::SIGBUS) };
    } else {
        window.load_volatile(0).expect("inside");
    }
    unreachable!("the access must not come back");
}
