//! The three operations of the proposal, for any exporter.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_abi::{MapFlags, Reason, Trigger};

use super::Engine;
use super::build::ChunkJob;
use super::context::Context;
use super::enter::Refusal;
use super::grant::Grant;
use super::mappings::Mapping;
use super::plan::chunk_range;
use crate::api::{Asker, CHUNK_BYTES, DeviceMapOps, MapAnswer, MapCall, MapError, MapSegment, QueryAnswer, UnmapCall};
use crate::types::{Decision, MapRequest, MappingId, Placement, Range};

/// Chunks mapped by one call at most; the caller continues at `next_offset`.
const CHUNKS_PER_CALL: usize = 128;

impl DeviceMapOps for Engine {
    fn device_query(&self, asker: Asker<'_>, request: &MapRequest, segments_max: usize) -> Result<QueryAnswer, MapError> {
        self.query(asker, request, segments_max)
    }

    fn device_map(&self, call: &MapCall<'_>) -> Result<MapAnswer, MapError> {
        let request = call.request;
        if request.flags.contains(MapFlags::QUERY) || request.range.is_empty() {
            return Err(MapError::Invalid);
        }
        let Some(context) = self.live_context(call.context, call.client) else {
            return Ok(self.refused_whole(request, Reason::StaleContext));
        };
        let exporter = self.exporter(request.object)?;
        exporter.prepare(request.object);
        let mut walk = self.walk(&*exporter, request, &context.importer)?;
        let Some(mapping) = self.mapping_for(call, &context, walk.request.range)? else {
            return Ok(self.refused_whole(&walk.request, Reason::ImporterQuota));
        };
        let mut answer = Answer::new(call.segments_max);
        if request.flags.contains(MapFlags::PIN) {
            self.map_pins(&mut answer, &mut walk, &context, &mapping)?;
        }
        let request = walk.request.clone();
        while !walk.is_done() && answer.has_room() {
            for part in by_chunk(self.next_slice(&mut walk)?) {
                if !answer.has_room() {
                    break;
                }
                self.map_part(&mut answer, &context, &mapping, &*exporter, &request, part);
            }
        }
        mapping.segments.fetch_add(answer.segments.len() as u32, Ordering::Relaxed);
        Ok(answer.finish(mapping.id, walk.request.range))
    }

    fn device_unmap(&self, call: &UnmapCall) -> Result<(), MapError> {
        let missing = MapError::NoMapping { mapping: call.mapping };
        let mapping = self.mappings.get(call.mapping).ok_or(missing.clone())?;
        if mapping.context.session.id != call.session {
            return Err(missing);
        }
        if !mapping.context.is_called_by(call.client) {
            return Err(MapError::StaleContext);
        }
        mapping.count(&call.moved);
        self.ledger.moved(mapping.object, &call.moved);
        if call.report_only {
            self.touch_windows(&mapping);
        } else if self.mappings.remove(mapping.id).is_some() {
            mapping.context.session.remove_mapping(mapping.id);
            self.release_grants(&mapping.grants(), Trigger::Unmap);
        }
        Ok(())
    }
}

impl Engine {
    /// The mapping to add to. `None`: the session may hold no more.
    fn mapping_for(&self, call: &MapCall<'_>, context: &Arc<Context>, range: Range) -> Result<Option<Arc<Mapping>>, MapError> {
        if let Some(id) = call.mapping {
            let mapping = self.mappings.get(id).ok_or(MapError::NoMapping { mapping: id })?;
            if mapping.context.id != context.id || mapping.object != call.request.object {
                return Err(MapError::NoMapping { mapping: id });
            }
            mapping.widen(range);
            return Ok(Some(mapping));
        }
        let now = self.clock.now();
        let (object, flags) = (call.request.object, call.request.flags);
        let Some(place) = context.session.user.take_mapping(self.config.mappings_per_user) else { return Ok(None) };
        let make = |id| Mapping::new(id, context.clone(), object, range, flags, now, place);
        let made = self.mappings.insert(self.config.mappings_max, make);
        Ok(made.filter(|mapping| {
            let limit = self.config.mappings_per_session;
            let added = context.session.add_mapping(mapping.id, limit);
            if !added {
                self.mappings.remove(mapping.id);
            }
            added
        }))
    }

    /// Its windows are in use: they are not the first to make way for others.
    fn touch_windows(&self, mapping: &Mapping) {
        let now = self.clock.now();
        for grant in mapping.grants() {
            if let Some(data) = self.grant_of(grant).as_deref().and_then(Grant::data) {
                data.lent.touch(now);
            }
        }
    }

    /// Maps what is direct in one chunk, or takes over a stretch of fallbacks.
    fn map_part(
        &self,
        answer: &mut Answer,
        context: &Arc<Context>,
        mapping: &Arc<Mapping>,
        exporter: &dyn crate::exporter::Exporter,
        request: &MapRequest,
        part: Part,
    ) {
        let Some(chunk) = part.chunk else {
            for decision in part.decisions {
                self.refuse(answer, request, decision);
            }
            return;
        };
        answer.chunks += 1;
        let job = ChunkJob { exporter, context, mapping, request, chunk, decisions: &part.decisions };
        let made = self.map_chunk(&job);
        self.take_in(answer, request, part.decisions, made);
    }

    /// Adds what became of decisions to the answer.
    pub(super) fn take_in(
        &self,
        answer: &mut Answer,
        request: &MapRequest,
        decisions: Vec<Decision>,
        made: Result<Vec<MapSegment>, Refusal>,
    ) {
        match made {
            Ok(segments) => {
                for segment in segments {
                    if let Err(reason) = segment.access {
                        self.note_refusal(request.object, segment.range, reason);
                    }
                    answer.push(segment);
                }
            }
            Err(refusal) => {
                answer.retry_after_ms = answer.retry_after_ms.max(refusal.retry_after_ms);
                for decision in decisions {
                    let placement = match decision.placement {
                        Placement::Direct { .. } => Placement::Fallback(refusal.reason),
                        fallback => fallback,
                    };
                    self.refuse(answer, request, Decision { placement, ..decision });
                }
            }
        }
    }

    pub(super) fn refuse(&self, answer: &mut Answer, request: &MapRequest, decision: Decision) {
        if let Placement::Fallback(reason) = decision.placement {
            self.note_refusal(request.object, decision.range, reason);
            answer.push(MapSegment { range: decision.range, access: Err(reason) });
        }
    }

    fn refused_whole(&self, request: &MapRequest, reason: Reason) -> MapAnswer {
        let range = request.range;
        self.note_refusal(request.object, range, reason);
        MapAnswer {
            mapping: None,
            segments: vec![MapSegment { range, access: Err(reason) }],
            next_offset: range.end,
            end_offset: range.end,
            retry_after_ms: 0,
        }
    }
}

/// Decisions of one chunk with something direct in it, or fallbacks of any length.
struct Part {
    chunk: Option<u64>,
    decisions: Vec<Decision>,
}

/// Cuts direct stretches at chunk boundaries and gathers what belongs to one chunk.
fn by_chunk(decisions: Vec<Decision>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for decision in decisions {
        let Placement::Direct { path, device_offset } = decision.placement else {
            add_fallback(&mut parts, decision);
            continue;
        };
        let mut at = decision.range.start;
        while at < decision.range.end {
            let chunk = at / CHUNK_BYTES;
            let range = chunk_range(chunk).intersect(Range { start: at, end: decision.range.end });
            let device_offset = device_offset + (at - decision.range.start);
            let piece = Decision { range, placement: Placement::Direct { path, device_offset }, ..decision };
            match parts.last_mut() {
                Some(part) if part.chunk == Some(chunk) => part.decisions.push(piece),
                _ => parts.push(Part { chunk: Some(chunk), decisions: vec![piece] }),
            }
            at = range.end;
        }
    }
    parts
}

/// A fallback inside a chunk's last part stays with it, so that direct stretches behind it join the same part.
fn add_fallback(parts: &mut Vec<Part>, decision: Decision) {
    let inside = |part: &Part| part.chunk.is_some_and(|chunk| decision.range.end <= chunk_range(chunk).end);
    match parts.last_mut() {
        Some(part) if inside(part) || part.chunk.is_none() => part.decisions.push(decision),
        _ => parts.push(Part { chunk: None, decisions: vec![decision] }),
    }
}

/// Segments of an answer, bounded.
pub(super) struct Answer {
    segments: Vec<MapSegment>,
    segments_max: usize,
    chunks: usize,
    retry_after_ms: u32,
}

impl Answer {
    fn new(segments_max: usize) -> Self {
        Answer { segments: Vec::new(), segments_max, chunks: 0, retry_after_ms: 0 }
    }

    pub(super) fn has_room(&self) -> bool {
        self.segments.len() < self.segments_max && self.chunks < CHUNKS_PER_CALL
    }

    /// Fallbacks of one reason coalesce; what exceeds the room is left for the next call.
    fn push(&mut self, segment: MapSegment) {
        if let Some(last) = self.segments.last_mut()
            && last.range.end == segment.range.start
            && last.access.is_err()
            && last.access == segment.access
        {
            last.range.end = segment.range.end;
            return;
        }
        self.segments.push(segment);
    }

    fn finish(mut self, mapping: MappingId, range: Range) -> MapAnswer {
        // A chunk may bring several segments at once. Those cut off here are joined again by the next call.
        self.segments.truncate(self.segments_max);
        MapAnswer {
            mapping: Some(mapping),
            next_offset: self.segments.last().map_or(range.start, |last| last.range.end),
            end_offset: range.end,
            segments: self.segments,
            retry_after_ms: self.retry_after_ms,
        }
    }
}
