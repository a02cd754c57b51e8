//! A run that is ended by a signal leaves no files behind. QEMU ends by itself with the thread that started it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

static DIRECTORIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A directory that nobody misses.
pub fn remove_at_end(directory: &Path) {
    DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner).push(directory.to_owned());
}

/// From now on SIGINT, SIGTERM and SIGHUP remove the directories and end the program, with the exit code that shells
/// give. To be called before other threads are started.
///
/// # Errors
/// When signals cannot be blocked.
pub fn tidy_on_signal() -> Result<()> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().context("signals cannot be blocked")?;
    std::thread::Builder::new().name("lab-signals".into()).spawn(move || {
        if let Ok(signal) = signals.wait() {
            for directory in DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                // It may be gone already.
                let _ = fs::remove_dir_all(directory);
            }
            eprintln!("lab: ended by {signal}");
            std::process::exit(128 + signal as i32);
        }
    })?;
    Ok(())
}
