//! The mapping benchmark with small numbers, so that it cannot rot. No figure is judged.

use std::path::PathBuf;

use anyhow::Result;
use peerfs_tests::mapbench::{self, Plan};

#[test]
fn every_part_measures_something() -> Result<()> {
    let plan = Plan::quick(PathBuf::from(env!("CARGO_BIN_EXE_peerfs-mapbench")));
    let mut text = Vec::new();
    mapbench::run(&plan, &[], &mut text)?;
    let text = String::from_utf8(text)?;
    println!("{text}");
    assert_eq!(text.matches("### ").count(), 5);
    Ok(())
}
