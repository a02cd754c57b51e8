//! `peerfs reflink`: a second file with the same blocks.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use peerfs_client::File;
use serde_json::json;

use crate::args::ReflinkArgs;
use crate::output;

pub fn run(args: ReflinkArgs) -> Result<ExitCode> {
    let (from, to) = (args.source.display(), args.destination.display());
    let what = || format!("reflink {from} {to}");
    let metadata = fs::metadata(&args.source).with_context(what)?;
    ensure!(metadata.is_file(), "{}: {from} is not a regular file", what());
    if let Ok(there) = fs::metadata(&args.destination) {
        let same = (there.dev(), there.ino()) == (metadata.dev(), metadata.ino());
        ensure!(!same, "{}: both names are the same file", what());
        ensure!(there.is_file(), "{}: {to} is there and not a regular file", what());
        ensure!(there.dev() == metadata.dev(), "{}: the files must be on one mount; copy instead", what());
    }
    let source = File::open(&args.source).with_context(what)?;
    let options = OpenOptions::new().write(true).create(true).truncate(true).clone();
    let bytes = File::open_with(&args.destination, &options)
        .and_then(|destination| destination.reflink_from(&source, 0, 0, 0))
        .with_context(what)?;
    if args.json {
        output::print_json(&json!({ "source": from.to_string(), "destination": to.to_string(), "bytes_shared": bytes }))?;
    } else {
        output::print(&format!("{to}: {} shared with {from}\n", output::bytes(bytes)))?;
    }
    Ok(ExitCode::SUCCESS)
}
