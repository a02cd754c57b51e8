//! One look at a mount: its reports, as `info --json`, `mappings --json` and `devmem --json` show them to the calling user.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::commands::server_info;

/// The reports of one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When, counted from an arbitrary start.
    pub at: Duration,
    /// `info --json`.
    pub info: Value,
    /// `mappings --json`, or why the caller may not see it.
    pub ledger: Result<Value, String>,
    /// `devmem --json`; null without device memory.
    pub device_memory: Value,
}

impl Sample {
    /// Asks the server of the mount. Fails where it has gone, or nothing is mounted.
    pub fn take(mountpoint: &Path, start: Instant) -> Result<Sample> {
        let info = server_info::info(mountpoint).map_err(anyhow::Error::from);
        let info = info.with_context(|| format!("top {}", mountpoint.display()))?;
        let ledger = server_info::mappings(mountpoint).map_err(|error| error.root_cause().to_string());
        let device_memory = match info["device_memory"].is_null() {
            true => Value::Null,
            false => server_info::device_memory(mountpoint).unwrap_or_default(),
        };
        Ok(Sample { at: start.elapsed(), info, ledger, device_memory })
    }
}
