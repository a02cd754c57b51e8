//! A mount that answers nothing.

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
        Stopped(Pid::from_raw(server))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that has ended is no error.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
