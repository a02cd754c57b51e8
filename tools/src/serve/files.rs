//! Files of a mount, as many as a page can show, and what would be decided for each.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::args::RequestArgs;
use crate::commands::query::{explained_json, segment_json};
use crate::explain::Facts;
use crate::ranges;

/// Files listed at most.
const FILES_MAX: usize = 500;
/// Names looked at for that.
const NAMES_MAX: usize = 20_000;
/// Segments shown of one file.
const SEGMENTS_MAX: usize = 2000;
/// What asking for decisions may take in one go; what was not asked for is next.
const DECIDING_TIME: Duration = Duration::from_millis(200);
/// The importer that is decided for.
const IMPORTER: &str = "cpu";

/// The files that were there at the last look, by inode number.
pub struct Files {
    mountpoint: PathBuf,
    known: Mutex<BTreeMap<u64, Known>>,
}

struct Known {
    path: PathBuf,
    size: u64,
    /// What was decided, and when.
    decision: Option<(Instant, Value)>,
}

impl Files {
    /// Of this mount, none of them known yet.
    pub fn new(mountpoint: PathBuf) -> Files {
        Files { mountpoint, known: Mutex::default() }
    }

    /// Where the volume is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Looks again.
    ///
    /// # Errors
    /// The mount point cannot be listed.
    pub fn list(&self) -> Result<Value> {
        let (found, complete) = walk(&self.mountpoint)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *known);
        for (path, metadata) in found {
            let decision = before.remove(&metadata.ino()).and_then(|known| known.decision);
            known.insert(metadata.ino(), Known { path, size: metadata.len(), decision });
        }
        decide_oldest_first(&mut known);
        let files: Vec<Value> = known.iter().map(|(inode, known)| self.file_json(*inode, known)).collect();
        Ok(json!({ "files": files, "complete": complete }))
    }

    /// The decision table of a listed file; `None`: it is not listed.
    pub fn segments(&self, inode: u64) -> Option<Result<Value>> {
        let path = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&inode)?.path.clone();
        Some(self.segments_of(&path))
    }

    fn segments_of(&self, path: &Path) -> Result<Value> {
        let request = request(path);
        let table = ranges::query(&request)?;
        let shown: Vec<Value> = table.segments.iter().take(SEGMENTS_MAX).map(|segment| segment_json(segment, true)).collect();
        Ok(json!({
            "path": self.name(path),
            "importer": IMPORTER,
            "segments": shown,
            "segments_left_out": table.segments.len().saturating_sub(SEGMENTS_MAX),
            "refusals": explained_json(&request, &table, &Facts::of(&request, &table)),
            "bytes_direct": table.direct_bytes(),
            "end": table.end,
        }))
    }

    fn file_json(&self, inode: u64, known: &Known) -> Value {
        json!({
            "inode": inode,
            "path": self.name(&known.path),
            "size": known.size,
            "decision": known.decision.as_ref().map(|decision| &decision.1),
        })
    }

    /// A path below the mount point.
    fn name(&self, path: &Path) -> String {
        path.strip_prefix(&self.mountpoint).unwrap_or(path).display().to_string()
    }
}

/// Regular files of the mount, those near its root first, and whether that is all of them. Directories that this user may
/// not list, and other mounts, are passed over.
fn walk(mountpoint: &Path) -> Result<(Vec<(PathBuf, Metadata)>, bool)> {
    let device = fs::metadata(mountpoint).with_context(|| mountpoint.display().to_string())?.dev();
    let mut found = Vec::new();
    let mut directories = VecDeque::from([mountpoint.to_owned()]);
    let mut names = 0;
    while let Some(directory) = directories.pop_front() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            names += 1;
            if names > NAMES_MAX || found.len() == FILES_MAX {
                return Ok((found, false));
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() && metadata.dev() == device {
                directories.push_back(entry.path());
            } else if metadata.is_file() {
                found.push((entry.path(), metadata));
            }
        }
    }
    Ok((found, true))
}

fn decide_oldest_first(known: &mut BTreeMap<u64, Known>) {
    let deadline = Instant::now() + DECIDING_TIME;
    let mut files: Vec<&mut Known> = known.values_mut().collect();
    files.sort_by_key(|known| known.decision.as_ref().map(|decision| decision.0));
    for known in files {
        let now = Instant::now();
        if now >= deadline {
            break;
        }
        known.decision = Some((now, decision(known)));
    }
}

fn decision(known: &Known) -> Value {
    if known.size == 0 {
        return json!({ "direct": 0, "fallback": 0, "reasons": {} });
    }
    match ranges::query(&request(&known.path)) {
        Ok(table) => {
            let reasons: BTreeMap<&str, u64> = crate::commands::query::refused(&table.segments)
                .into_iter()
                .map(|(reason, bytes)| (reason.name(), bytes))
                .collect();
            json!({ "direct": table.direct_bytes(), "fallback": reasons.values().sum::<u64>(), "reasons": reasons })
        }
        Err(error) => json!({ "error": crate::failure::line(&error) }),
    }
}

/// What is asked of each file.
fn request(path: &Path) -> RequestArgs {
    RequestArgs {
        file: path.to_owned(),
        offset: 0,
        length: None,
        importer: IMPORTER.to_owned(),
        write: false,
        pin: false,
        atomic: false,
        json: true,
    }
}
