//! `peerfs trim`: the device is told which blocks hold nothing.

use std::fs::File;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use peerfs_fs::control::{FITRIM, TrimRange};
use serde_json::json;

use super::server_info;
use crate::args::TrimArgs;
use crate::output;

pub fn run(args: TrimArgs) -> Result<ExitCode> {
    let what = || format!("trim {}", args.mountpoint.display());
    // Other filesystems know the same call.
    let info = server_info::info(&args.mountpoint).map_err(|error| anyhow::Error::from(error).context(what()))?;
    let root = File::open(&args.mountpoint).with_context(what)?;
    let mut range = TrimRange { start: args.offset, length: args.length.unwrap_or(u64::MAX), least: args.minimum };
    peerfs_sys::ioctl(&root, FITRIM, &mut range).map_err(|error| {
        let refusal = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EOPNOTSUPP) => {
                format!("{} cannot discard; its blocks stay as they are", info["device"]["name"].as_str().unwrap_or("the device"))
            }
            Some(Errno::EPERM) => "not permitted; only root and the user who mounted it may".to_owned(),
            Some(Errno::EROFS) => "the mount is read-only".to_owned(),
            Some(Errno::EINVAL) => format!("byte {} is beyond the end of the volume", args.offset),
            _ => error.to_string(),
        };
        anyhow!("{}: {refusal}", what())
    })?;
    let bytes = range.length;
    if args.json {
        output::print_json(&json!({ "mountpoint": args.mountpoint, "bytes_discarded": bytes }))?;
    } else {
        output::print(&format!("{}: {} discarded\n", args.mountpoint.display(), output::bytes(bytes)))?;
    }
    Ok(ExitCode::SUCCESS)
}
