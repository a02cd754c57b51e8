//! Runs the commands of a document and compares what they print: see `peerfs_tests::documents`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use peerfs_tests::documents::tutorial;

/// Runs the commands of a document, with the peerfs that is on the path.
#[derive(Parser)]
struct Cli {
    document: PathBuf,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(commands) => {
            println!("{commands} commands did what the document says");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("peerfs-tutorial: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<usize> {
    let document = std::fs::read_to_string(&cli.document).with_context(|| cli.document.display().to_string())?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|directory| directory.join("peerfs").exists());
    tutorial::run(&document, &found.context("there is no peerfs on the path")?)
}
