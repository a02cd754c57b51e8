//! Mapping one chunk: prove the page cache empty, look the blocks up, open a
//! window, give it into custody, and only then make it live, unless the CPU or
//! somebody who changes the blocks came in between.

use std::sync::Arc;

use peerfs_abi::{Reason, Trigger, TriggerSet};
use peerfs_blockdev::{Aperture, ApertureInfo, Run, Window, WindowError, WindowSpec};

use super::Engine;
use super::context::Context;
use super::enter::{Entry, Refusal, Ticket, to_blocks};
use super::grant::Lent;
use super::holders::Holders;
use super::mappings::Mapping;
use super::object::{Active, ChunkState, Object, Phase, valid_length};
use super::order::ChunkKey;
use super::plan::{Outlook, is_write, milliseconds};
use crate::api::{CHUNK_BYTES, GrantPart, MapSegment};
use crate::exporter::Exporter;
use crate::sync::lock;
use crate::types::{Decision, MapRequest, ObjectId, Placement, Range};

/// One chunk of a map request.
pub(super) struct ChunkJob<'a> {
    pub(super) exporter: &'a dyn Exporter,
    pub(super) context: &'a Arc<Context>,
    pub(super) mapping: &'a Arc<Mapping>,
    pub(super) request: &'a MapRequest,
    /// Number of the chunk in the object.
    pub(super) chunk: u64,
    /// What was decided of the request's part in this chunk; some of it is direct.
    pub(super) decisions: &'a [Decision],
}

/// Why a claimed chunk was not built.
pub(super) enum Failure {
    Refused(Reason),
    /// The CPU, or a change of the blocks, came in between.
    Again,
    /// Room is missing.
    Full {
        needed_bytes: u64,
    },
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Failure::Refused(reason)
    }
}

/// A chunk this map has claimed. Given up when dropped, unless it became live.
struct Claim<'a> {
    engine: &'a Engine,
    object: Arc<Object>,
    number: u64,
    id: u64,
    cover: Range,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.object.state);
        let pending = |chunk: &mut super::object::Chunk| matches!(chunk.state, ChunkState::Pending(_));
        if state.same(self.number, self.id).is_some_and(pending) {
            self.engine.remove_chunk(&self.object, &mut state, self.number);
        }
        drop(state);
        self.engine.retire(&self.object);
    }
}

impl Engine {
    /// Segments for the part of the request in this chunk.
    pub(super) fn map_chunk(&self, job: &ChunkJob<'_>) -> Result<Vec<MapSegment>, Refusal> {
        let object = job.request.object;
        let mut wide = self.maps_wide(job);
        for _ in 0..self.config.map_attempts {
            if let Some(left) = self.thrash.blocked(object, job.chunk, self.clock.now()) {
                return Err(Refusal { reason: Reason::Busy, retry_after_ms: milliseconds(left) });
            }
            let mut ticket = self.draw_ticket(job.context).ok_or(Reason::ImporterQuota)?;
            match self.enter(job, wide, &mut ticket) {
                Entry::Joined(joined) => {
                    let now = up_to(job.decisions, joined.size);
                    let segments = segments(job.decisions, &now, joined.part, joined.start);
                    return self.granted(job, ticket, segments);
                }
                Entry::Unfit(object, id) => {
                    self.revoke_chunk(&object, job.chunk, id, Trigger::Relocation);
                    wide = self.has_room_for_chunk(job) && job.exporter.drops_pages(job.request.object);
                }
                Entry::Refused(object, reason) => {
                    self.retire(&object);
                    return Err(reason.into());
                }
                Entry::Busy => return Err(self.busy()),
                Entry::Claimed(object, id, cover) => {
                    let number = job.chunk;
                    let claim = Claim { engine: self, object, number, id, cover };
                    match self.build(job, claim, &mut ticket) {
                        Ok(segments) => return self.granted(job, ticket, segments),
                        // What stood in the way of more than was asked for may be elsewhere in the chunk, and more is
                        // worth nobody else's window.
                        Err(_) if wide => wide = false,
                        Err(Failure::Again) => {}
                        Err(Failure::Refused(reason)) => return Err(reason.into()),
                        Err(Failure::Full { needed_bytes }) => {
                            if !self.make_room(job, needed_bytes) {
                                return Err(Reason::ApertureFull.into());
                            }
                        }
                    }
                }
            }
        }
        Err(self.busy())
    }

    /// The whole chunk is to be filled at the first map: the object is mapped in pieces, there is room, and nobody has
    /// it in the page cache.
    fn maps_wide(&self, job: &ChunkJob<'_>) -> bool {
        let object = job.request.object;
        self.wide.contains(object) && self.has_room_for_chunk(job) && job.exporter.cpu_idle(object)
    }

    fn has_room_for_chunk(&self, job: &ChunkJob<'_>) -> bool {
        let has_room = |info: ApertureInfo| info.capacity_bytes.saturating_sub(info.used_bytes) >= CHUNK_BYTES;
        self.export(job.request.object).aperture_info().is_some_and(has_room)
    }

    fn busy(&self) -> Refusal {
        Refusal { reason: Reason::Busy, retry_after_ms: milliseconds(self.config.deadline) }
    }

    /// The grant exists, and its client does not know of it yet. If its session or mapping ended meanwhile, or what a
    /// writer changes could not be noted, it ends here.
    pub(super) fn granted(
        &self,
        job: &ChunkJob<'_>,
        ticket: Ticket,
        segments: Vec<MapSegment>,
    ) -> Result<Vec<MapSegment>, Refusal> {
        let unmapped = || self.mappings.get(job.mapping.id).is_none();
        if job.context.session.is_closed() || unmapped() {
            self.release_grants(&[ticket.id], Trigger::ClientGone);
            return Err(Reason::StaleContext.into());
        }
        if segments.iter().all(|segment| segment.access.is_err()) {
            // The client would never learn of it.
            self.release_grants(&[ticket.id], Trigger::Unmap);
            return Ok(segments);
        }
        if is_write(job.request) {
            job.exporter.write_granted(job.request.object).inspect_err(|_| self.release_grants(&[ticket.id], Trigger::Unmap))?;
        }
        Ok(segments)
    }

    /// Proves that no page of the blocks to be mapped is cached. Answers where pages stay, because the policy respects
    /// them: nothing is proved of those.
    pub(super) fn quiesce(&self, job: &ChunkJob<'_>, cover: Range) -> Result<Vec<Range>, Reason> {
        let respected = job.decisions.iter().filter(|decision| decision.refusals.contains(Reason::PageCached));
        let respected: Vec<Range> = respected.map(|decision| decision.range.intersect(cover)).collect();
        let mut at = cover.start;
        for kept in &respected {
            let before = Range { start: at, end: kept.start };
            if !before.is_empty() {
                job.exporter.quiesce(job.request.object, before, job.request.cache_probe)?;
            }
            at = at.max(kept.end);
        }
        let rest = Range { start: at, end: cover.end };
        if !rest.is_empty() {
            job.exporter.quiesce(job.request.object, rest, job.request.cache_probe)?;
        }
        Ok(respected)
    }

    fn build(&self, job: &ChunkJob<'_>, claim: Claim<'_>, ticket: &mut Ticket) -> Result<Vec<MapSegment>, Failure> {
        let aperture = self.export(job.request.object).aperture().ok_or(Reason::NoAperture)?;
        let respected = self.quiesce(job, claim.cover)?;
        claim.begin_opening()?;
        let request = MapRequest { range: claim.cover, ..job.request.clone() };
        let info = self.export(job.request.object).aperture_info().ok_or(Reason::NoAperture)?;
        let (survey, decisions) = self
            .decide_range(job.exporter, &request, &job.context.importer, Some(&info), &Outlook::quiesced(respected))
            .ok_or(Reason::Hole)?;
        let Some(layout) = Layout::of(&decisions) else {
            return Ok(segments_of_fallbacks(job.decisions, &decisions));
        };
        let valid = valid_length(layout.range, survey.size);
        let window = self.open(&**aperture, job, &layout, valid)?;
        if let Err(err) = self.take_into_custody(claim.id, &*window) {
            tracing::error!("a window was not taken into custody, so it is not granted: {err}");
            self.discard((claim.object.id, claim.id), window, layout.range, survey.size);
            return Err(Failure::Refused(Reason::Busy));
        }
        if is_write(job.request) {
            window.set_writable();
        }
        let start = layout.range.start;
        let part = self.activate(job, &claim, layout, window, survey.size, ticket)?;
        Ok(segments(job.decisions, &decisions, part, start))
    }

    pub(super) fn open(
        &self,
        aperture: &dyn Aperture,
        job: &ChunkJob<'_>,
        layout: &Layout,
        valid_length: u64,
    ) -> Result<Arc<dyn Window>, Failure> {
        let spec = || layout.spec(job, valid_length);
        let mut opened = aperture.open_window(spec());
        if matches!(opened, Err(WindowError::Overlap { .. })) && self.retry_held().is_ok() {
            // A window whose write-back had failed was in the way.
            opened = aperture.open_window(spec());
        }
        opened.map_err(|err| match err {
            WindowError::Full { needed_bytes } => Failure::Full { needed_bytes },
            WindowError::Overlap { .. } => Failure::Refused(match self.is_mapped_elsewhere(job.request.object, &layout.runs) {
                true => Reason::SharedExtent,
                false => Reason::Busy,
            }),
            WindowError::Unsupported { .. } => Failure::Refused(Reason::NoGrantObject),
            WindowError::Device(err) => {
                tracing::warn!("object {}: a window could not be filled: {err}", job.request.object.0);
                Failure::Refused(Reason::MediaError)
            }
        })
    }

    /// Blocks of these runs are in a window of another object, which shares them.
    fn is_mapped_elsewhere(&self, object: ObjectId, runs: &[Run]) -> bool {
        let reverse = &self.export(object).reverse;
        runs.iter().any(|run| !reverse.foreign(Range::new(run.device_offset, run.length), object).is_empty())
    }

    /// Gives a window to whoever ends it should this process die.
    pub(super) fn take_into_custody(&self, id: u64, window: &dyn Window) -> std::io::Result<()> {
        match window.custody_fd().map_err(std::io::Error::other)? {
            Some(fd) => self.custody.hold(id, fd),
            None => Ok(()),
        }
    }

    /// Makes the window live, unless the claim was spoiled or aborted.
    fn activate(
        &self,
        job: &ChunkJob<'_>,
        claim: &Claim<'_>,
        layout: Layout,
        window: Arc<dyn Window>,
        size: u64,
        ticket: &mut Ticket,
    ) -> Result<GrantPart, Failure> {
        let key = ChunkKey { object: claim.object.id, number: claim.number, id: claim.id };
        let mut state = lock(&claim.object.state);
        let chunk = state.same(claim.number, claim.id);
        let standing = chunk.and_then(|chunk| match &chunk.state {
            ChunkState::Pending(pending) => {
                let aborted = pending.phase != Phase::Opening { aborted: false };
                Some((pending.new_size, pending.spoiled || aborted))
            }
            ChunkState::Active(_) | ChunkState::Revoking(_) => None,
        });
        let (new_size, lost) = standing.unwrap_or((None, true));
        if lost {
            drop(state);
            self.discard((claim.object.id, claim.id), window, layout.range, new_size.unwrap_or(size));
            return Err(Failure::Again);
        }
        let export = self.export(key.object);
        export.reverse.insert(window.runs(), key);
        let mut active = Active {
            range: layout.range,
            parts: layout.parts,
            size,
            writable: is_write(job.request),
            holders: Holders::default(),
            tick: export.order.insert(key, window.length()),
            lent: Lent::new(claim.object.clone(), claim.number, claim.id, window.clone()),
            window,
        };
        if let Some(size) = new_size {
            active.apply_size(size);
        }
        let grant = ticket.redeem(job, &active.lent);
        let part = self.admit(&mut active, grant, ticket, layout.path);
        if let Some(chunk) = state.same(claim.number, claim.id) {
            chunk.state = ChunkState::Active(active);
        }
        claim.object.gate.notify();
        Ok(part)
    }

    /// Takes a window back that nobody was given. `held`: the object, and the window's number in custody.
    pub(super) fn discard(&self, held: (ObjectId, u64), window: Arc<dyn Window>, range: Range, size: u64) {
        window.cut();
        self.custody.release(held.1);
        window.set_valid_length(valid_length(range, size));
        self.write_back_or_hold(held.0, window);
    }
}

impl Claim<'_> {
    /// From here on whoever changes the blocks waits for this map.
    fn begin_opening(&self) -> Result<(), Failure> {
        let mut state = lock(&self.object.state);
        let Some(chunk) = state.same(self.number, self.id) else {
            return Err(Failure::Again);
        };
        match &mut chunk.state {
            ChunkState::Pending(pending) if !pending.spoiled => {
                pending.phase = Phase::Opening { aborted: false };
                Ok(())
            }
            _ => Err(Failure::Again),
        }
    }
}

/// The shape of a window: from the first direct block to the last.
pub(super) struct Layout {
    pub(super) range: Range,
    pub(super) parts: Vec<Range>,
    runs: Vec<Run>,
    pub(super) path: peerfs_blockdev::PathKind,
}

impl Layout {
    pub(super) fn spec(&self, job: &ChunkJob<'_>, valid_length: u64) -> WindowSpec {
        WindowSpec { owner: job.request.object.0, length: self.range.length(), runs: self.runs.clone(), valid_length }
    }

    pub(super) fn of(decisions: &[Decision]) -> Option<Layout> {
        let mut layout: Option<Layout> = None;
        for decision in decisions {
            let Placement::Direct { path, device_offset } = decision.placement else {
                continue;
            };
            let blocks = to_blocks(decision.range);
            let layout = layout.get_or_insert_with(|| Layout { range: blocks, parts: Vec::new(), runs: Vec::new(), path });
            layout.range.end = blocks.end;
            match layout.parts.last_mut() {
                Some(last) if last.end == blocks.start => last.end = blocks.end,
                _ => layout.parts.push(blocks),
            }
            layout.runs.push(Run { window_offset: blocks.start - layout.range.start, device_offset, length: blocks.length() });
        }
        layout
    }
}

/// What was asked, as what it became: stretches that were direct take the newer decision.
pub(super) fn segments(asked: &[Decision], now: &[Decision], part: GrantPart, window_start: u64) -> Vec<MapSegment> {
    let mut out: Vec<MapSegment> = Vec::new();
    for (range, placement) in newest(asked, now) {
        let access = match placement {
            Placement::Fallback(reason) => Err(reason),
            Placement::Direct { .. } => {
                if let Some(last) = out.last_mut()
                    && last.access.is_ok()
                    && last.range.end == range.start
                {
                    last.range.end = range.end;
                    continue;
                }
                let offset = range.start - window_start;
                Ok(GrantPart { offset, ..part })
            }
        };
        out.push(MapSegment { range, access });
    }
    out
}

pub(super) fn segments_of_fallbacks(asked: &[Decision], now: &[Decision]) -> Vec<MapSegment> {
    newest(asked, now)
        .into_iter()
        .filter_map(|(range, placement)| match placement {
            Placement::Fallback(reason) => Some(MapSegment { range, access: Err(reason) }),
            Placement::Direct { .. } => None,
        })
        .collect()
}

/// Decisions of an object that ends at `size` now: a window holds whole blocks, but nothing behind the end is mapped.
fn up_to(decisions: &[Decision], size: u64) -> Vec<Decision> {
    let mut out = Vec::new();
    for decision in decisions {
        let split = size.clamp(decision.range.start, decision.range.end);
        let behind = Decision {
            range: Range { start: split, ..decision.range },
            placement: Placement::Fallback(Reason::BeyondEof),
            refusals: decision.refusals.with(Reason::BeyondEof),
            triggers: TriggerSet::EMPTY,
        };
        let inside = Decision { range: Range { end: split, ..decision.range }, ..*decision };
        out.extend([inside, behind].into_iter().filter(|part| !part.range.is_empty()));
    }
    out
}

fn newest(asked: &[Decision], now: &[Decision]) -> Vec<(Range, Placement)> {
    let mut out = Vec::new();
    for decision in asked {
        if let Placement::Fallback(_) = decision.placement {
            out.push((decision.range, decision.placement));
            continue;
        }
        for newer in now {
            let common = newer.range.intersect(decision.range);
            if !common.is_empty() {
                out.push((common, newer.placement));
            }
        }
    }
    out
}
