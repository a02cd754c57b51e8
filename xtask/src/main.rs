//! The developer's entry point: `cargo xtask help` lists its tasks.

mod deb;
mod install;
mod mutants;
mod mutants_list;
mod tree;

use std::path::{Path, PathBuf};
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
    /// Program and manual, client library, headers and pkg-config file below a prefix.
    Install {
        /// Where to.
        #[arg(long, default_value = "/usr/local")]
        prefix: PathBuf,
    },
    /// The Debian package, in target/debian (needs dpkg-dev).
    Deb,
    /// What strangers may send: ioctls and messages to the grant socket, each for so many seconds.
    Fuzz {
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
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
    /// What names cost, beside ext4: a million files in one directory and in a thousand (needs root).
    BenchNames {
        /// Handed to peerfs-namebench.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Breaks one rule at a time in a copy of the tree; a conformance case must notice each (needs root).
    Mutants {
        /// Only those whose name contains this.
        #[arg(default_value = "")]
        name: String,
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
            run("cargo", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
            run("cargo", &["clippy", "--package", "peerfs", "--features", "cuda", "--all-targets", "--", "-D", "warnings"])
        }
        Task::Test => {
            run("cargo", &["test", "--workspace"])?;
            run("cargo", &["test", "--package", "peerfs", "--features", "cuda", "--test", "cuda"])?;
            run("python3", &["-B", "tools/bench/test_report.py"])
        }
        Task::Demo => run("cargo", &["run", "--release", "--package", "peerfs", "--", "demo"]),
        Task::Install { prefix } => install::install(&prefix),
        Task::Deb => deb::deb(),
        Task::Fuzz { seconds, seed } => ["ioctls", "socket", "nvme"].iter().try_for_each(|target| {
            let (seconds, seed) = (seconds.to_string(), seed.to_string());
            let options = ["--seconds", seconds.as_str(), "--seed", seed.as_str()];
            let program = ["run", "--release", "--package", "peerfs-tests", "--bin", "peerfs-fuzz", "--", target];
            run("cargo", &[&program[..], &options].concat())
        }),
        Task::Bench { arguments } => {
            run("cargo", &["build", "--release", "--package", "peerfs"])?;
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run("tools/bench/compare", &arguments)
        }
        Task::BenchMapping { arguments } => bench("peerfs-mapbench", &arguments),
        Task::BenchNames { arguments } => bench("peerfs-namebench", &arguments),
        Task::Mutants { name } => mutants::prove(&name),
    }
}

/// Builds what is measured and what measures, and starts that.
fn bench(program: &str, arguments: &[String]) -> Result<()> {
    run("cargo", &["build", "--release", "--package", "peerfs", "--package", "peerfs-tests"])?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run(&format!("target/release/{program}"), &arguments)
}

/// The workspace's root.
fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs a command in the workspace's root and fails as it fails.
fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .status()
        .with_context(|| format!("{program} cannot be started; is it installed?"))?;
    ensure!(status.success(), "{program} {} failed: {status}", arguments.join(" "));
    Ok(())
}

/// What a command prints, run in the workspace's root, without the end of the last line.
fn output_of(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .with_context(|| format!("{program} cannot be started; is it installed?"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {} failed: {complaint}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}
