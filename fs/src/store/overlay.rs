//! Changes that are not in the database yet, in key order: the *active* ones,
//! and during a commit the *frozen* ones it is writing.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;

/// A value; cheap to clone.
pub type Bytes = Arc<[u8]>;

/// Keys with their new value; `None` deletes.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// Estimate of a change's memory beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 96;

/// The two layers.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    active: Changes,
    active_bytes: usize,
    frozen: Arc<Changes>,
    frozen_bytes: usize,
}

fn entry_bytes(key: &[u8], value: Option<&Bytes>) -> usize {
    key.len() + value.map_or(0, |value| value.len()) + ENTRY_OVERHEAD_BYTES
}

impl Overlay {
    /// Adds one change to the active layer.
    pub(super) fn apply(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        let key_bytes = key.len();
        self.active_bytes += entry_bytes(&key, value.as_ref());
        if let Some(old) = self.active.insert(key, value) {
            let replaced = key_bytes + old.map_or(0, |old| old.len()) + ENTRY_OVERHEAD_BYTES;
            self.active_bytes -= replaced;
        }
    }

    /// Moves the active changes over the frozen ones (there are some only after a failed commit).
    pub(super) fn freeze(&mut self) -> Arc<Changes> {
        let active = std::mem::take(&mut self.active);
        if self.frozen.is_empty() {
            self.frozen = Arc::new(active);
        } else {
            Arc::make_mut(&mut self.frozen).extend(active);
        }
        self.frozen_bytes += std::mem::take(&mut self.active_bytes);
        self.frozen.clone()
    }

    /// The frozen changes are in the database.
    pub(super) fn thaw(&mut self) {
        self.frozen = Arc::default();
        self.frozen_bytes = 0;
    }

    /// Approximate memory of all changes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.active_bytes + self.frozen_bytes
    }

    /// True when the database is up to date.
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty() && self.frozen.is_empty()
    }

    /// The newest change of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Bytes>> {
        self.active.get(key).or_else(|| self.frozen.get(key)).cloned()
    }

    /// The changes in a range, newest only, up to the one that is the `limit`th value:
    /// a merge with the database needs no more for its first `limit` records.
    pub(super) fn scan(&self, range: &Range<Vec<u8>>, limit: usize) -> Vec<(Vec<u8>, Option<Bytes>)> {
        let bounds = (Bound::Included(&range.start), Bound::Excluded(&range.end));
        if range.start >= range.end {
            return Vec::new();
        }
        let mut active = self.active.range::<Vec<u8>, _>(bounds).peekable();
        let mut frozen = self.frozen.range::<Vec<u8>, _>(bounds).peekable();
        let mut found = Vec::new();
        let mut values = 0;
        while values < limit {
            let (key, value) = match (active.peek(), frozen.peek()) {
                (None, None) => break,
                (Some(_), None) => active.next(),
                (None, Some(_)) => frozen.next(),
                (Some((a, _)), Some((f, _))) => {
                    if a == f {
                        frozen.next();
                        active.next()
                    } else if a < f {
                        active.next()
                    } else {
                        frozen.next()
                    }
                }
            }
            .map_or_else(|| (Vec::new(), None), |(key, value)| (key.clone(), value.clone()));
            values += usize::from(value.is_some());
            found.push((key, value));
        }
        found
    }

    /// The changes at the end of a range, newest only, last first, up to the first value.
    pub(super) fn scan_back(&self, range: &Range<Vec<u8>>) -> Vec<(Vec<u8>, Option<Bytes>)> {
        let mut found = Vec::new();
        let mut end = range.end.clone();
        while range.start < end {
            let bounds = (Bound::Included(&range.start), Bound::Excluded(&end));
            let active = self.active.range::<Vec<u8>, _>(bounds).next_back();
            let frozen = self.frozen.range::<Vec<u8>, _>(bounds).next_back();
            let newest = match (active, frozen) {
                (Some(a), Some(f)) => Some(if a.0 >= f.0 { a } else { f }),
                (a, f) => a.or(f),
            };
            let Some((key, value)) = newest else { break };
            end.clone_from(key);
            found.push((key.clone(), value.clone()));
            if value.is_some() {
                break;
            }
        }
        found
    }
}
