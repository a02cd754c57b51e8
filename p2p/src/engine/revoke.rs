//! Revocation: close, tell, wait, cut, write back, forget. In that order.

use std::sync::Arc;
use std::time::Duration;

use peerfs_abi::{Trigger, ioctl};
use peerfs_blockdev::Window;

use super::Engine;
use super::grant::Grant;
use super::object::{Active, Chunk, ChunkState, Object, ObjectState, Phase};
use super::plan::milliseconds;
use crate::api::RevokeReport;
use crate::sync::lock;
use crate::types::{GrantId, Range};

/// Chunks to be revoked together.
#[derive(Default)]
pub(super) struct Batch {
    /// Ours to carry out.
    owned: Vec<Victim>,
    /// Being revoked or given up by others: wait until they are gone.
    others: Vec<(Arc<Object>, u64, u64)>,
}

struct Victim {
    object: Arc<Object>,
    number: u64,
    id: u64,
    window: Arc<dyn Window>,
    grants: Vec<Arc<Grant>>,
    range: Range,
    tick: u64,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.owned.is_empty() && self.others.is_empty()
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
            ChunkState::Active(active) => {
                batch.owned.push(victim(object, number, id, &active));
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
        let start = self.clock.now();
        let mut report = RevokeReport::default();
        if !batch.owned.is_empty() {
            self.tell_holders(&batch.owned, trigger);
            report = self.await_and_cut(&batch.owned, start, trigger);
            for victim in &batch.owned {
                self.write_back_or_hold(victim.object.id, victim.window.clone());
            }
            let write_back = self.clock.now().saturating_sub(start + report.latency);
            self.ledger.revoked(trigger, report.revoked, report.enforced, report.latency, write_back);
            batch.owned.iter().for_each(|victim| self.forget(victim));
        }
        for (object, number, id) in &batch.others {
            self.clock.wait(&object.gate, None, &mut || lock(&object.state).same(*number, *id).is_none());
        }
        report
    }

    /// Sequence numbers first: a holder that sees the event must find its grant stale.
    fn tell_holders(&self, victims: &[Victim], trigger: Trigger) {
        let mut woken: Vec<Arc<super::session::Session>> = Vec::new();
        for victim in victims {
            for grant in self.unacknowledged(victim) {
                let Some(data) = grant.data() else { continue };
                grant.session.page.bump(data.slot.number as usize);
                let event = ioctl::Event {
                    grant_id: grant.id.0,
                    mapping_id: data.mapping.id.0,
                    file_offset: victim.range.start,
                    length: victim.range.length(),
                    trigger: trigger.code(),
                    deadline_ms: milliseconds(self.config.deadline),
                };
                let told = grant.session.push_event(event, self.config.events_per_session);
                if told && !woken.iter().any(|session| session.id == grant.session.id) {
                    woken.push(grant.session.clone());
                }
            }
        }
        woken.iter().for_each(|session| (session.wake)());
    }

    /// One deadline for all of them.
    fn await_and_cut(&self, victims: &[Victim], start: Duration, trigger: Trigger) -> RevokeReport {
        let deadline = start + self.config.deadline;
        let mut report = RevokeReport::default();
        for victim in victims {
            self.clock.wait(&victim.object.gate, Some(deadline), &mut || self.unacknowledged(victim).is_empty());
        }
        for victim in victims {
            let hung = self.unacknowledged(victim);
            report.enforced += hung.len() as u64;
            report.revoked += victim.grants.len() as u64;
            victim.window.cut();
        }
        report.latency = self.clock.now().saturating_sub(start);
        if report.enforced > 0 {
            tracing::info!("{} grants were cut without an acknowledgement ({})", report.enforced, trigger.name());
        }
        victims.iter().for_each(|victim| self.custody.release(victim.id));
        report
    }

    fn unacknowledged(&self, victim: &Victim) -> Vec<Arc<Grant>> {
        let mut state = lock(&victim.object.state);
        match state.same(victim.number, victim.id).map(|chunk| &chunk.state) {
            Some(ChunkState::Revoking(active)) => {
                active.holders.iter().filter(|holder| !holder.acked).map(|holder| holder.grant.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn forget(&self, victim: &Victim) {
        victim.grants.iter().for_each(|grant| self.forget_grant(grant));
        let export = self.export(victim.object.id);
        export.order.remove(victim.tick);
        export.reverse.remove(victim.window.runs(), victim.id);
        let mut state = lock(&victim.object.state);
        if state.same(victim.number, victim.id).is_some() {
            self.remove_chunk(&victim.object, &mut state, victim.number);
        }
        drop(state);
        self.retire(&victim.object);
    }

    /// Revokes this very chunk, if it is still there.
    pub(super) fn revoke_chunk(&self, object: &Arc<Object>, number: u64, id: u64, trigger: Trigger) {
        let mut batch = Batch::default();
        {
            let mut state = lock(&object.state);
            if state.same(number, id).is_some() {
                self.seize(object, &mut state, number, trigger, &mut batch);
            }
        }
        self.carry_out(batch, trigger);
    }

    /// The importer has stopped using a grant that is being revoked. False: no such grant of this session.
    pub fn ack(&self, session: crate::api::SessionId, grant: GrantId) -> bool {
        let Some(grant) = self.grant_of(grant).filter(|g| g.session.id == session) else {
            return false;
        };
        let Some(data) = grant.data() else {
            return false;
        };
        let mut state = lock(&data.object.state);
        if let Some(chunk) = state.same(data.chunk.0, data.chunk.1)
            && let ChunkState::Revoking(active) = &mut chunk.state
        {
            acknowledge(active, grant.id);
            data.object.gate.notify();
        }
        true
    }

    /// Grants that their holders gave up, or whose holders are gone: nobody is waited for. A window that others hold
    /// stays theirs.
    pub(super) fn release_grants(&self, grants: &[GrantId], trigger: Trigger) {
        let mut batch = Batch::default();
        for id in grants {
            if let Some(grant) = self.grant_of(*id) {
                self.release(&grant, trigger, &mut batch);
            }
        }
        self.carry_out(batch, trigger);
    }

    fn release(&self, grant: &Arc<Grant>, trigger: Trigger, batch: &mut Batch) {
        let Some(data) = grant.data() else { return };
        let (number, id) = data.chunk;
        let mut state = lock(&data.object.state);
        let Some(chunk) = state.same(number, id) else {
            return;
        };
        match &mut chunk.state {
            ChunkState::Pending(_) => {}
            ChunkState::Revoking(active) => {
                acknowledge(active, grant.id);
                data.object.gate.notify();
            }
            ChunkState::Active(active) if active.holders.iter().all(|h| h.grant.id == grant.id) => {
                acknowledge(active, grant.id);
                self.seize(&data.object, &mut state, number, trigger, batch);
            }
            ChunkState::Active(active) => {
                active.holders.retain(|holder| holder.grant.id != grant.id);
                drop(state);
                self.forget_grant(grant);
            }
        }
    }
}

fn acknowledge(active: &mut Active, grant: GrantId) {
    for holder in &mut active.holders {
        holder.acked |= holder.grant.id == grant;
    }
}

fn victim(object: &Arc<Object>, number: u64, id: u64, active: &Active) -> Victim {
    Victim {
        object: object.clone(),
        number,
        id,
        window: active.window.clone(),
        grants: active.holders.iter().map(|holder| holder.grant.clone()).collect(),
        range: active.range,
        tick: active.tick,
    }
}
