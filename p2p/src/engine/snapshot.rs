//! The engine's state for people and metrics.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Engine;
use super::context::Context;
use super::ledger::{ContextRecord, MappingRecord, Snapshot, Totals, TriggerDistribution};
use super::mappings::Mapping;
use crate::moved::Moved;
use crate::types::ObjectId;

/// Mappings in a snapshot at most.
const MAPPINGS_LISTED: usize = 16 * 1024;

impl Engine {
    /// The ledger: who maps what, last refusals, what revocations cost.
    pub fn snapshot(&self) -> Snapshot {
        let now = self.clock.now();
        let mut contexts: Vec<ContextRecord> = self.contexts.iter().map(|entry| context_record(entry.value())).collect();
        contexts.sort_by_key(|record| record.context);
        let mut mappings: Vec<MappingRecord> =
            self.mappings.some(MAPPINGS_LISTED).iter().map(|mapping| mapping_record(mapping, now)).collect();
        mappings.sort_by_key(|record| (record.object, record.offset, record.mapping));
        Snapshot {
            sessions: self.sessions.len() as u64,
            contexts,
            mappings_left_out: (self.mappings.len() as u64).saturating_sub(mappings.len() as u64),
            mappings,
            windows: self.windows(),
            windows_held: self.held_count(),
            refusals: self.ledger.refusal_records(now),
            last_revocations: self.ledger.revocation_records(now),
            revocations: self.ledger.trigger_records(),
        }
    }

    /// The state in numbers.
    pub fn totals(&self) -> Totals {
        Totals {
            sessions: self.sessions.len() as u64,
            contexts: self.contexts.len() as u64,
            mappings: self.mappings.len() as u64,
            windows: self.windows(),
            windows_held: self.held_count(),
            revocations: self.ledger.trigger_records(),
            refused: self.ledger.refused(),
            moved: self.ledger.moved_total(),
        }
    }

    /// How long revocations took, by trigger; triggers that never fired are left out.
    pub fn revocation_distributions(&self) -> Vec<TriggerDistribution> {
        self.ledger.trigger_distributions()
    }

    /// Bytes moved for an object, as importers reported them.
    pub fn moved(&self, object: ObjectId) -> Moved {
        self.ledger.moved_of(object)
    }

    /// Grants revoked since the start, and those of them that were cut without an acknowledgement.
    pub fn revocation_totals(&self) -> (u64, u64) {
        self.ledger.totals()
    }

    /// Mappings, of one object or all, that hold at least one grant.
    pub fn mapping_count(&self, object: Option<ObjectId>) -> u64 {
        self.ledger.live_mappings(object)
    }
}

fn context_record(context: &Context) -> ContextRecord {
    ContextRecord {
        context: context.id.0,
        importer: context.importer.name.clone(),
        pid: context.owner.tgid,
        uid: context.owner.uid,
    }
}

fn mapping_record(mapping: &Mapping, now: Duration) -> MappingRecord {
    let (range, moved) = (mapping.range(), mapping.moved());
    MappingRecord {
        mapping: mapping.id.0,
        context: mapping.context.id.0,
        importer: mapping.context.importer.name.clone(),
        pid: mapping.context.owner.tgid,
        uid: mapping.context.owner.uid,
        object: mapping.object.0,
        offset: range.start,
        length: range.length(),
        flags: mapping.flags.bits(),
        age_ms: u64::try_from(now.saturating_sub(mapping.created()).as_millis()).unwrap_or(u64::MAX),
        grants: mapping.grant_count(),
        segments: mapping.segments.load(Ordering::Relaxed).into(),
        bytes_direct: moved.direct(),
        bytes_fallback: moved.fallback_total(),
        moved,
    }
}
