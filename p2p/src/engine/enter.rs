//! The first step of mapping a chunk: join what is there, or claim it.

use std::sync::Arc;

use peerfs_abi::Reason;
use peerfs_blockdev::{BLOCK_BYTES, PathKind};

use super::Engine;
use super::build::ChunkJob;
use super::context::Context;
use super::grant::{DataGrant, Grant, GrantKind, Lent};
use super::object::{Active, Chunk, ChunkState, Object, ObjectState, Pending, Phase};
use super::pins::PinGrant;
use super::plan::{chunk_range, is_write};
use super::session::Slot;
use crate::api::{GrantObject, GrantPart};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::lock;
use crate::types::{GrantId, Placement, Range};

/// A name and a sequence slot for a grant to come; given back when none comes.
pub(super) struct Ticket {
    pub(super) context: Arc<Context>,
    pub(super) id: GrantId,
    pub(super) slot: Slot,
    used: bool,
}

impl Ticket {
    /// Makes the grant. From here on the session's slot is the grant's.
    pub(super) fn redeem(&mut self, job: &ChunkJob<'_>, lent: &Arc<Lent>) -> Arc<Grant> {
        self.used = true;
        Arc::new(Grant {
            id: self.id,
            kind: GrantKind::Data(DataGrant {
                mapping: job.mapping.clone(),
                lent: lent.clone(),
                slot: self.slot.number,
                place: AtomicU32::new(0),
                writable: is_write(job.request),
                taken: AtomicBool::new(false),
                acknowledged: AtomicBool::new(false),
            }),
        })
    }
}

impl Ticket {
    /// As `redeem`, for a pin.
    pub(super) fn redeem_pin(&mut self, pin: PinGrant) -> Arc<Grant> {
        self.used = true;
        Arc::new(Grant { id: self.id, kind: GrantKind::Pin(pin) })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.used {
            self.context.session.return_slot(self.slot.number);
        }
    }
}

/// A live window, entered by one more.
pub(super) struct Joined {
    /// The whole window as a segment's place.
    pub(super) part: GrantPart,
    /// Its first byte in the object.
    pub(super) start: u64,
    /// Where the object ends now. What was decided before may know another end.
    pub(super) size: u64,
}

/// What came of trying to enter a chunk.
pub(super) enum Entry {
    /// A live window was joined.
    Joined(Joined),
    /// The chunk is claimed: it is to be built, over these blocks.
    Claimed(Arc<Object>, u64, Range),
    /// A live window lacks blocks or access; it has to be revoked first.
    Unfit(Arc<Object>, u64),
    /// The importer is refused by what was learned since it was decided.
    Refused(Arc<Object>, Reason),
    /// Closed, or being mapped or revoked by somebody else, for too long.
    Busy,
}

enum Look {
    Enter(Entry),
    Wait(Arc<Object>),
}

impl Engine {
    pub(super) fn draw_ticket(&self, context: &Arc<Context>) -> Option<Ticket> {
        let id = self.new_grant_id()?;
        let slot = context.session.draw_slot(self.config.grants_per_session)?;
        Some(Ticket { context: context.clone(), id, slot, used: false })
    }

    /// Joins or claims the chunk; waits a bounded time where it is closed or on its way. `wide`: claim all of it.
    pub(super) fn enter(&self, job: &ChunkJob<'_>, wide: bool, ticket: &mut Ticket) -> Entry {
        let needed = job.needed();
        let cover = match wide {
            true => chunk_range(job.chunk),
            false => hull(&needed),
        };
        let limit = self.clock.now() + self.config.busy_wait;
        loop {
            let look =
                self.with_object(job.request.object, |object, state| self.look(job, object, state, &needed, cover, ticket));
            let object = match look {
                Look::Enter(entry) => return entry,
                Look::Wait(object) => object,
            };
            let free = self.clock.wait(&object.gate, Some(limit), &mut || {
                let state = lock(&object.state);
                state.dead || !must_wait(&state, job.chunk, cover)
            });
            if !free {
                return Entry::Busy;
            }
        }
    }

    fn look(
        &self,
        job: &ChunkJob<'_>,
        object: &Arc<Object>,
        state: &mut ObjectState,
        needed: &[Range],
        cover: Range,
        ticket: &mut Ticket,
    ) -> Look {
        if self.shutting_down.load(Ordering::SeqCst) {
            return Look::Enter(Entry::Busy);
        }
        if must_wait(state, job.chunk, cover) {
            return Look::Wait(object.clone());
        }
        // A topology that refuses it may have come since the decision. Whoever brings one looks for those it refuses later.
        if let Some(reason) = self.refused_way(job) {
            return Look::Enter(Entry::Refused(object.clone(), reason));
        }
        let write = is_write(job.request);
        Look::Enter(match state.chunks.get_mut(&job.chunk) {
            None => self.claim(job, object, state, cover),
            Some(Chunk { state: ChunkState::Active(active), .. }) if active.covers(needed) && (active.writable || !write) => {
                Entry::Joined(self.join(job, active, ticket))
            }
            Some(chunk) => {
                if matches!(&chunk.state, ChunkState::Active(active) if !active.covers(needed)) {
                    self.wide.note(object.id);
                }
                Entry::Unfit(object.clone(), chunk.id)
            }
        })
    }

    fn refused_way(&self, job: &ChunkJob<'_>) -> Option<Reason> {
        let importer = &job.context.importer;
        importer.pci_address.and_then(|_| self.export(job.request.object).refusals(importer).iter().next())
    }

    fn claim(&self, job: &ChunkJob<'_>, object: &Arc<Object>, state: &mut ObjectState, cover: Range) -> Entry {
        let id = self.new_number();
        let pending =
            Pending { range: cover, write: is_write(job.request), phase: Phase::Quiescing, spoiled: false, new_size: None };
        self.live_chunks.fetch_add(1, Ordering::SeqCst);
        state.chunks.insert(job.chunk, Chunk { id, state: ChunkState::Pending(pending) });
        Entry::Claimed(object.clone(), id, cover)
    }

    fn join(&self, job: &ChunkJob<'_>, active: &mut Active, ticket: &mut Ticket) -> Joined {
        let grant = ticket.redeem(job, &active.lent);
        active.tick = self.export(job.request.object).order.touch(active.tick);
        let part = self.admit(active, grant, ticket, job.path());
        Joined { part, start: active.range.start, size: active.size }
    }

    /// Makes the grant known and its holder a holder of the window.
    pub(super) fn admit(&self, active: &mut Active, grant: Arc<Grant>, ticket: &Ticket, path: PathKind) -> GrantPart {
        self.add_grant(&grant);
        active.lent.touch(self.clock.now());
        let part = GrantPart {
            id: grant.id,
            offset: 0,
            length: active.window.length(),
            sequence_slot: ticket.slot.number,
            sequence: ticket.slot.value,
            path,
            object: GrantObject::Window,
        };
        active.holders.add(grant);
        part
    }
}

impl ChunkJob<'_> {
    /// Direct stretches, in whole blocks.
    pub(super) fn needed(&self) -> Vec<Range> {
        self.decisions
            .iter()
            .filter(|decision| matches!(decision.placement, Placement::Direct { .. }))
            .map(|decision| to_blocks(decision.range))
            .collect()
    }

    fn path(&self) -> PathKind {
        let direct = |placement| match placement {
            Placement::Direct { path, .. } => Some(path),
            Placement::Fallback(_) => None,
        };
        self.decisions.iter().find_map(|decision| direct(decision.placement)).unwrap_or(PathKind::DirectWindow)
    }
}

fn must_wait(state: &ObjectState, chunk: u64, cover: Range) -> bool {
    let on_its_way = state.chunks.get(&chunk).is_some_and(|chunk| !matches!(chunk.state, ChunkState::Active(_)));
    on_its_way || state.is_closed(cover)
}

/// Only the last byte of a stretch can lie inside a block (at the end of the object).
pub(super) fn to_blocks(range: Range) -> Range {
    Range { start: range.start / BLOCK_BYTES * BLOCK_BYTES, end: range.end.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES) }
}

fn hull(ranges: &[Range]) -> Range {
    let start = ranges.first().map_or(0, |range| range.start);
    Range { start, end: ranges.last().map_or(start, |range| range.end) }
}

/// A refusal of a whole chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) retry_after_ms: u32,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Refusal { reason, retry_after_ms: 0 }
    }
}
