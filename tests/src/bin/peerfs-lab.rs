//! The VM lab: cases that need VFIO, NVMe controllers or power failures, in an emulated machine.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use peerfs_tests::lab::{guest, host};

/// Boots emulated machines with NVMe controllers and runs cases in them. The last line is `N passed, N failed`.
#[derive(Parser)]
struct Cli {
    /// Print the cases and end
    #[arg(long)]
    list: bool,
    /// Only this case (may be given again)
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// A shell in the machine, with empty media
    #[arg(long)]
    console: bool,
    /// How often machines are killed in each case that kills
    #[arg(long, value_name = "N")]
    kills: Option<usize>,
    /// Run the conformance cases in full, which takes tens of minutes
    #[arg(long)]
    full: bool,
    /// Leave media and logs behind
    #[arg(long)]
    keep: bool,
    /// What contents and moments are derived from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(subcommand)]
    side: Option<Side>,
}

#[derive(Subcommand)]
enum Side {
    /// The runner in the guest
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    match perform(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peerfs-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(cli: Cli) -> Result<bool> {
    if cli.side.is_some() {
        guest::run()?;
    } else if cli.list {
        host::list();
    } else if cli.console {
        host::converse()?;
    } else {
        return host::run(&host::Request { names: cli.cases, seed: cli.seed, kills: cli.kills, full: cli.full, keep: cli.keep });
    }
    Ok(true)
}
