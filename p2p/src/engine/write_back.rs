//! Windows after the cut. One that the device would not take stays the
//! authoritative copy of its blocks and is tried again at the next flush.

use std::sync::Arc;

use peerfs_blockdev::{DeviceError, Window};

use super::Engine;
use super::object::ChunkState;
use crate::sync::{Mutex, lock};
use crate::types::{ObjectId, Range};

/// A window that was cut and could not be written back.
pub(super) struct HeldWindow {
    object: ObjectId,
    window: Arc<dyn Window>,
    /// Device ranges that the object gave up and that become free when the window has let go of them.
    orphaned: Mutex<Vec<Range>>,
}

impl Engine {
    pub(super) fn write_back_or_hold(&self, object: ObjectId, window: Arc<dyn Window>) {
        if let Err(err) = window.write_back() {
            tracing::error!(
                "object {}: what peers wrote could not be written back, it is tried again at the next flush: {err}",
                object.0
            );
            lock(&self.held).push(Arc::new(HeldWindow { object, window, orphaned: Mutex::default() }));
        }
    }

    /// A pin has ended: what its object gave up under it becomes free, unless its window still serves those blocks.
    pub(super) fn release_orphaned(&self, object: ObjectId, window: &Arc<dyn Window>, device_ranges: Vec<Range>) {
        if device_ranges.is_empty() {
            return;
        }
        {
            let held = lock(&self.held);
            if let Some(entry) = held.iter().find(|entry| Arc::ptr_eq(&entry.window, window)) {
                lock(&entry.orphaned).extend(device_ranges);
                return;
            }
        }
        if let Ok(exporter) = self.exporter(object) {
            exporter.release_blocks(object, &device_ranges);
        }
    }

    /// Tries every held window again. Blocks of a held window may belong to another object by now, so a failure is
    /// everybody's.
    pub(super) fn retry_held(&self) -> Result<(), DeviceError> {
        let held = lock(&self.held).clone();
        let mut result = Ok(());
        for entry in held {
            match entry.window.write_back() {
                Ok(()) => {
                    tracing::info!("object {}: a held window was written back", entry.object.0);
                    lock(&self.held).retain(|other| !Arc::ptr_eq(other, &entry));
                    let orphaned = std::mem::take(&mut *lock(&entry.orphaned));
                    self.release_orphaned(entry.object, &entry.window, orphaned);
                }
                Err(err) => result = Err(err),
            }
        }
        result
    }

    pub(super) fn held_count(&self) -> u64 {
        lock(&self.held).len() as u64
    }

    /// Copies what peers may have written to the device: fsync. Waits for revocations under way and tries held
    /// windows again.
    ///
    /// # Errors
    /// The device refused; nothing is lost, the call may be repeated.
    pub fn flush_object(&self, object: ObjectId) -> Result<(), DeviceError> {
        let mut result = Ok(());
        if let Some(object) = self.object_of(object) {
            let (mut live, mut ending) = (Vec::new(), Vec::new());
            for (number, chunk) in &lock(&object.state).chunks {
                match &chunk.state {
                    ChunkState::Pending(_) => {}
                    ChunkState::Active(active) => live.push(active.window.clone()),
                    ChunkState::Revoking(_) => ending.push((*number, chunk.id)),
                }
            }
            for window in live {
                if let Err(err) = window.flush() {
                    result = Err(err);
                }
            }
            result = result.and(self.flush_pins(&object));
            for (number, id) in ending {
                self.clock.wait(&object.gate, None, &mut || lock(&object.state).same(number, id).is_none());
            }
        }
        let held = self.retry_held();
        result.and(held)
    }
}
