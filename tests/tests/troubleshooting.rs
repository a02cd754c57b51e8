//! Every message of the troubleshooting page comes about as its entry says, word for word.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use peerfs_tests::documents::messages;
use peerfs_tests::peerfs;

const PAGE: &str = include_str!("../../docs/troubleshooting.md");

#[test]
fn every_message_is_printed_as_listed() -> Result<()> {
    let program = peerfs();
    let programs = program.parent().context("a directory")?;
    let entries = messages::entries(PAGE)?;
    ensure!(entries.len() >= 25, "only {} entries", entries.len());
    let wrong = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    // Some recipes wait, for a volume in use for instance.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(entry) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = messages::try_entry(entry, programs) {
                        wrong.lock().expect("nobody panics with it").push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("nobody panics with it");
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
