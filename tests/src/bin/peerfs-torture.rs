//! Long runs of the whole-system tests, for the acceptance scripts, and the programs that take part in them as children.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use peerfs_tests::Media;
use peerfs_tests::torture::{aging, attack, bad_input, coherence, crash, devmem, holder, hung, killed, last_store};

/// Hostile, hung and dying programs and bad input against a real mount. Needs root.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// kill -9 of the server during writes and mappings
    Crash {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 10)]
        rounds: u64,
    },
    /// Hostile holders of grants
    Attack {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 1)]
        rounds: u64,
    },
    /// Two processes map one file and one hangs
    Hung {
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Clients killed at random moments
    Killed {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 1000)]
        clients: u64,
        /// Clients alive at one time
        #[arg(long, default_value_t = killed::CROWD)]
        crowd: usize,
    },
    /// The last store before the cut
    LastStore {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// Every value read, in any way, must be one that some legal order explains
    Coherence {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 30)]
        seconds: u64,
    },
    /// Garbage to everything that takes input
    BadInput {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 100)]
        images: u64,
        #[arg(long, default_value_t = 20_000)]
        calls: u64,
    },
    /// Damaged images alone
    Images {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 100)]
        images: u64,
    },
    /// A small volume, filled, thinned out and written anew again and again
    Aging {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 30.0)]
        minutes: f64,
        /// Size of the volume
        #[arg(long, default_value = "256M")]
        size: String,
    },
    /// The programs that take part
    #[command(hide = true, subcommand)]
    Child(Child),
}

#[derive(Subcommand)]
enum Child {
    Attack {
        access: String,
        file: PathBuf,
    },
    Steal {
        access: String,
        file: PathBuf,
        grant: u64,
        context: u64,
        mapping: u64,
    },
    Inherit {
        access: String,
    },
    DeviceMemory {
        directory: PathBuf,
    },
    HoldLibrary {
        file: PathBuf,
    },
    HoldByAddress {
        file: PathBuf,
    },
    HoldByHand {
        file: PathBuf,
    },
    Store {
        file: PathBuf,
        record: PathBuf,
    },
    Write {
        way: String,
        file: PathBuf,
        seed: u64,
        #[arg(default_value = "free")]
        pace: crash::Pace,
    },
    Wander {
        file: PathBuf,
        seed: u64,
    },
    Coherence {
        directory: PathBuf,
        notes: PathBuf,
        seed: u64,
        first: u64,
        parts: Vec<String>,
    },
    FuzzIoctls {
        file: PathBuf,
        seed: u64,
        count: u64,
    },
    FuzzSocket {
        file: PathBuf,
        seed: u64,
        count: u64,
    },
}

const SOCKET: &[&str] = &["-o", "grants=socket"];

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerfs-torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<()> {
    match task {
        Task::Crash { seed, rounds } => crash::rounds(Media::Image, seed, rounds, &[]),
        Task::Attack { seed, rounds } => (seed..seed + rounds).try_for_each(|seed| {
            attack::all(seed, &[])?;
            attack::all(seed, SOCKET)
        }),
        Task::Hung { seed } => hung::all(seed),
        Task::Killed { seed, clients, crowd } => killed::all(seed, clients, crowd),
        Task::LastStore { seed, rounds } => {
            last_store::rounds(seed, rounds, &[])?;
            last_store::rounds(seed, rounds, SOCKET)
        }
        Task::Coherence { seed, seconds } => coherence::run(seed, seconds),
        Task::BadInput { seed, images, calls } => {
            bad_input::mountpoints()?;
            bad_input::exact_room()?;
            bad_input::full_device(seed)?;
            bad_input::full_of_metadata()?;
            bad_input::ioctls(seed, calls)?;
            bad_input::sockets(seed, calls / 10)?;
            bad_input::images(seed, images)
        }
        Task::Aging { seed, minutes, size } => {
            let time = Duration::try_from_secs_f64(minutes * 60.0)?;
            aging::run(aging::Plan { seed, time, size: &size })
        }
        Task::Images { seed, images } => bad_input::images(seed, images),
        Task::Child(child) => run(child),
    }
}

fn run(child: Child) -> Result<()> {
    match child {
        Child::Attack { access, file } => attack::hold(&access, &file),
        Child::Steal { access, file, grant, context, mapping } => attack::thief(&access, &file, [grant, context, mapping]),
        Child::Inherit { access } => attack::heir(&access),
        Child::DeviceMemory { directory } => devmem::obey(&directory),
        Child::HoldLibrary { file } => holder::library(&file),
        Child::HoldByAddress { file } => holder::by_address(&file),
        Child::HoldByHand { file } => holder::by_hand(&file),
        Child::Store { file, record } => last_store::store(&file, &record),
        Child::Write { way, file, seed, pace } => crash::write(&way, &file, seed, pace),
        Child::Wander { file, seed } => killed::wander(&file, seed),
        Child::Coherence { directory, notes, seed, first, parts } => coherence::work(&directory, &notes, seed, first, &parts),
        Child::FuzzIoctls { file, seed, count } => bad_input::fuzz_ioctls(&file, seed, count),
        Child::FuzzSocket { file, seed, count } => bad_input::fuzz_socket(&file, seed, count),
    }
}
