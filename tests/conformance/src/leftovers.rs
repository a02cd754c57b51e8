//! What a case may leave of what it made on a shared mount: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::kit::ScratchMount;

/// What is asked to end is gone after so long, or never.
const PATIENCE: Duration = Duration::from_secs(20);
/// What `info.json` counts, and none of which is left.
const COUNTED: [&str; 7] = ["sessions", "contexts", "mappings", "windows", "windows_held", "pins", "pinned_bytes"];

/// Open descriptors by what they are of.
type Descriptors = BTreeMap<String, usize>;

/// What the server and its guardian had open before a case.
pub(crate) struct Books(Descriptors);

impl Books {
    pub(crate) fn of(scratch: &ScratchMount) -> Result<Books> {
        Ok(Books(descriptors(scratch)?))
    }

    /// Waits until all is as it was: sessions end in the background once their last descriptor is closed.
    pub(crate) fn expect_balance(&self, scratch: &ScratchMount) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = self.left(scratch)?;
            if left.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "left behind: {}", left.join(", "));
            std::thread::yield_now();
        }
    }

    fn left(&self, scratch: &ScratchMount) -> Result<Vec<String>> {
        let info = scratch.info()?;
        let counted = COUNTED.iter().filter(|key| info[**key] != 0).map(|key| format!("{} {key}", info[*key]));
        Ok(counted.chain(more(&self.0, &descriptors(scratch)?)).collect())
    }
}

/// Of what there is more than before.
fn more(before: &Descriptors, now: &Descriptors) -> Vec<String> {
    let had = |what: &String| before.get(what).copied().unwrap_or(0);
    let kept = now.iter().filter(|(what, count)| **count > had(what));
    kept.map(|(what, count)| format!("{count} instead of {} {what}", had(what))).collect()
}

/// Of the server and of its guardian, which holds windows too.
fn descriptors(scratch: &ScratchMount) -> Result<Descriptors> {
    let server = scratch.server_pid()?;
    let mut found = Descriptors::new();
    for process in [server].into_iter().chain(children(server)?) {
        // A child may end, and a descriptor be closed, between the listing and the look.
        for entry in fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten() {
            if let Ok(target) = fs::read_link(entry.path()) {
                *found.entry(kind(&target.to_string_lossy())).or_default() += 1;
            }
        }
    }
    Ok(found)
}

/// The name without what differs from one to the next.
fn kind(target: &str) -> String {
    target.chars().filter(|character| !character.is_ascii_digit()).collect()
}

fn children(parent: i32) -> Result<Vec<i32>> {
    let of_parent =
        |status: &str| status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|id| id.trim() == parent.to_string()));
    let numbers = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |process: &i32| fs::read_to_string(format!("/proc/{process}/status")).is_ok_and(|status| of_parent(&status));
    Ok(numbers.filter(is_child).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<const N: usize>(open: [(&str, usize); N]) -> Descriptors {
        open.into_iter().map(|(what, count)| (kind(what), count)).collect()
    }

    #[test]
    fn what_came_is_left_and_what_went_is_not() {
        let before = of([("/memfd:window (deleted)", 2), ("socket:[17]", 3)]);
        assert!(more(&before, &of([("/memfd:window (deleted)", 2), ("socket:[4711]", 2)])).is_empty());
        assert_eq!(
            more(&before, &of([("socket:[1]", 4), ("/proc/12/mem", 1)])),
            ["1 instead of 0 /proc//mem", "4 instead of 3 socket:[]"]
        );
    }
}
