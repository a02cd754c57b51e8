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
    let wrong: Vec<String> =
        entries.iter().filter_map(|entry| messages::try_entry(entry, programs).err()).map(|error| format!("{error:#}")).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
