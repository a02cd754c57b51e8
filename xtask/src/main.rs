//! The developer's entry point: `cargo xtask check|test|demo|install|bench|bench-mapping`.

mod install;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

/// What developers run.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "What developers run")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Formatting and lints, as CI checks them.
    Check,
    /// Every test that needs no virtual machine.
    Test,
    /// The main job, end to end.
    Demo,
    /// Program, client library, headers and pkg-config file below a prefix.
    Install {
        /// Where to.
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
    /// Side-by-side benchmarks (needs fio and root).
    Bench {
        /// Handed to tools/bench/compare.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// What mapping costs: revocation, map and unmap, decisions, memory (needs root).
    BenchMapping {
        /// Handed to peerfs-mapbench.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Check => {
            run("cargo", &["fmt", "--all", "--check"])?;
            run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
        }
        Task::Test => run("cargo", &["test", "--workspace"]),
        Task::Demo => run("cargo", &["run", "--release", "--package", "peerfs", "--", "demo"]),
        Task::Install { prefix } => install::install(&prefix),
        Task::Bench { arguments } => {
            run("cargo", &["build", "--release", "--package", "peerfs"])?;
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run("tools/bench/compare", &arguments)
        }
        Task::BenchMapping { arguments } => {
            run("cargo", &["build", "--release", "--package", "peerfs", "--package", "peerfs-tests"])?;
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run("target/release/peerfs-mapbench", &arguments)
        }
    }
}

/// Runs a command in the workspace's root and fails as it fails.
fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .status()
        .with_context(|| format!("{program} cannot be started; is it installed?"))?;
    ensure!(status.success(), "{program} {} failed: {status}", arguments.join(" "));
    Ok(())
}
