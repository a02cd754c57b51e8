//! Scratch volumes that are there, so that a run that is ended by a signal leaves none behind: a mount would outlive
//! the program that made it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};

use super::peerfs;

/// The directory of each volume, which has the mount point in it.
static VOLUMES: Volumes = Volumes {
    state: Mutex::new(State { directories: BTreeSet::new(), mounting: 0, ending: false, last: Vec::new() }),
    mounted: Condvar::new(),
};

struct Volumes {
    state: Mutex<State>,
    mounted: Condvar,
}

struct State {
    directories: BTreeSet<PathBuf>,
    /// Calls of mount under way.
    mounting: usize,
    /// Nothing is mounted any more.
    ending: bool,
    /// What is done at the very end.
    last: Vec<Box<dyn FnOnce() + Send>>,
}

impl Volumes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A directory that is removed if a signal ends the run, with what is mounted on `mnt` in it.
pub fn remove_on_signal(directory: &Path) {
    VOLUMES.lock().directories.insert(directory.to_owned());
}

/// Done after everything is unmounted, if a signal ends the run.
pub fn at_signal(act: impl FnOnce() + Send + 'static) {
    VOLUMES.lock().last.push(Box::new(act));
}

pub(super) fn removed(directory: &Path) {
    VOLUMES.lock().directories.remove(directory);
}

/// Does not come back while everything is being unmounted: a case that fails of that has nothing to report.
pub(super) fn wait_if_ending() {
    while VOLUMES.lock().ending {
        std::thread::park();
    }
}

/// A mount under way: what unmounts everything waits for it.
pub(super) struct Mounting(());

impl Mounting {
    pub(super) fn begin() -> Result<Mounting> {
        let mut state = VOLUMES.lock();
        ensure!(!state.ending, "the run is being ended");
        state.mounting += 1;
        Ok(Mounting(()))
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        VOLUMES.lock().mounting -= 1;
        VOLUMES.mounted.notify_all();
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP unmount and remove every scratch volume and end the program, with the exit
/// code that shells give. To be called before other threads are started.
///
/// # Errors
/// When signals cannot be blocked, or no thread can be started.
pub fn tidy_on_signal() -> Result<()> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().context("signals cannot be blocked")?;
    std::thread::Builder::new().name("peerfs-signals".into()).spawn(move || {
        if let Ok(signal) = signals.wait() {
            let left = tidy();
            let last = std::mem::take(&mut VOLUMES.lock().last);
            last.into_iter().for_each(|act| act());
            eprintln!("peerfs: ended by {signal}; {left} scratch directories could not be removed");
            std::process::exit(128 + signal as i32);
        }
    })?;
    Ok(())
}

/// Answers how many volumes are left behind.
fn tidy() -> usize {
    let mut state = VOLUMES.lock();
    state.ending = true;
    while state.mounting > 0 {
        state = VOLUMES.mounted.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    let directories = state.directories.clone();
    drop(state);
    directories.iter().filter(|directory| !remove(directory)).count()
}

fn remove(directory: &Path) -> bool {
    // Nothing may be mounted there; then this fails, and removing what is below is right.
    let _unmounted = Command::new(peerfs()).args(["umount", "--force"]).arg(directory.join("mnt")).output();
    if is_mounted(directory) {
        return false;
    }
    // The run may be removing it too.
    let _removed = fs::remove_dir_all(directory);
    !directory.exists()
}

fn is_mounted(directory: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let point = directory.join("mnt");
    table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}
