//! Revocation: close, tell, wait, cut, write back, forget. In that order.
//!
//! All chunks of a batch share one deadline. Those whose holders have all
//! acknowledged are cut at once, the others at the deadline, before anything is
//! written back; then each chunk is released as soon as its own window is.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use peerfs_abi::{Trigger, ioctl};

use super::Engine;
use super::grant::{DataGrant, Grant, GrantKind, Lent};
use super::holders::Acks;
use super::ledger::Revocation;
use super::object::{Active, Chunk, ChunkState, Object, ObjectState, Phase};
use super::plan::milliseconds;
use super::session::Session;
use crate::api::{RevokeReport, SessionId};
use crate::clock::Clock;
use crate::sync::{Mutex, lock, spawn_scoped, thread};
use crate::types::{GrantId, MappingId, Range};

/// Chunks to be revoked together.
pub(super) struct Batch {
    /// When the trigger came: the deadline and all latencies count from here.
    started: Duration,
    /// Ours to carry out.
    owned: Vec<Victim>,
    /// Being revoked or given up by others: wait until they are gone.
    others: Vec<(Arc<Object>, u64, u64)>,
    acks: Arc<Acks>,
}

struct Victim {
    lent: Arc<Lent>,
    /// Who held it.
    grants: Vec<Arc<Grant>>,
    range: Range,
    /// There may be something to write back.
    writable: bool,
    tick: u64,
}

/// Holders told between two looks at the clock.
const TOLD_AT_ONCE: usize = 1024;
/// Windows that are worth another thread to cut them.
const CUT_AT_ONCE: usize = 8;
/// Threads that cut, or write back, at the same time.
const WRITERS: usize = 4;

impl Batch {
    /// For a trigger that comes now.
    pub(super) fn new(clock: &dyn Clock) -> Batch {
        Batch { started: clock.now(), owned: Vec::new(), others: Vec::new(), acks: Arc::default() }
    }

    fn is_empty(&self) -> bool {
        self.owned.is_empty() && self.others.is_empty()
    }

    fn own(&mut self, active: &mut Active, gone: Option<&Arc<Grant>>) {
        let grants = active.holders.hand_over(&self.acks, self.owned.len(), gone);
        let (lent, range, writable, tick) = (active.lent.clone(), active.range, active.writable, active.tick);
        self.owned.push(Victim { lent, grants, range, writable, tick });
    }
}

impl Engine {
    /// Takes every chunk of the range into the batch. Maps that depend on no block yet are dropped.
    pub(super) fn seize_range(
        &self,
        object: &Arc<Object>,
        state: &mut ObjectState,
        range: Range,
        trigger: Trigger,
        batch: &mut Batch,
    ) {
        for number in state.overlapping(range) {
            self.seize(object, state, number, trigger, batch);
        }
    }

    /// Takes one chunk into the batch.
    pub(super) fn seize(&self, object: &Arc<Object>, state: &mut ObjectState, number: u64, trigger: Trigger, batch: &mut Batch) {
        self.seize_from(object, state, number, trigger, batch, None);
    }

    /// As `seize`; `gone` is a holder who gives the window up himself.
    fn seize_from(
        &self,
        object: &Arc<Object>,
        state: &mut ObjectState,
        number: u64,
        trigger: Trigger,
        batch: &mut Batch,
        gone: Option<&Arc<Grant>>,
    ) {
        let Some(mut chunk) = state.chunks.remove(&number) else {
            return;
        };
        let id = chunk.id;
        chunk.state = match chunk.state {
            ChunkState::Pending(pending) if pending.phase == Phase::Quiescing => {
                state.chunks.insert(number, Chunk { id, state: ChunkState::Pending(pending) });
                self.remove_chunk(object, state, number);
                return;
            }
            ChunkState::Pending(mut pending) => {
                pending.phase = Phase::Opening { aborted: true };
                batch.others.push((object.clone(), number, id));
                ChunkState::Pending(pending)
            }
            ChunkState::Revoking(active) => {
                batch.others.push((object.clone(), number, id));
                ChunkState::Revoking(active)
            }
            ChunkState::Active(mut active) => {
                batch.own(&mut active, gone);
                if matches!(trigger, Trigger::CpuAccess | Trigger::AperturePressure) {
                    self.thrash.record(object.id, number, self.clock.now());
                }
                ChunkState::Revoking(active)
            }
        };
        state.chunks.insert(number, chunk);
    }

    /// Revokes what was seized and waits for what others are ending. Returns when none of it is there any more.
    pub(super) fn carry_out(&self, batch: Batch, trigger: Trigger) -> RevokeReport {
        if batch.is_empty() {
            return RevokeReport::default();
        }
        let start = batch.started;
        let mut report = RevokeReport::default();
        if !batch.owned.is_empty() {
            let deadline = start + self.config.deadline;
            self.tell_holders(&batch.owned, deadline, trigger);
            report = self.await_and_cut(&batch, deadline, trigger);
            report.latency = self.clock.now().saturating_sub(start);
            self.write_back_and_forget(batch.owned);
            let write_back = self.clock.now().saturating_sub(start + report.latency);
            self.ledger.revoked(Revocation {
                at: start,
                trigger,
                revoked: report.revoked,
                enforced: report.enforced,
                cut: report.latency,
                write_back,
            });
        }
        for (object, number, id) in &batch.others {
            self.clock.wait(&object.gate, None, &mut || lock(&object.state).same(*number, *id).is_none());
        }
        report
    }

    /// Sequence numbers first: a holder that sees the event must find its grant stale. Stops at the deadline: who was
    /// not told by then is cut all the same.
    fn tell_holders(&self, victims: &[Victim], deadline: Duration, trigger: Trigger) {
        let mut woken: HashMap<SessionId, Arc<Session>> = HashMap::new();
        let holders = victims.iter().flat_map(|victim| victim.grants.iter().map(move |grant| (victim, grant)));
        for (count, (victim, grant)) in holders.enumerate() {
            if count % TOLD_AT_ONCE == TOLD_AT_ONCE - 1 && self.clock.now() >= deadline {
                break;
            }
            let Some(data) = grant.data().filter(|data| !data.acknowledged.load(Ordering::Relaxed)) else { continue };
            let session = grant.session();
            session.page.bump(data.slot as usize);
            let event = ioctl::Event {
                grant_id: grant.id.0,
                mapping_id: data.mapping.id.0,
                file_offset: victim.range.start,
                length: victim.range.length(),
                trigger: trigger.code(),
                deadline_ms: milliseconds(self.config.deadline),
            };
            if session.push_event(event, self.config.events_per_session) {
                woken.entry(session.id).or_insert_with(|| session.clone());
            }
        }
        woken.values().for_each(|session| (session.wake)());
    }

    /// Cuts each window when its last holder has acknowledged, and what is left at the deadline.
    fn await_and_cut(&self, batch: &Batch, deadline: Duration, trigger: Trigger) -> RevokeReport {
        let (victims, acks) = (&batch.owned, &batch.acks);
        let mut left = victims.len();
        while left > 0 && self.clock.wait(&acks.gate, Some(deadline), &mut || !acks.is_empty()) {
            let free = acks.take();
            left -= free.len();
            free.into_iter().for_each(|index| victims[index].lent.cut());
        }
        let mut report = RevokeReport::default();
        for victim in victims {
            report.revoked += victim.grants.len() as u64;
            if left > 0 {
                report.enforced += self.unacknowledged(victim) as u64;
            }
        }
        if left > 0 {
            cut_all(victims);
        }
        if report.enforced > 0 {
            tracing::info!("{} grants were cut without an acknowledgement ({})", report.enforced, trigger.name());
        }
        report
    }

    fn unacknowledged(&self, victim: &Victim) -> usize {
        let lent = &victim.lent;
        match lock(&lent.object.state).same(lent.number, lent.id).map(|chunk| &chunk.state) {
            Some(ChunkState::Revoking(active)) => active.holders.unacknowledged(),
            _ => 0,
        }
    }

    /// After the cut. Windows that nobody could write cost no device I/O, so they do not wait for those that do.
    fn write_back_and_forget(&self, victims: Vec<Victim>) {
        let (written, unwritten): (Vec<Victim>, Vec<Victim>) = victims.into_iter().partition(|victim| victim.writable);
        unwritten.into_iter().for_each(|victim| self.end(victim));
        let helpers = written.len().min(WRITERS).saturating_sub(1);
        let queue = Mutex::new(written);
        let work = || {
            while let Some(victim) = next_of(&queue) {
                self.end(victim);
            }
        };
        thread::scope(|scope| {
            for _ in 0..helpers {
                // Where no thread can be had, this one does all of it.
                let _ = spawn_scoped(scope, "peerfs-writeback", work);
            }
            work();
        });
    }

    /// Writes one window back and opens its chunk again.
    fn end(&self, victim: Victim) {
        let lent = &victim.lent;
        self.custody.release(lent.id);
        self.write_back_or_hold(lent.object.id, lent.window.clone());
        let export = self.export(lent.object.id);
        export.order.remove(victim.tick);
        export.reverse.remove(lent.window.runs(), lent.id);
        let mut state = lock(&lent.object.state);
        if state.same(lent.number, lent.id).is_some() {
            self.remove_chunk(&lent.object, &mut state, lent.number);
        }
        drop(state);
        self.retire(&lent.object);
        victim.grants.iter().for_each(|grant| self.forget_grant(grant));
    }

    /// Revokes this very chunk, if it is still there.
    pub(super) fn revoke_chunk(&self, object: &Arc<Object>, number: u64, id: u64, trigger: Trigger) {
        let mut batch = Batch::new(&*self.clock);
        {
            let mut state = lock(&object.state);
            if state.same(number, id).is_some() {
                self.seize(object, &mut state, number, trigger, &mut batch);
            }
        }
        self.carry_out(batch, trigger);
    }

    /// Revokes the windows of one mapping, for whoever holds them; pins stay. `None`: there is no such mapping.
    pub fn revoke_mapping(&self, mapping: MappingId, trigger: Trigger) -> Option<RevokeReport> {
        let mapping = self.mappings.get(mapping)?;
        let mut batch = Batch::new(&*self.clock);
        for grant in mapping.grants().into_iter().filter_map(|id| self.grant_of(id)) {
            let Some(DataGrant { lent, .. }) = grant.data() else { continue };
            let mut state = lock(&lent.object.state);
            if state.same(lent.number, lent.id).is_some() {
                self.seize(&lent.object, &mut state, lent.number, trigger, &mut batch);
            }
        }
        Some(self.carry_out(batch, trigger))
    }

    /// The importer has stopped using a grant that is being revoked. False: no such grant of this session.
    pub fn ack(&self, session: SessionId, grant: GrantId) -> bool {
        let Some(grant) = self.grant_of(grant).filter(|g| g.session().id == session) else {
            return false;
        };
        if let GrantKind::Pin(held) = &grant.kind {
            held.pin.acknowledge();
            return true;
        }
        let Some(data) = grant.data() else {
            return false;
        };
        let mut state = lock(&data.lent.object.state);
        if let Some(chunk) = state.same(data.lent.number, data.lent.id)
            && let ChunkState::Revoking(active) = &mut chunk.state
        {
            active.holders.acknowledge(&grant);
        }
        true
    }

    /// Grants that their holders gave up, or whose holders are gone: nobody is waited for. A window that others hold
    /// stays theirs.
    pub(super) fn release_grants(&self, grants: &[GrantId], trigger: Trigger) {
        let mut batch = Batch::new(&*self.clock);
        for id in grants {
            if let Some(grant) = self.grant_of(*id) {
                self.release(&grant, trigger, &mut batch);
            }
        }
        self.carry_out(batch, trigger);
    }

    fn release(&self, grant: &Arc<Grant>, trigger: Trigger, batch: &mut Batch) {
        if let GrantKind::Pin(held) = &grant.kind {
            return self.let_pin_go(grant, held);
        }
        let Some(data) = grant.data() else { return };
        let lent = &data.lent;
        let mut state = lock(&lent.object.state);
        let Some(chunk) = state.same(lent.number, lent.id) else {
            return;
        };
        match &mut chunk.state {
            ChunkState::Pending(_) => {}
            ChunkState::Revoking(active) => active.holders.acknowledge(grant),
            ChunkState::Active(active) if active.holders.is_only(grant) => {
                self.seize_from(&lent.object, &mut state, lent.number, trigger, batch, Some(grant));
            }
            ChunkState::Active(active) => {
                active.holders.remove(grant);
                drop(state);
                self.forget_grant(grant);
            }
        }
    }
}

/// Cuts what is left, by several threads where there is much: for each holder the kernel has a mapping to take away. Windows
/// of DMA engines come last, by a thread each as far as there are so many: a controller may let us wait.
fn cut_all(victims: &[Victim]) {
    let (slow, quick): (Vec<&Victim>, Vec<&Victim>) = victims.iter().partition(|victim| victim.lent.window.has_engines());
    cut_by(quick.len() / CUT_AT_ONCE, &quick);
    cut_by(slow.len(), &slow);
}

fn cut_by(helpers: usize, victims: &[&Victim]) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(victim) = victims.get(next.fetch_add(1, Ordering::Relaxed)) {
            victim.lent.cut();
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers.min(WRITERS - 1) {
            // Where no thread can be had, this one does all of it.
            let _ = spawn_scoped(scope, "peerfs-cut", work);
        }
        work();
    });
}

fn next_of(queue: &Mutex<Vec<Victim>>) -> Option<Victim> {
    lock(queue).pop()
}
