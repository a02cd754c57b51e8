//! What mapping costs, as a table in markdown: see `mapbench`. Started by `cargo xtask bench-mapping`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use peerfs_tests::mapbench::{self, Plan};

/// Measures revocation, mapping, decisions and memory on real mounts. Needs root.
#[derive(Parser)]
struct Cli {
    /// Small numbers: to see that it works.
    #[arg(long)]
    quick: bool,
    /// Only these parts: latency, load, pairs, decisions, memory.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Revocation latency for these numbers of mappings, each so often: COUNT:REPEATS.
    #[arg(long, value_delimiter = ',', value_parser = case)]
    latency: Vec<(u64, usize)>,
    #[command(subcommand)]
    child: Option<Child>,
}

#[derive(Subcommand)]
enum Child {
    /// A process that holds mappings
    #[command(hide = true)]
    Child { file: PathBuf, manners: String, first: u64, count: u64 },
}

fn main() -> ExitCode {
    match perform(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerfs-mapbench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn case(text: &str) -> Result<(u64, usize)> {
    let (count, repeats) = text.split_once(':').context("give COUNT:REPEATS")?;
    Ok((count.parse()?, repeats.parse()?))
}

fn perform(cli: Cli) -> Result<()> {
    if let Some(Child::Child { file, manners, first, count }) = cli.child {
        return mapbench::holder::run(&file, &manners, first, count);
    }
    let program = std::env::current_exe()?;
    let mut plan = if cli.quick { Plan::quick(program) } else { Plan::full(program) };
    if !cli.latency.is_empty() {
        plan.latency = cli.latency;
    }
    mapbench::run(&plan, &cli.only, &mut std::io::stdout())
}
