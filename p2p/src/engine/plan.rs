//! From a request to decisions: the pure decision, fed with what only the
//! engine knows (closed ranges, the device's state, contested chunks, quotas).

use std::sync::atomic::Ordering;
use std::time::Duration;

use peerfs_abi::{Reason, ReasonSet, TriggerSet};
use peerfs_blockdev::{ApertureInfo, ApertureKind};

use super::Engine;
use super::context::Context;
use super::enter::to_blocks;
use crate::api::{Asker, CHUNK_BYTES, MapError, QueryAnswer};
use crate::decide::{Conditions, decide, push};
use crate::exporter::Exporter;
use crate::sync::lock;
use crate::types::{Decision, ExtentState, Importer, MapRequest, ObjectId, Placement, Range, Survey};

/// Objects are surveyed in stretches of at most this many bytes.
pub(super) const SLICE_BYTES: u64 = 128 * CHUNK_BYTES;

/// The first stretch of a walk. The next ones are longer where few decisions come of them, so that neither a large
/// file of few extents nor a fragmented one is surveyed in vain.
const FIRST_SLICE_BYTES: u64 = 8 * CHUNK_BYTES;

/// A slice with more decisions than this is followed by a shorter one.
const DECISIONS_PER_SLICE: usize = 256;

/// A request whose end is known.
pub(super) struct Walk<'a> {
    pub(super) exporter: &'a dyn Exporter,
    pub(super) request: MapRequest,
    importer: &'a Importer,
    aperture: Option<ApertureInfo>,
    outlook: Outlook,
    /// Where the next slice starts.
    pub(super) at: u64,
    /// Size of the object when the walk began.
    pub(super) size: u64,
    slice_bytes: u64,
}

/// What only a query is told beforehand: a map waits for it, or finds it out when it gets there.
#[derive(Default)]
pub(super) struct Outlook {
    /// Ranges to be answered `Busy`.
    busy: Vec<Range>,
    /// Reasons that hold for the whole request.
    refusals: ReasonSet,
    /// Nothing of the range is cached any more.
    quiesced: bool,
}

impl Outlook {
    /// For a map whose range has been proved to be out of the page cache, but for these parts.
    pub(super) fn quiesced(respected: Vec<Range>) -> Outlook {
        Outlook { quiesced: true, busy: respected, ..Outlook::default() }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn is_done(&self) -> bool {
        self.at >= self.request.range.end
    }

    /// The next slice: up to a chunk boundary, or all that lies beyond the end of the object.
    fn next_range(&self) -> Range {
        let end = self.request.range.end;
        let boundary = self.at - self.at % CHUNK_BYTES;
        let slice_end = match boundary.saturating_add(self.slice_bytes) {
            slice_end if slice_end < self.size => slice_end.min(end),
            _ => end,
        };
        Range { start: self.at, end: slice_end }
    }

    fn adapt(&mut self, decisions: usize) {
        self.slice_bytes = match decisions > DECISIONS_PER_SLICE {
            true => (self.slice_bytes / 2).max(CHUNK_BYTES),
            false => (self.slice_bytes * 2).min(SLICE_BYTES),
        };
    }
}

impl Engine {
    pub(super) fn walk<'a>(
        &self,
        exporter: &'a dyn Exporter,
        request: &MapRequest,
        importer: &'a Importer,
    ) -> Result<Walk<'a>, MapError> {
        let start = request.range.start;
        let survey =
            exporter.survey(request, Range { start, end: start }).ok_or(MapError::NoObject { object: request.object })?;
        let mut request = request.clone();
        if request.range.end == u64::MAX {
            request.range.end = survey.size.max(start);
        } else if request.range.is_empty() {
            return Err(MapError::Invalid);
        }
        Ok(Walk {
            exporter,
            at: start,
            outlook: Outlook::default(),
            size: survey.size,
            slice_bytes: FIRST_SLICE_BYTES,
            importer,
            aperture: self.export(request.object).aperture_info(),
            request,
        })
    }

    /// Decides the next slice of a walk.
    pub(super) fn next_slice(&self, walk: &mut Walk<'_>) -> Result<Vec<Decision>, MapError> {
        let range = walk.next_range();
        let request = MapRequest { range, ..walk.request.clone() };
        let (_, decisions) = self
            .decide_range(walk.exporter, &request, walk.importer, walk.aperture.as_ref(), &walk.outlook)
            .ok_or(MapError::NoObject { object: request.object })?;
        walk.at = range.end;
        walk.adapt(decisions.len());
        spend(&mut walk.aperture, &decisions);
        Ok(decisions)
    }

    /// Surveys and decides one range now.
    pub(super) fn decide_range(
        &self,
        exporter: &dyn Exporter,
        request: &MapRequest,
        importer: &Importer,
        aperture: Option<&ApertureInfo>,
        outlook: &Outlook,
    ) -> Option<(Survey, Vec<Decision>)> {
        let mut survey = match outlook.quiesced {
            true => exporter.survey_quiesced(request, request.range)?,
            false => exporter.survey(request, request.range)?,
        };
        survey.closed.extend_from_slice(&outlook.busy);
        self.survey_pins(&mut survey, request);
        if self.shutting_down.load(Ordering::SeqCst) {
            survey.closed = vec![Range::ALL];
        }
        let conditions = self.conditions(request.object, importer, outlook);
        let mut decisions = decide(&survey, request, importer, aperture, &conditions);
        if survey.extents.iter().any(|extent| matches!(extent.state, ExtentState::Mapped { shared: true, .. })) {
            decisions =
                decisions.into_iter().flat_map(|decision| self.unless_mapped_elsewhere(request.object, decision)).collect();
        }
        Some((survey, decisions))
    }

    fn conditions(&self, object: ObjectId, importer: &Importer, outlook: &Outlook) -> Conditions {
        let export = self.export(object);
        Conditions { refusals: export.refusals(importer).union(outlook.refusals), bad: export.device.bad() }
    }

    /// What stands in the way of a map at this moment.
    fn outlook(&self, object: ObjectId, context: Option<&Context>, contested: &[(u64, Duration)]) -> Outlook {
        let mut busy: Vec<Range> = contested.iter().map(|(chunk, _)| chunk_range(*chunk)).collect();
        if let Some(object) = self.object_of(object) {
            busy.extend(lock(&object.state).closed.iter().map(|closed| closed.1));
        }
        let full = context.is_some_and(|context| context.session.is_full(&self.config));
        Outlook { busy, refusals: ReasonSet::EMPTY.with_if(full, Reason::ImporterQuota), quiesced: false }
    }

    pub(super) fn query(&self, asker: Asker<'_>, request: &MapRequest, segments_max: usize) -> Result<QueryAnswer, MapError> {
        let context = match asker {
            Asker::Importer(_) => None,
            Asker::Context(id, client) => Some(self.live_context(id, client).ok_or(MapError::StaleContext)?),
        };
        let importer = match (&context, asker) {
            (Some(context), _) => &context.importer,
            (None, Asker::Importer(importer)) => importer,
            (None, Asker::Context(..)) => return Err(MapError::StaleContext),
        };
        let exporter = self.exporter(request.object)?;
        let mut walk = self.walk(&*exporter, request, importer)?;
        let contested = self.thrash.blocked_chunks(request.object, self.clock.now());
        walk.outlook = self.outlook(request.object, context.as_deref(), &contested);
        if let Some(info) = walk.aperture.as_mut().filter(|info| info.kind == ApertureKind::Windowed) {
            info.capacity_bytes = self.room_for(request.object, walk.request.range, info).min(info.capacity_bytes);
        }
        let mut decisions: Vec<Decision> = Vec::new();
        while !walk.is_done() && decisions.len() <= segments_max {
            for decision in self.next_slice(&mut walk)? {
                push(&mut decisions, decision);
            }
        }
        decisions.truncate(segments_max);
        let start = walk.request.range.start;
        let answered = Range { start, end: decisions.last().map_or(start, |last| last.range.end) };
        Ok(QueryAnswer {
            next_offset: answered.end,
            end_offset: walk.request.range.end,
            retry_after_ms: self.retry_after(&contested, &decisions),
            decisions,
        })
    }

    /// Blocks in a window of another object, which shares them, cannot be in a second one.
    fn unless_mapped_elsewhere(&self, object: ObjectId, decision: Decision) -> Vec<Decision> {
        let Placement::Direct { device_offset, path } = decision.placement else { return vec![decision] };
        let on_device = Range::new(device_offset, decision.range.length());
        let foreign = self.export(object).reverse.foreign(to_blocks(on_device), object);
        let mut parts = Vec::new();
        let mut part = |from: u64, to: u64, is_foreign: bool| {
            let range =
                Range { start: decision.range.start + (from - device_offset), end: decision.range.start + (to - device_offset) };
            parts.push(match is_foreign {
                false => Decision { range, placement: Placement::Direct { path, device_offset: from }, ..decision },
                true => Decision {
                    range,
                    placement: Placement::Fallback(Reason::SharedExtent),
                    refusals: decision.refusals.with(Reason::SharedExtent),
                    triggers: TriggerSet::EMPTY,
                },
            });
        };
        let mut at = on_device.start;
        for taken in foreign.into_iter().map(|taken| taken.intersect(on_device)).filter(|taken| !taken.is_empty()) {
            if at < taken.start {
                part(at, taken.start, false);
            }
            part(taken.start.max(at), taken.end, true);
            at = taken.end;
        }
        if at < on_device.end {
            part(at, on_device.end, false);
        }
        parts
    }

    /// When the busy stretches are worth another try: after the back-off of contested chunks; the others are free
    /// again at the deadline of the revocation that closed them.
    fn retry_after(&self, contested: &[(u64, Duration)], decisions: &[Decision]) -> u32 {
        let busy = decisions.iter().filter(|decision| decision.refusals.contains(Reason::Busy));
        let wait = |decision: &Decision| {
            let hit = contested.iter().filter(|(chunk, _)| chunk_range(*chunk).overlaps(decision.range));
            hit.map(|(_, left)| milliseconds(*left)).max().unwrap_or(milliseconds(self.config.deadline))
        };
        busy.map(wait).max().unwrap_or(0)
    }

    pub(super) fn note_refusal(&self, object: ObjectId, range: Range, reason: Reason) {
        self.ledger.refuse(self.clock.now(), object, range, reason);
    }
}

/// Takes direct stretches of one slice off the capacity that the next slices are decided with.
fn spend(aperture: &mut Option<ApertureInfo>, decisions: &[Decision]) {
    let Some(info) = aperture.as_mut().filter(|info| info.kind == ApertureKind::Windowed) else {
        return;
    };
    let direct: u64 = decisions
        .iter()
        .filter(|decision| matches!(decision.placement, Placement::Direct { .. }))
        .map(|decision| decision.range.length())
        .sum();
    info.capacity_bytes = info.capacity_bytes.saturating_sub(direct);
}

/// Rounded up, so that waiting this long is enough.
pub(super) fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

pub(super) fn chunk_range(number: u64) -> Range {
    Range::new(number.saturating_mul(CHUNK_BYTES), CHUNK_BYTES)
}

/// A pin writes only when it says so; atomic operations always do.
pub(super) fn is_write(request: &MapRequest) -> bool {
    request.flags.writes()
}
