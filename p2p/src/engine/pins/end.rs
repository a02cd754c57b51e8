//! The end of a pin: cut, write back, let the page cache in again, give blocks and
//! quota back. A dma-buf cannot be cut: where it is forced, its blocks go on
//! without it and the memory stays charged until its holders let go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use peerfs_abi::{Trigger, ioctl};

use super::pin::{Phase, Pin, PinGrant};
use crate::api::Event;
use crate::engine::Engine;
use crate::engine::grant::{Grant, GrantKind};
use crate::engine::ledger::Revocation;
use crate::engine::plan::milliseconds;
use crate::sync::lock;
use crate::types::{ObjectId, Range};

/// What a forced revocation of pins did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PinReport {
    /// Pins that were cut.
    pub cut: u64,
    /// Dma-bufs that lost their blocks; their holders keep the memory.
    pub detached: u64,
    /// Time to the last cut.
    pub latency: Duration,
}

impl Engine {
    /// Takes pins back by force: of a range of one object, or (`None`) all of the mount. Importers are told, and have
    /// the time of any revocation.
    pub fn revoke_pins(&self, object: Option<ObjectId>, range: Range, trigger: Trigger) -> PinReport {
        let concerned = |pin: &&Arc<Pin>| object.is_none_or(|id| pin.object == id && pin.parts.iter().any(|p| p.overlaps(range)));
        let start = self.clock.now();
        let pins: Vec<Arc<Pin>> = self.pins.all().iter().filter(concerned).cloned().collect();
        let ours: Vec<&Arc<Pin>> = pins.iter().filter(|pin| pin.begin_end()).collect();
        ours.iter().for_each(|pin| self.tell_pin(pin, trigger));
        let enforced = self.await_and_cut_pins(&ours, start + self.config.deadline);
        let latency = self.clock.now().saturating_sub(start);
        let detached = ours.iter().filter(|pin| pin.window.is_dmabuf()).count() as u64;
        let report = PinReport { cut: ours.len() as u64 - detached, detached, latency };
        ours.iter().for_each(|pin| self.finish_pin(pin));
        if !ours.is_empty() {
            let write_back = self.clock.now().saturating_sub(start + latency);
            let revoked = ours.len() as u64;
            self.ledger.revoked(Revocation { at: start, trigger, revoked, enforced, cut: latency, write_back });
        }
        // Those that others are ending.
        for pin in pins.iter().filter(|pin| !ours.iter().any(|own| Arc::ptr_eq(own, pin))) {
            self.clock.wait(&self.pins.gate, None, &mut || pin.phase() == Phase::Detached || !self.pins.has(pin));
        }
        report
    }

    /// Cuts each pin when it is acknowledged, and what is left at the deadline. Answers how many those were.
    fn await_and_cut_pins(&self, pins: &[&Arc<Pin>], deadline: Duration) -> u64 {
        // Nobody but the client it was made for is told, so nobody else is waited for.
        let (mut waiting, silent): (Vec<&Arc<Pin>>, Vec<_>) = pins.iter().partition(|pin| pin.grant().is_some());
        silent.iter().for_each(|pin| pin.window.cut());
        self.clock.wait(&self.pins.gate, Some(deadline), &mut || {
            for pin in waiting.extract_if(.., |pin| pin.is_acknowledged()) {
                pin.window.cut();
            }
            waiting.is_empty()
        });
        waiting.iter().for_each(|pin| pin.window.cut());
        waiting.len() as u64
    }

    /// Sequence number first: a holder that sees the event must find its grant stale.
    fn tell_pin(&self, pin: &Pin, trigger: Trigger) {
        let Some(grant) = pin.grant().and_then(|id| self.grant_of(id)) else { return };
        let GrantKind::Pin(held) = &grant.kind else { return };
        let session = grant.session();
        session.page.bump(held.slot as usize);
        let event: Event = ioctl::Event {
            grant_id: grant.id.0,
            mapping_id: held.mapping.id.0,
            file_offset: pin.range.start,
            length: pin.range.length(),
            trigger: trigger.code(),
            deadline_ms: milliseconds(self.config.deadline),
        };
        if session.push_event(event, self.config.events_per_session) {
            (session.wake)();
        }
    }

    /// The mapping or session of a pin's grant ended: a pin that was never handed over ends with it.
    pub(in crate::engine) fn let_pin_go(&self, grant: &Grant, held: &PinGrant) {
        self.forget_grant(grant);
        if held.pin.lose_mapping() {
            self.finish_pin(&held.pin);
        }
    }

    /// Ends pins that were handed over and that nobody holds any more.
    pub(in crate::engine) fn reap_pins(&self) {
        for pin in self.pins.all() {
            if pin.begin_end_if_unheld() {
                self.finish_pin(&pin);
            } else if pin.phase() == Phase::Detached && !pin.window.is_held() {
                pin.discharge();
                self.pins.remove(&pin);
            }
        }
    }

    /// The caller has claimed the end.
    fn finish_pin(&self, pin: &Arc<Pin>) {
        pin.window.cut();
        self.custody.release(pin.id);
        self.write_back_or_hold(pin.object, pin.window.clone());
        if let Ok(exporter) = self.exporter(pin.object)
            && pin.writable
        {
            // Private mappings of direct handles may have cached pages from before the last store. What cannot be
            // dropped now was the importer's before the pin's end, too.
            let _ = exporter.quiesce(pin.object, pin.range, None);
        }
        self.unpublish(pin);
        if let Some(grant) = pin.grant().and_then(|id| self.grant_of(id)) {
            self.forget_grant(&grant);
        }
        self.release_orphaned(pin.object, &pin.window, pin.take_orphaned());
        if pin.window.is_dmabuf() && pin.window.is_held() {
            pin.set_detached();
            self.pins.gate.notify();
        } else {
            pin.discharge();
            self.pins.remove(pin);
        }
    }

    /// From here on the object's blocks may be mapped, and the object opened, as if there had been no pin.
    fn unpublish(&self, pin: &Arc<Pin>) {
        let Some(object) = self.object_of(pin.object) else { return };
        let mut state = lock(&object.state);
        state.pins.live.retain(|other| !Arc::ptr_eq(other, pin));
        self.live_chunks.fetch_sub(1, Ordering::SeqCst);
        drop(state);
        object.gate.notify();
        self.retire(&object);
    }
}
