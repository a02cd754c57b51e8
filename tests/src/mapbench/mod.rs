//! What mapping costs, measured on real mounts: `cargo xtask bench-mapping`.
//!
//! Nothing here judges a figure: machines differ. What is checked is that the
//! thing measured took place (mappings were direct, counts add up), so that a
//! figure cannot come from doing nothing.

mod decisions;
pub mod holder;
mod latency;
mod load;
mod memory;
mod pairs;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use peerfs_conformance::kit::Random;

use crate::report::{self, Report};

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program that runs [`holder::run`] as `PROGRAM child ARGUMENTS`.
    pub program: PathBuf,
    /// Repeats of each case; medians are of so many.
    pub runs: usize,
    /// Revocation latency: live mappings, and how often each number is revoked.
    pub latency: Vec<(u64, usize)>,
    /// Revocations under load.
    pub loaded_revocations: u64,
    /// Length of the large range of map and unmap, bytes.
    pub large_bytes: u64,
    /// Map and unmap pairs of the small range in one run.
    pub small_pairs: u64,
    /// Decisions in one run.
    pub decisions: u64,
    /// Live mappings for the memory figure.
    pub mappings: u64,
}

impl Plan {
    /// What BENCHMARKS.md shows.
    pub fn full(program: PathBuf) -> Plan {
        Plan {
            program,
            runs: 5,
            latency: vec![(1, 200), (1000, 30), (100_000, 5)],
            loaded_revocations: 10_000,
            large_bytes: 1 << 30,
            small_pairs: 2000,
            decisions: 20_000,
            mappings: 1_000_000,
        }
    }

    /// Enough to know that it works.
    pub fn quick(program: PathBuf) -> Plan {
        Plan {
            program,
            runs: 2,
            latency: vec![(1, 3), (100, 2)],
            loaded_revocations: 40,
            large_bytes: 8 << 20,
            small_pairs: 20,
            decisions: 100,
            mappings: 2000,
        }
    }
}

/// A part of the benchmark.
type Part = fn(&Plan) -> Result<Report>;

const PARTS: [(&str, Part); 5] = [
    ("latency", latency::measure),
    ("load", load::measure),
    ("pairs", pairs::measure),
    ("decisions", decisions::measure),
    ("memory", memory::measure),
];

/// Measures the parts named (none: all), writing each as it is done.
///
/// # Errors
/// When something could not be measured, or a part has another name.
pub fn run(plan: &Plan, only: &[String], out: &mut dyn Write) -> Result<()> {
    let unknown = only.iter().find(|name| PARTS.iter().all(|(part, _)| part != name));
    ensure!(unknown.is_none(), "there is no part {unknown:?}");
    writeln!(out, "{}\n", report::machine())?;
    for (name, measure) in PARTS {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            write!(out, "{}", measure(plan)?)?;
            out.flush()?;
        }
    }
    Ok(())
}

/// A file of random bytes, on the device, with no page of it cached and no cached handle open.
fn make_file(path: &Path, length: u64) -> Result<()> {
    let mut random = Random::new(length);
    let mut block = vec![0; 1 << 20];
    random.fill(&mut block);
    let mut file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
    let mut left = length;
    while left > 0 {
        let piece = left.min(block.len() as u64);
        file.write_all(&block[..piece as usize])?;
        left -= piece;
    }
    Ok(file.sync_all()?)
}

/// Bytes as mount options and mkfs take them.
fn mib(bytes: u64) -> String {
    format!("{}M", bytes.div_ceil(1 << 20))
}

fn ensure_direct(mapping: &peerfs_client::Mapping) -> Result<()> {
    let refused = mapping.segments().iter().find(|segment| segment.reason.is_some());
    ensure!(refused.is_none(), "not direct: {refused:?}");
    Ok(())
}
