//! `peerfs check-metadata` (hidden): reads all metadata. If it is corrupt this
//! process may die of it, and whoever started it draws the conclusion.

use std::process::ExitCode;

use anyhow::Result;
use peerfs_fs::store::{Report, check, open_probe};
use serde_json::{Value, json};

use crate::args::CheckMetadataArgs;
use crate::{config, output, volume_check};

pub fn run(args: CheckMetadataArgs) -> Result<ExitCode> {
    let device = volume_check::open_for_reading(&config::device(&args.device)?)?;
    if args.full {
        output::print_json(&to_json(&check(device)?))?;
    } else {
        open_probe(device)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn to_json(report: &Report) -> Value {
    json!({
        "clean": report.is_clean(),
        "problem_count": report.problem_count,
        "problems": report.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "inodes": report.inodes,
        "directories": report.directories,
        "orphans": report.orphans,
        "extents": report.extents,
        "used_blocks": report.used_blocks,
        "free_blocks": report.free_blocks,
        "total_blocks": report.total_blocks,
    })
}
