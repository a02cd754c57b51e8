//! `peerfs map --importer server`: the importer inside the server reads, and says which way the bytes went.

use std::fmt::Write;
use std::ops::Bound;
use std::process::ExitCode;

use anyhow::{Context, Result};
use peerfs_client::{File, Reason, ServerReading};
use serde_json::json;

use super::query;
use crate::args::MapArgs;
use crate::failure::Usage;
use crate::output;
use crate::ranges::FileRange;

pub fn run(args: &MapArgs, file: &File, range: FileRange) -> Result<ExitCode> {
    let request = &args.request;
    let what = || format!("map {}", request.file.display());
    refuse_options(args)?;
    let (offset, length) = match range {
        (Bound::Included(offset), Bound::Excluded(end)) => (offset, end - offset),
        (Bound::Included(offset), _) => (offset, u64::MAX - offset),
        _ => (0, u64::MAX),
    };
    let reading = file.read_by_server(offset, length).with_context(what)?;
    if request.json {
        output::print_json(&json!({
            "file": request.file.display().to_string(),
            "importer": request.importer,
            "offset": offset,
            "bytes_read": reading.bytes(),
            "bytes_direct": reading.direct_window + reading.direct_bar,
            "bytes_direct_window": reading.direct_window,
            "bytes_direct_bar": reading.direct_bar,
            "bytes_fallback": reading.fallback,
            "fallback_reason": reading.reason.map(Reason::name),
            "crc32c": format!("{:08x}", reading.crc32c),
        }))?;
    } else {
        output::print(&text(&reading))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Nothing is given to this process that could be held, or mapped at an address.
fn refuse_options(args: &MapArgs) -> Result<()> {
    let request = &args.request;
    let refused = [
        ("--write", request.write),
        ("--pin", request.pin),
        ("--atomic", request.atomic),
        ("--hold", args.hold.is_some()),
        ("--repeat", args.repeat.is_some()),
        ("--va-bits", args.va_bits.is_some()),
    ];
    match refused.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Usage(format!("{option}: the importer in the server only reads")).into()),
        None => Ok(()),
    }
}

fn text(reading: &ServerReading) -> String {
    let mut text = format!(
        "server: read {} direct-window, {} direct-bar, {} fallback\n",
        output::bytes(reading.direct_window),
        output::bytes(reading.direct_bar),
        output::bytes(reading.fallback)
    );
    text.push_str(&query::refusal_lines(reading.reason.map(|reason| (reason, reading.fallback))));
    let _ = writeln!(text, "crc32c {:08x}", reading.crc32c);
    text
}
