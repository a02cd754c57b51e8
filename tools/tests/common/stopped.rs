//! A mount that answers nothing.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::succeed;

/// The server of a mount, stopped until this is dropped.
pub struct Stopped(Pid);

impl Stopped {
    /// Stops it.
    pub fn new(mountpoint: &str) -> Stopped {
        let info: Value = serde_json::from_str(&succeed(&["info", mountpoint, "--json"])).expect("JSON");
        let server = info["server_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process");
        kill(Pid::from_raw(server), Signal::SIGSTOP).expect("it runs");
        // Until its last thread has stopped it may take one more request, and whoever waits for the answer to a request
        // that was taken cannot even be killed.
        while !all_threads_stopped(server) {
            std::thread::yield_now();
        }
        Stopped(Pid::from_raw(server))
    }
}

fn all_threads_stopped(process: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    tasks.map(|task| fs::read_to_string(task.expect("a thread").path().join("stat")).unwrap_or_default()).all(|stat| {
        // pid (name) state; the name may have anything in it.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that has ended is no error.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
