//! `peerfs revoke`: an administrator takes direct mappings back.

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;

use crate::args::RevokeArgs;
use crate::{output, ranges};

pub fn run(args: RevokeArgs) -> Result<ExitCode> {
    let shown = args.path.display();
    let wanted = ranges::range(args.offset, args.length)?;
    let file = ranges::open(&args.path, false).with_context(|| format!("revoke {shown}"))?;
    let outcome = match (args.mapping, args.all, args.pins) {
        (Some(mapping), ..) => file.revoke_mapping(mapping),
        (None, false, false) => file.revoke(wanted),
        (None, false, true) => file.revoke_pins(wanted),
        (None, true, false) => file.revoke_mount(),
        (None, true, true) => file.revoke_mount_pins(),
    };
    let revoked = outcome.with_context(|| format!("revoke {shown}"))?;
    let latency_us = u64::try_from(revoked.latency.as_micros()).unwrap_or(u64::MAX);
    if args.json {
        output::print_json(&json!({
            "path": shown.to_string(), "whole_mount": args.all, "mapping": args.mapping,
            "grants": revoked.grants, "enforced": revoked.enforced, "latency_us": latency_us,
            "pins_cut": revoked.pins_cut, "pins_detached": revoked.pins_detached,
        }))?;
    } else {
        output::print(&format!(
            "{shown}: {} revoked in {latency_us} us, {} of them without an acknowledgement{}\n",
            output::count(revoked.grants, "grant"),
            revoked.enforced,
            if args.pins { pins(revoked.pins_cut, revoked.pins_detached) } else { String::new() }
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn pins(cut: u64, detached: u64) -> String {
    let left = match detached {
        0 => String::new(),
        count => format!(", {} detached (their importers keep the memory)", output::count(count, "dma-buf")),
    };
    format!("; {} cut{left}", output::count(cut, "pin"))
}
