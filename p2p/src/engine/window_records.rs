//! Windows in the ledger: what the aperture's memory is used for.

use serde::Serialize;

use super::Engine;
use super::object::{Active, ChunkState};
use crate::sync::lock;
use crate::types::ObjectId;

/// A window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WindowRecord {
    /// Object (inode number).
    pub object: u64,
    /// Where in the object it begins, bytes.
    pub offset: u64,
    /// Its size, and what it takes of the aperture, bytes.
    pub length: u64,
    /// Bytes of blocks in it; the rest is holes.
    pub block_bytes: u64,
    /// Its first block on the device, bytes.
    pub device_offset: Option<u64>,
    /// Grants through which it is held; while it is `revoking`, those that did not acknowledge.
    pub holders: u64,
    /// Some holder may write, or could once.
    pub write: bool,
    /// `live`, or `revoking` from the trigger to the end of write-back.
    pub state: &'static str,
}

impl Engine {
    /// Windows but for those of pins, by object and offset: `most` of them, and how many are left out.
    pub fn window_records(&self, most: usize) -> (Vec<WindowRecord>, u64) {
        let mut records = Vec::new();
        let mut left_out = 0;
        for object in self.all_objects() {
            let state = lock(&object.state);
            for chunk in state.chunks.values() {
                let record = match &chunk.state {
                    ChunkState::Pending(_) => continue,
                    ChunkState::Active(active) => record(object.id, active, active.holders.len(), "live"),
                    ChunkState::Revoking(active) => record(object.id, active, active.holders.unacknowledged(), "revoking"),
                };
                if records.len() < most {
                    records.push(record);
                } else {
                    left_out += 1;
                }
            }
        }
        records.sort_unstable_by_key(|record| (record.object, record.offset));
        (records, left_out)
    }
}

fn record(object: ObjectId, active: &Active, holders: usize, state: &'static str) -> WindowRecord {
    let runs = active.window.runs();
    WindowRecord {
        object: object.0,
        offset: active.range.start,
        length: active.window.length(),
        block_bytes: runs.iter().map(|run| run.length).sum(),
        device_offset: runs.first().map(|run| run.device_offset),
        holders: holders as u64,
        write: active.writable,
        state,
    }
}
