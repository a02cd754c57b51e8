//! Making one pin: publish it, take back what is in its way, prove the page cache
//! empty and count the handles, and only then open its window. Published first, so
//! that whoever opens a file either counts before we look or sees us.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_abi::{Reason, Trigger};
use peerfs_blockdev::{Aperture, Window, WindowError};

use super::object::{PendingPhase, PendingPin};
use super::pin::{Pin, PinGrant, PinParts};
use super::quota::Charge;
use crate::api::{GrantPart, MapSegment};
use crate::engine::Engine;
use crate::engine::build::{ChunkJob, Failure, Layout, segments, segments_of_fallbacks};
use crate::engine::enter::{Refusal, Ticket};
use crate::engine::grant::Grant;
use crate::engine::object::{Object, valid_length};
use crate::engine::plan::{Outlook, is_write, milliseconds};
use crate::engine::revoke::Batch;
use crate::sync::lock;
use crate::types::{MapRequest, Range};

/// A published pin without a window. Given up when dropped, unless it became live.
struct Claim<'a> {
    engine: &'a Engine,
    object: Arc<Object>,
    id: u64,
    cover: Range,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.object.state);
        if state.pins.pending(self.id).is_some() {
            state.pins.pending.retain(|pending| pending.id != self.id);
            self.engine.live_chunks.fetch_sub(1, Ordering::SeqCst);
        }
        state.closed.retain(|(number, _)| *number != self.id);
        drop(state);
        self.object.gate.notify();
        self.engine.retire(&self.object);
    }
}

enum Look<'a> {
    Claimed(Claim<'a>),
    Busy,
    Wait(Arc<Object>),
}

impl Engine {
    /// Pins the direct stretches of the job, which one window can hold.
    pub(super) fn pin(&self, job: &ChunkJob<'_>) -> Result<Vec<MapSegment>, Refusal> {
        for _ in 0..self.config.map_attempts {
            let mut ticket = self.draw_ticket(job.context).ok_or(Reason::ImporterQuota)?;
            let claim = self.claim_pin(job).ok_or_else(|| self.pin_busy())?;
            let cover = claim.cover;
            match self.build_pin(job, claim, &mut ticket) {
                Ok(segments) => return self.granted(job, ticket, segments),
                Err(Failure::Again) => {}
                Err(Failure::Refused(reason)) => return Err(reason.into()),
                Err(Failure::Full { needed_bytes }) => {
                    let request = MapRequest { range: cover, ..job.request.clone() };
                    if !self.make_room(&ChunkJob { request: &request, ..*job }, needed_bytes) {
                        return Err(Reason::ApertureFull.into());
                    }
                }
            }
        }
        Err(self.pin_busy())
    }

    fn pin_busy(&self) -> Refusal {
        Refusal { reason: Reason::Busy, retry_after_ms: milliseconds(self.config.deadline) }
    }

    /// Publishes the pin, once nobody has its range closed. `None`: that took too long, or it is pinned already.
    fn claim_pin(&self, job: &ChunkJob<'_>) -> Option<Claim<'_>> {
        let needed = job.needed();
        let cover = Range { start: needed.first()?.start, end: needed.last()?.end };
        let limit = self.clock.now() + self.config.busy_wait;
        loop {
            match self.look_for_pin(job, &needed, cover) {
                Look::Claimed(claim) => return Some(claim),
                Look::Busy => return None,
                Look::Wait(object) => {
                    let open = &mut || {
                        let state = lock(&object.state);
                        state.dead || !state.is_closed(cover)
                    };
                    if !self.clock.wait(&object.gate, Some(limit), open) {
                        return None;
                    }
                }
            }
        }
    }

    fn look_for_pin(&self, job: &ChunkJob<'_>, needed: &[Range], cover: Range) -> Look<'_> {
        self.with_object(job.request.object, |object, state| {
            let pinned = state.pins.pinned(cover);
            if self.shutting_down.load(Ordering::SeqCst) || needed.iter().any(|n| pinned.iter().any(|p| p.overlaps(*n))) {
                return Look::Busy;
            }
            if state.is_closed(cover) {
                return Look::Wait(object.clone());
            }
            let id = self.new_number();
            let phase = PendingPhase::Quiescing { aborted: false };
            self.live_chunks.fetch_add(1, Ordering::SeqCst);
            state.pins.pending.push(PendingPin { id, cover, write: is_write(job.request), phase, new_size: None });
            state.closed.push((id, cover));
            Look::Claimed(Claim { engine: self, object: object.clone(), id, cover })
        })
    }

    fn build_pin(&self, job: &ChunkJob<'_>, claim: Claim<'_>, ticket: &mut Ticket) -> Result<Vec<MapSegment>, Failure> {
        let aperture = self.export(job.request.object).aperture().ok_or(Reason::NoAperture)?;
        self.clear_the_way(&claim);
        let respected = self.quiesce(job, claim.cover)?;
        claim.begin_opening()?;
        let request = MapRequest { range: claim.cover, ..job.request.clone() };
        let info = aperture.info();
        let (survey, decisions) = self
            .decide_range(job.exporter, &request, &job.context.importer, Some(&info), &Outlook::quiesced(respected))
            .ok_or(Reason::Hole)?;
        let Some(layout) = Layout::of(&decisions) else {
            return Ok(segments_of_fallbacks(job.decisions, &decisions));
        };
        let charge = self.charge_pin(job, layout.range.length()).ok_or(Reason::PinQuota)?;
        let window = self.open_pin(&**aperture, job, &layout, valid_length(layout.range, survey.size))?;
        if let Err(err) = self.hold_pin(claim.id, &*window) {
            tracing::error!("a pin was not taken into custody, so it is not granted: {err}");
            self.discard((claim.object.id, claim.id), window, layout.range, survey.size);
            return Err(Failure::Refused(Reason::Busy));
        }
        if is_write(job.request) {
            window.set_writable();
        }
        let start = layout.range.start;
        let part = self.activate_pin(job, &claim, layout, window, survey.size, charge, ticket)?;
        Ok(segments(job.decisions, &decisions, part, start))
    }

    /// Dynamic windows of the range make way.
    fn clear_the_way(&self, claim: &Claim<'_>) {
        let mut batch = Batch::new(&*self.clock);
        {
            let mut state = lock(&claim.object.state);
            self.seize_range(&claim.object, &mut state, claim.cover, Trigger::Relocation, &mut batch);
        }
        self.carry_out(batch, Trigger::Relocation);
    }

    fn charge_pin(&self, job: &ChunkJob<'_>, bytes: u64) -> Option<Charge> {
        let object = job.request.object;
        self.pins.quota.charge(object.export(), job.context.owner.uid, bytes, self.pin_limits(object))
    }

    /// A dma-buf is always writable, so what is only to be read never becomes one.
    fn open_pin(
        &self,
        aperture: &dyn Aperture,
        job: &ChunkJob<'_>,
        layout: &Layout,
        valid: u64,
    ) -> Result<Arc<dyn Window>, Failure> {
        if is_write(job.request) && self.config.dmabuf_pins {
            match aperture.open_dmabuf(layout.spec(job, valid)) {
                Ok(window) => return Ok(window),
                Err(WindowError::Unsupported { reason }) => tracing::info!("a pin becomes a memory file: no dma-buf: {reason}"),
                Err(err) => tracing::debug!("no dma-buf: {err}"),
            }
        }
        self.open(aperture, job, layout, valid)
    }

    /// The guardian could not cut a dma-buf, so it does not keep one.
    fn hold_pin(&self, id: u64, window: &dyn Window) -> std::io::Result<()> {
        if window.is_dmabuf() {
            return Ok(());
        }
        self.take_into_custody(id, window)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a pin come from as many places")]
    fn activate_pin(
        &self,
        job: &ChunkJob<'_>,
        claim: &Claim<'_>,
        layout: Layout,
        window: Arc<dyn Window>,
        size: u64,
        charge: Charge,
        ticket: &mut Ticket,
    ) -> Result<GrantPart, Failure> {
        let mut state = lock(&claim.object.state);
        let pending = state.pins.pending(claim.id);
        let (new_size, aborted) =
            pending.map_or((None, true), |p| (p.new_size, p.phase != PendingPhase::Opening { aborted: false }));
        if aborted {
            drop(state);
            self.discard((claim.object.id, claim.id), window, layout.range, new_size.unwrap_or(size));
            return Err(Failure::Again);
        }
        if let Some(size) = new_size {
            window.set_valid_length(valid_length(layout.range, size));
        }
        let pin = Pin::new(PinParts {
            id: claim.id,
            object: claim.object.id,
            range: layout.range,
            parts: layout.parts,
            writable: is_write(job.request),
            mapping: job.mapping.clone(),
            created: self.clock.now(),
            window,
            grant: ticket.id,
            charge,
            gate: self.pins.gate.clone(),
        });
        let grant = ticket.redeem_pin(PinGrant { pin: pin.clone(), mapping: job.mapping.clone(), slot: ticket.slot.number });
        let part = self.admit_pin(grant, &pin, layout.path, ticket);
        state.pins.pending.retain(|pending| pending.id != claim.id);
        state.pins.live.push(pin.clone());
        self.watch_pin(pin);
        Ok(part)
    }

    fn admit_pin(&self, grant: Arc<Grant>, pin: &Pin, path: peerfs_blockdev::PathKind, ticket: &Ticket) -> GrantPart {
        self.add_grant(&grant);
        GrantPart {
            id: ticket.id,
            offset: 0,
            length: pin.length(),
            sequence_slot: ticket.slot.number,
            sequence: ticket.slot.value,
            path,
            object: pin.form(),
        }
    }
}

impl Claim<'_> {
    /// From here on whoever changes the blocks waits for this pin.
    fn begin_opening(&self) -> Result<(), Failure> {
        let mut state = lock(&self.object.state);
        match state.pins.pending(self.id) {
            Some(pending) if pending.phase == (PendingPhase::Quiescing { aborted: false }) => {
                pending.phase = PendingPhase::Opening { aborted: false };
                Ok(())
            }
            _ => Err(Failure::Again),
        }
    }
}
