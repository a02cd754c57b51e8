//! The tutorial does what it says, command by command.

use anyhow::{Context, Result};
use peerfs_tests::documents::tutorial;
use peerfs_tests::peerfs;

#[test]
fn the_tutorial_is_true() -> Result<()> {
    let program = peerfs();
    let commands = tutorial::run(include_str!("../../docs/tutorial.md"), program.parent().context("a directory")?)?;
    println!("{commands} commands");
    Ok(())
}
