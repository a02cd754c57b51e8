//! The mapping engine: takes decisions into effect, and takes them back.
//!
//! Locks, outermost first: the state of one object; then leaves (session,
//! mapping, order of use, reverse map, ledger, shards of the tables other than
//! `objects`). A shard of `objects` is locked before an object's state, never
//! after; and a session's state before a shard of contexts or grants, so that a
//! session that closes leaves no context behind. No lock is held across a wait,
//! device I/O, or a call of the exporter, of custody or of a session's wake-up.

use std::sync::Arc;

use crate::api::{EngineConfig, EngineParts, SessionId};
use crate::clock::Clock;
use crate::custody::Custody;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{DashMap, Mutex, MutexGuard, lock};
use crate::types::{ContextId, ExportId, GrantId, ObjectId};

mod build;
mod closing;
mod coherence;
mod context;
mod device_state;
mod enter;
mod events;
mod evict;
mod export;
mod grant;
mod grant_set;
mod holders;
mod home;
mod ledger;
mod map;
mod mappings;
mod object;
mod order;
mod pins;
mod plan;
mod revoke;
mod ring;
mod session;
mod snapshot;
mod thrash;
mod user;
mod wide;
mod window_records;
mod write_back;

#[cfg(test)]
mod tests;

pub use closing::ClosedRange;
pub use ledger::{
    ContextRecord, Distribution, Latency, MappingRecord, RefusalRecord, RevocationRecord, Snapshot, Totals, TriggerDistribution,
    TriggerRecord,
};

pub use pins::{PinQuota, PinRecord, PinReport, PinTotals};
pub use window_records::WindowRecord;

use context::Context;
use export::Export;
use grant::Grant;
use ledger::Ledger;
use mappings::MappingTable;
use object::{Object, ObjectState};
use pins::Pins;
use session::Session;
use thrash::Thrash;
use user::User;
use wide::WideObjects;
use write_back::HeldWindow;

/// The engine of one mount.
pub struct Engine {
    config: EngineConfig,
    custody: Arc<dyn Custody>,
    clock: Arc<dyn Clock>,
    context_ids: Arc<dyn crate::api::ContextIds>,
    /// By [`ExportId`].
    exports: [Export; ExportId::COUNT],
    sessions: DashMap<SessionId, Arc<Session>>,
    /// Users with sessions.
    users: DashMap<u32, Arc<User>>,
    contexts: DashMap<ContextId, Arc<Context>>,
    grants: DashMap<GrantId, Arc<Grant>>,
    mappings: MappingTable,
    objects: DashMap<ObjectId, Arc<Object>>,
    /// Chunks in any state, over all objects, and pins.
    live_chunks: AtomicUsize,
    pins: Pins,
    thrash: Thrash,
    wide: WideObjects,
    ledger: Ledger,
    held: Mutex<Vec<Arc<HeldWindow>>>,
    shutting_down: AtomicBool,
    /// Source of session, chunk and closer numbers.
    next_number: AtomicU64,
}

impl Engine {
    /// An engine with nothing mapped.
    pub fn new(config: EngineConfig, parts: EngineParts) -> Arc<Engine> {
        Arc::new_cyclic(|engine| Engine {
            pins: Pins::new(engine.clone()),
            thrash: Thrash::new(config.thrash_revocations, config.thrash_window),
            ledger: Ledger::new(config.refusals_kept, config.counted_objects),
            config,
            custody: parts.custody,
            clock: parts.clock,
            context_ids: parts.context_ids,
            exports: [Export::of(parts.aperture), Export::default()],
            sessions: DashMap::new(),
            users: DashMap::new(),
            contexts: DashMap::new(),
            grants: DashMap::new(),
            mappings: MappingTable::new(),
            objects: DashMap::new(),
            live_chunks: AtomicUsize::new(0),
            wide: WideObjects::default(),
            held: Mutex::default(),
            shutting_down: AtomicBool::new(false),
            next_number: AtomicU64::new(1),
        })
    }

    fn new_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn new_grant_id(&self) -> Option<GrantId> {
        match peerfs_sys::random_u64() {
            // Zero means "no grant" in answers.
            Ok(bits) => Some(GrantId((bits & GrantId::MAX).max(1))),
            Err(err) => {
                tracing::error!("no grant can be named: getrandom: {err}");
                None
            }
        }
    }

    /// The object, made when it has no entry.
    fn object_entry(&self, id: ObjectId) -> Arc<Object> {
        if let Some(object) = self.objects.get(&id) {
            return object.value().clone();
        }
        self.objects.entry(id).or_insert_with(|| Object::new(id)).value().clone()
    }

    fn object_of(&self, id: ObjectId) -> Option<Arc<Object>> {
        Some(self.objects.get(&id)?.value().clone())
    }

    fn all_objects(&self) -> Vec<Arc<Object>> {
        self.objects.iter().map(|entry| entry.value().clone()).collect()
    }

    fn objects_of(&self, export: ExportId) -> Vec<Arc<Object>> {
        self.objects.iter().filter(|entry| entry.key().export() == export).map(|entry| entry.value().clone()).collect()
    }

    /// Calls `work` on the state of the object's current entry.
    fn with_object<T>(&self, id: ObjectId, work: impl FnOnce(&Arc<Object>, &mut MutexGuard<'_, ObjectState>) -> T) -> T {
        loop {
            let object = self.object_entry(id);
            let mut state = lock(&object.state);
            if !state.dead {
                return work(&object, &mut state);
            }
        }
    }

    /// Takes the object out of the table if nothing is left in it.
    fn retire(&self, object: &Arc<Object>) {
        self.objects.remove_if(&object.id, |_, found| {
            let mut state = lock(&found.state);
            let gone = Arc::ptr_eq(found, object) && state.is_empty();
            state.dead |= gone;
            gone
        });
    }

    /// Takes a chunk out of its object and tells whoever waits for that.
    fn remove_chunk(&self, object: &Object, state: &mut ObjectState, number: u64) {
        if state.chunks.remove(&number).is_some() {
            self.live_chunks.fetch_sub(1, Ordering::SeqCst);
            object.gate.notify();
        }
    }
}
