//! `peerfs fsck`: says whether everything on a volume agrees. It changes nothing.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use peerfs_fs::server::LOCK_WAIT;
use peerfs_fs::store::probe;
use serde_json::Value;

use crate::args::FsckArgs;
use crate::failure::Reported;
use crate::{config, controller, output, volume_check};

pub fn run(args: FsckArgs) -> Result<ExitCode> {
    let device = config::device(&args.device)?;
    if args.repair {
        bail!(
            "fsck {device}: repair is not built into this version; restore from a backup, or mount read-only and copy the files"
        );
    }
    let _held = controller::hold(&device, LOCK_WAIT)?;
    let summary = probe(&volume_check::open_for_reading(&device)?)?;
    let mut report = volume_check::full_report(&device).with_context(|| format!("fsck {device}: the metadata cannot be read"))?;
    report["device"] = device.to_string().into();
    report["closed_in_order"] = summary.clean.into();
    let problems = report["problem_count"].as_u64().unwrap_or(u64::MAX);
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&text(&report, problems))?;
    }
    if problems == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!(
        "peerfs: fsck {device}: {} found; restore from a backup, or mount read-only and copy the files",
        output::count(problems, "problem")
    );
    Err(Reported.into())
}

fn text(report: &Value, problems: u64) -> String {
    let mut text = String::new();
    let listed = report["problems"].as_array().map_or(&[][..], Vec::as_slice);
    for problem in listed.iter().filter_map(Value::as_str) {
        let _ = writeln!(text, "{problem}");
    }
    if (listed.len() as u64) < problems {
        let _ = writeln!(text, "... and {} more", problems - listed.len() as u64);
    }
    let number = |name: &str| report[name].as_u64().unwrap_or(0);
    let crashed = if report["closed_in_order"] == false { ", not closed in order" } else { "" };
    let _ = writeln!(
        text,
        "{}: {}; {} ({} directories), {}, {} of {} blocks used{crashed}",
        report["device"].as_str().unwrap_or_default(),
        if problems == 0 { "clean".to_owned() } else { output::count(problems, "problem") },
        output::count(number("inodes"), "inode"),
        number("directories"),
        output::count(number("extents"), "extent"),
        number("used_blocks"),
        number("total_blocks"),
    );
    text
}
