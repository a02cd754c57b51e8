//! `peerfs copy`: an importer that the server drives moves a file's bytes to or from its namespace.

use std::fmt::Write;
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use nix::errno::Errno;
use peerfs_client::{Copied, CopyDirection, CopyRequest, Error, File, Reason};
use serde_json::json;

use super::query;
use crate::args::CopyArgs;
use crate::output;

pub fn run(args: CopyArgs) -> Result<ExitCode> {
    let (direction, named) = match (&args.to_importer, &args.from_importer) {
        (Some(importer), _) => (CopyDirection::ToImporter, importer),
        (None, Some(importer)) => (CopyDirection::FromImporter, importer),
        (None, None) => bail!("name an importer with --to-importer or --from-importer"),
    };
    let importer = canonical(named);
    let what = || format!("copy {} {} {importer}", args.file.display(), preposition(direction));
    let file = open(&args, direction).with_context(what)?;
    let length = match args.length {
        Some(length) => length,
        None => file.size().with_context(what)?.saturating_sub(args.offset),
    };
    let request = CopyRequest { importer: importer.clone(), direction, offset: args.offset, length, block: args.lba };
    let bar = progress(length);
    let copied = file.copy(&request, |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    let copied = copied.map_err(|error| explained(error, &importer)).with_context(what)?;
    if args.json {
        output::print_json(&json!({
            "file": args.file.display().to_string(),
            "importer": importer,
            "direction": format!("{}-importer", preposition(direction)),
            "lba": args.lba,
            "bytes": copied.bytes(),
            "bytes_direct_bar": copied.direct_bar,
            "bytes_direct_window": copied.direct_window,
            "bytes_fallback": copied.fallback,
            "bytes_revoked": copied.revoked,
            "fallback_reason": copied.reason.map(Reason::name),
            "seconds": copied.elapsed.as_secs_f64(),
            "bytes_per_second": rate(&copied),
        }))?;
    } else {
        output::print(&text(&copied))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn preposition(direction: CopyDirection) -> &'static str {
    match direction {
        CopyDirection::ToImporter => "to",
        CopyDirection::FromImporter => "from",
    }
}

/// `nvme:BDF/nsN` means the importer as well: its namespace was chosen at the mount.
fn canonical(named: &str) -> String {
    let name = named.split_once('/').map_or(named, |(controller, _)| controller);
    match name.strip_prefix("nvme:").and_then(|address| address.parse::<peerfs_blockdev::pci::PciAddress>().ok()) {
        Some(address) => format!("nvme:{address}"),
        None => name.to_owned(),
    }
}

fn open(args: &CopyArgs, direction: CopyDirection) -> Result<File, Error> {
    match direction {
        CopyDirection::ToImporter => File::open(&args.file),
        CopyDirection::FromImporter => {
            File::open_with(&args.file, OpenOptions::new().read(true).write(true).create(true).truncate(false))
        }
    }
}

fn progress(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template("{bar:40} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// What the error numbers of a copy mean.
fn explained(error: Error, importer: &str) -> anyhow::Error {
    let Error::System { source, .. } = &error else { return error.into() };
    let meaning = match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENODEV) => format!("{importer} or the storage device is gone; part of the bytes may have been copied"),
        Some(Errno::ENXIO) => {
            format!("the mount does not drive {importer}: mount with -o importer={importer} (peerfs importers shows what it has)")
        }
        Some(Errno::EPERM) => "it overwrites or reads a whole device, so only the mount's owner may".into(),
        Some(Errno::ERANGE) => format!("it reaches beyond the end of {importer}'s namespace: choose another --lba or --length"),
        Some(Errno::EINVAL) => format!("--offset is no multiple of the logical block of {importer}"),
        Some(Errno::EBUSY) => format!("{importer} copies for as many as it can: try again when one has ended"),
        _ => return error.into(),
    };
    anyhow::anyhow!("{meaning}")
}

fn rate(copied: &Copied) -> f64 {
    copied.bytes() as f64 / copied.elapsed.as_secs_f64().max(1e-9)
}

fn text(copied: &Copied) -> String {
    let mut text = format!(
        "copied {}: {} direct-bar, {} direct-window, {} fallback; {}/s\n",
        output::bytes(copied.bytes()),
        output::bytes(copied.direct_bar),
        output::bytes(copied.direct_window),
        output::bytes(copied.fallback),
        output::bytes(rate(copied) as u64)
    );
    if copied.revoked > 0 {
        let _ = writeln!(text, "  {} were revoked under way and moved again by fallback", output::bytes(copied.revoked));
    }
    let refused = copied.fallback - copied.revoked;
    text.push_str(&query::refusal_lines(copied.reason.filter(|_| refused > 0).map(|reason| (reason, refused))));
    text
}
