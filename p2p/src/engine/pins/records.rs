//! Pins in the ledger.

use std::time::Duration;

use serde::Serialize;

use super::pin::{Phase, Pin};
use crate::api::GrantObject;
use crate::engine::Engine;
use crate::types::{ExportId, ObjectId};

/// A pin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PinRecord {
    /// Its number.
    pub pin: u64,
    /// Object (inode number).
    pub object: u64,
    /// Start of its range when it was made, bytes.
    pub offset: u64,
    /// Length of the range, bytes.
    pub length: u64,
    /// Bytes of memory, and of the quota.
    pub bytes: u64,
    /// Importer's name.
    pub importer: String,
    /// Process that made it; others may hold it by now.
    pub pid: u32,
    /// User whose quota it counts against.
    pub uid: u32,
    /// `memfd` or `dmabuf`.
    pub kind: &'static str,
    /// The importer may write.
    pub write: bool,
    /// `live`; `orphaned`: the file gave up blocks of it; `detached`: the file goes on without it.
    pub state: &'static str,
    /// Age, milliseconds.
    pub age_ms: u64,
}

/// Pinned bytes of the files of a mount, and the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PinTotals {
    /// Pins.
    pub pins: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Limit of the mount, bytes.
    pub quota_bytes: u64,
    /// Limit of each user, bytes.
    pub quota_user_bytes: u64,
}

impl Engine {
    /// All pins, oldest first.
    pub fn pins(&self) -> Vec<PinRecord> {
        let now = self.clock.now();
        self.pins.all().iter().map(|pin| record(pin, now)).collect()
    }

    /// What is pinned of files.
    pub fn pin_totals(&self) -> PinTotals {
        let limits = self.pin_limits(ObjectId(0));
        PinTotals {
            pins: self.pins.all().len() as u64,
            used_bytes: self.pins.quota.used(ExportId::Files),
            quota_bytes: limits.mount,
            quota_user_bytes: limits.user,
        }
    }
}

fn record(pin: &Pin, now: Duration) -> PinRecord {
    PinRecord {
        pin: pin.id,
        object: pin.object.0,
        offset: pin.range.start,
        length: pin.range.length(),
        bytes: pin.length(),
        importer: pin.importer.clone(),
        pid: pin.owner.tgid,
        uid: pin.owner.uid,
        kind: if pin.form() == GrantObject::PinnedDmabuf { "dmabuf" } else { "memfd" },
        write: pin.writable,
        state: match pin.phase() {
            Phase::Detached => "detached",
            Phase::Live | Phase::Ending if pin.is_orphaned() => "orphaned",
            Phase::Live | Phase::Ending => "live",
        },
        age_ms: u64::try_from(now.saturating_sub(pin.created).as_millis()).unwrap_or(u64::MAX),
    }
}
