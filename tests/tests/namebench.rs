//! The benchmark of names with small numbers, so that it cannot rot. No figure is judged.

use anyhow::Result;
use peerfs_tests::namebench::{self, Plan};

#[test]
fn both_cases_are_measured() -> Result<()> {
    let mut text = Vec::new();
    namebench::run(Plan::QUICK, &mut text)?;
    let text = String::from_utf8(text)?;
    println!("{text}");
    assert!(text.contains("### 2000 files in 1 directory") && text.contains("### 2000 files in 20 directories"));
    assert_eq!(text.matches("| unlink |").count(), 2);
    Ok(())
}
