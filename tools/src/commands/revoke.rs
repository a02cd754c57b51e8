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
    let revoked = if args.all { file.revoke_mount() } else { file.revoke(wanted) }.with_context(|| format!("revoke {shown}"))?;
    let latency_us = u64::try_from(revoked.latency.as_micros()).unwrap_or(u64::MAX);
    if args.json {
        output::print_json(&json!({
            "path": shown.to_string(), "whole_mount": args.all,
            "grants": revoked.grants, "enforced": revoked.enforced, "latency_us": latency_us,
        }))?;
    } else {
        output::print(&format!(
            "{shown}: {} revoked in {latency_us} us, {} of them without an acknowledgement\n",
            output::count(revoked.grants, "grant"),
            revoked.enforced
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
