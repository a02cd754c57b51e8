//! What names cost, as tables in markdown: see `namebench`. Started by `cargo xtask bench-names`.

use std::process::ExitCode;

use clap::Parser;
use peerfs_tests::namebench::{self, Plan};

/// Makes, looks at, lists and removes files on a real mount and on ext4. Needs root.
#[derive(Parser)]
struct Cli {
    /// Files.
    #[arg(long, default_value_t = Plan::FULL.files)]
    files: u64,
    /// Directories in the case of many.
    #[arg(long, default_value_t = Plan::FULL.directories)]
    directories: u64,
}

fn main() -> ExitCode {
    let Cli { files, directories } = Cli::parse();
    match namebench::run(Plan { files, directories }, &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerfs-namebench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
