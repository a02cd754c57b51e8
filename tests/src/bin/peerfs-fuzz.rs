//! Fuzzing of what strangers may send: see `peerfs_tests::fuzz`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use peerfs_tests::fuzz;

/// Sends garbage and nearly valid input to a server without a kernel, or to the NVMe driver.
#[derive(Parser)]
struct Cli {
    target: Target,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Target {
    Ioctls,
    Socket,
    Nvme,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome: Result<()> = match cli.target {
        Target::Ioctls => fuzz::ioctls(cli.seed, cli.seconds),
        Target::Socket => fuzz::socket(cli.seed, cli.seconds),
        Target::Nvme => fuzz::nvme(cli.seed, cli.seconds),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerfs-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}
