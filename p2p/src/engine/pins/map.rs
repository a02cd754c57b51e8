//! Mapping with PIN: what is direct becomes as few pins as possible.

use std::sync::Arc;

use peerfs_abi::MapFlags;

use super::PIN_BYTES_MAX;
use super::quota::Limits;
use crate::api::{CHUNK_BYTES, MapError};
use crate::engine::Engine;
use crate::engine::build::ChunkJob;
use crate::engine::context::Context;
use crate::engine::map::Answer;
use crate::engine::mappings::Mapping;
use crate::engine::plan::{Outlook, Walk};
use crate::types::{Decision, MapRequest, ObjectId, Placement, Range, Survey};

/// A hole of at most this many bytes may lie inside a pin; it costs as much of aperture and quota.
const GAP_BYTES_MAX: u64 = CHUNK_BYTES;

impl Engine {
    /// Pins the rest of a walk as far as the answer has room.
    pub(in crate::engine) fn map_pins(
        &self,
        answer: &mut Answer,
        walk: &mut Walk<'_>,
        context: &Arc<Context>,
        mapping: &Arc<Mapping>,
    ) -> Result<(), MapError> {
        while !walk.is_done() && answer.has_room() {
            let range = walk.take(PIN_BYTES_MAX);
            let request = MapRequest { range, ..walk.request.clone() };
            let missing = MapError::NoObject { object: request.object };
            let aperture = self.export(request.object).aperture_info();
            let (_, decisions) = self
                .decide_range(walk.exporter, &request, &context.importer, aperture.as_ref(), &Outlook::default())
                .ok_or(missing)?;
            for group in groups(decisions) {
                if !answer.has_room() {
                    break;
                }
                let request = &walk.request;
                let job = ChunkJob { exporter: walk.exporter, context, mapping, request, chunk: 0, decisions: &group };
                match job.needed().is_empty() {
                    true => group.into_iter().for_each(|decision| self.refuse(answer, request, decision)),
                    false => {
                        let made = self.pin(&job);
                        self.take_in(answer, request, group, made);
                    }
                }
            }
        }
        Ok(())
    }

    /// What a pin is decided by, added to what the exporter knows.
    pub(in crate::engine) fn survey_pins(&self, survey: &mut Survey, request: &MapRequest) {
        if let Some(object) = self.object_of(request.object) {
            survey.closed.extend(crate::sync::lock(&object.state).pins.pinned(request.range));
        }
        if request.flags.contains(MapFlags::PIN) {
            let limits = self.pin_limits(request.object);
            survey.pins.left_bytes = self.pins.quota.left(request.object.export(), Some(request.uid), limits);
        }
    }

    pub(super) fn pin_limits(&self, object: ObjectId) -> Limits {
        let capacity = self.export(object).aperture_info().map_or(0, |info| info.capacity_bytes);
        Limits { mount: self.config.pin_quota.bytes(capacity), user: self.config.pin_quota_user.bytes(capacity) }
    }
}

/// Stretches that become one pin, or fall back, each.
fn groups(decisions: Vec<Decision>) -> Vec<Vec<Decision>> {
    let mut groups: Vec<Vec<Decision>> = Vec::new();
    for decision in decisions {
        match groups.last_mut() {
            Some(group) if belongs(group, &decision) => group.push(decision),
            _ => groups.push(vec![decision]),
        }
    }
    groups
}

fn belongs(group: &[Decision], next: &Decision) -> bool {
    let direct = |decision: &Decision| matches!(decision.placement, Placement::Direct { .. });
    let starts_direct = group.first().is_some_and(direct);
    let starts = group.first().map_or(0, |first| first.range.start);
    let fits = next.range.end - starts <= PIN_BYTES_MAX;
    starts_direct && fits && (direct(next) || next.range.length() <= GAP_BYTES_MAX)
}

impl Walk<'_> {
    /// The next range, at most so long where the object has something.
    fn take(&mut self, bytes: u64) -> Range {
        let end = self.request.range.end;
        let start = self.at;
        self.at = match start.saturating_add(bytes) {
            stop if stop < self.size => stop.min(end),
            _ => end,
        };
        Range { start, end: self.at }
    }
}
