//! The decision: which stretches of a request may be mapped directly, and why the others may not.
//!
//! A pure function. For every stretch it gives all the reasons that hold, and of
//! a direct one what could end its mapping later. A stretch falls back for the
//! first reason in pipeline order ([`Reason::ALL`]).

use peerfs_abi::{ImporterFlags, MapFlags, Reason, ReasonSet, Trigger, TriggerSet};
use peerfs_blockdev::{ApertureInfo, ApertureKind, BLOCK_BYTES};

use crate::types::{Decision, DirectPolicy, Extent, ExtentState, Importer, MapRequest, Placement, Range, Survey};

/// Windows lie anywhere in at least this many bits of address space.
const WINDOW_ADDRESS_BITS: u32 = 32;

/// What could end any mapping, whatever is mapped.
const ALWAYS: TriggerSet = TriggerSet::EMPTY
    .with(Trigger::Relocation)
    .with(Trigger::Administrator)
    .with(Trigger::ClientGone)
    .with(Trigger::Unmount)
    .with(Trigger::DeviceEvent);

/// What could end a pin before its holders do.
const PIN_ENDS: TriggerSet = TriggerSet::EMPTY.with(Trigger::Administrator).with(Trigger::Unmount);

/// What holds at this moment apart from the object: the device, the way to it, the importer's quota of mappings.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// Reasons that hold for the whole request.
    pub refusals: ReasonSet,
    /// Ranges of the storage device that cannot be read or written: whole blocks, sorted, apart from each other.
    pub bad: Vec<Range>,
}

/// Decides a request. The answer covers `request.range` exactly, in order, in maximal stretches: neighbours differ in
/// a reason or a trigger, or are direct but not neighbours on the device. With a windowed aperture, blocks beyond its
/// whole capacity are `ApertureFull`; how much of it is in use is not considered. Blocks of a pin beyond what is left
/// of the quota are `PinQuota`. What is refused before it would take space takes none; it has that reason too once
/// nothing is left.
pub fn decide(
    survey: &Survey,
    request: &MapRequest,
    importer: &Importer,
    aperture: Option<&ApertureInfo>,
    conditions: &Conditions,
) -> Vec<Decision> {
    let everywhere = everywhere(survey, request, importer, aperture).union(conditions.refusals);
    let triggers = triggers(survey, request, aperture);
    let blocked = Blocked::new(survey, request);
    let mut budgets = Budgets::new(survey, request, aperture);
    let mut decisions = Vec::new();
    for piece in pieces(survey, request.range, &blocked, &conditions.bad) {
        let refusals = piece_refusals(survey, request, &blocked, &piece, &conditions.bad).union(everywhere);
        for (range, refusals) in budgets.take(piece.range, refusals) {
            let direct = || Some((aperture?.path, piece.device_offset(range.start)?));
            let decision = match (refusals.first(), direct()) {
                (None, Some((path, device_offset))) => {
                    Decision { range, placement: Placement::Direct { path, device_offset }, refusals, triggers }
                }
                (reason, _) => {
                    let placement = Placement::Fallback(reason.unwrap_or(Reason::Hole));
                    Decision { range, placement, refusals, triggers: TriggerSet::EMPTY }
                }
            };
            push(&mut decisions, decision);
        }
    }
    decisions
}

/// A stretch on which nothing changes but what [`Blocked`] knows.
struct Piece {
    range: Range,
    extent: Option<Extent>,
}

impl Piece {
    /// Where byte `at` of the object, inside the piece, is on the device.
    fn device_offset(&self, at: u64) -> Option<u64> {
        let extent = self.extent?;
        match extent.state {
            ExtentState::Mapped { device_offset, .. } => Some(device_offset + (at - extent.file_offset)),
            ExtentState::Hole | ExtentState::Unwritten | ExtentState::Migrated => None,
        }
    }
}

/// Block ranges with a reason of their own, sorted.
struct Blocked {
    cached: Vec<Range>,
    closed: Vec<Range>,
    aligned: Range,
}

impl Blocked {
    fn new(survey: &Survey, request: &MapRequest) -> Blocked {
        let cached = match survey.policy {
            DirectPolicy::RespectCache => merged_blocks(&survey.cached),
            DirectPolicy::Prefer | DirectPolicy::Never => Vec::new(),
        };
        Blocked { cached, closed: merged_blocks(&survey.closed), aligned: aligned_part(request.range, survey.size) }
    }
}

/// Ranges widened to blocks, sorted, overlaps merged.
fn merged_blocks(ranges: &[Range]) -> Vec<Range> {
    let mut blocks: Vec<Range> = ranges
        .iter()
        .filter(|range| !range.is_empty())
        .map(|range| Range { start: block_floor(range.start), end: block_ceil(range.end) })
        .collect();
    blocks.sort_by_key(|range| range.start);
    let mut merged: Vec<Range> = Vec::with_capacity(blocks.len());
    for range in blocks {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn contains(ranges: &[Range], offset: u64) -> bool {
    let after = ranges.partition_point(|range| range.start <= offset);
    after > 0 && offset < ranges[after - 1].end
}

/// The part of the request that consists of whole blocks, or ends at the end of the object.
fn aligned_part(range: Range, size: u64) -> Range {
    let start = block_ceil(range.start);
    let end = if range.end >= size { range.end } else { block_floor(range.end) };
    Range { start, end: end.max(start) }
}

fn block_floor(offset: u64) -> u64 {
    offset - offset % BLOCK_BYTES
}

fn block_ceil(offset: u64) -> u64 {
    offset.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX)
}

/// Cuts the request wherever the answer may change.
fn pieces(survey: &Survey, range: Range, blocked: &Blocked, bad: &[Range]) -> Vec<Piece> {
    let mut cuts = vec![range.start, range.end, survey.size, blocked.aligned.start, blocked.aligned.end];
    for extent in &survey.extents {
        cuts.extend([extent.file_offset, extent.file_offset.saturating_add(extent.length)]);
        cut_bad(&mut cuts, extent, bad);
    }
    for blocks in blocked.cached.iter().chain(&blocked.closed) {
        cuts.extend([blocks.start, blocks.end]);
    }
    cuts.retain(|cut| (range.start..=range.end).contains(cut));
    cuts.sort_unstable();
    cuts.dedup();
    cuts.windows(2)
        .map(|pair| Piece { range: Range { start: pair[0], end: pair[1] }, extent: extent_at(&survey.extents, pair[0]) })
        .collect()
}

/// Where bad blocks of the device begin and end in an extent of the object.
fn cut_bad(cuts: &mut Vec<u64>, extent: &Extent, bad: &[Range]) {
    let ExtentState::Mapped { device_offset, .. } = extent.state else { return };
    let on_device = Range::new(device_offset, extent.length);
    let first = bad.partition_point(|range| range.end <= on_device.start);
    for hit in bad[first..].iter().take_while(|range| range.start < on_device.end) {
        let hit = hit.intersect(on_device);
        cuts.extend([hit.start, hit.end].map(|at| extent.file_offset + (at - device_offset)));
    }
}

fn extent_at(extents: &[Extent], offset: u64) -> Option<Extent> {
    let after = extents.partition_point(|extent| extent.file_offset <= offset);
    let extent = *extents.get(after.checked_sub(1)?)?;
    (offset - extent.file_offset < extent.length).then_some(extent)
}

/// The reasons that hold for this piece in particular.
fn piece_refusals(survey: &Survey, request: &MapRequest, blocked: &Blocked, piece: &Piece, bad: &[Range]) -> ReasonSet {
    let at = piece.range.start;
    if at >= survey.size {
        return ReasonSet::EMPTY.with(Reason::BeyondEof);
    }
    let state = piece.extent.map_or(ExtentState::Hole, |extent| extent.state);
    let shared = matches!(state, ExtentState::Mapped { shared: true, .. });
    ReasonSet::EMPTY
        .with_if(state == ExtentState::Hole, Reason::Hole)
        .with_if(state == ExtentState::Unwritten, Reason::Unwritten)
        .with_if(!(blocked.aligned.start..blocked.aligned.end).contains(&at), Reason::Misaligned)
        .with_if(contains(&blocked.cached, at), Reason::PageCached)
        .with_if(shared && (request.flags.writes() || request.flags.contains(MapFlags::PIN)), Reason::SharedExtent)
        .with_if(contains(&blocked.closed, at), Reason::Busy)
        .with_if(state == ExtentState::Migrated, Reason::ApertureFull)
        .with_if(piece.device_offset(at).is_some_and(|offset| contains(bad, offset)), Reason::MediaError)
}

/// The reasons that hold for the whole request.
fn everywhere(survey: &Survey, request: &MapRequest, importer: &Importer, aperture: Option<&ApertureInfo>) -> ReasonSet {
    let write = request.flags.writes();
    let atomic = request.flags.contains(MapFlags::ATOMIC);
    let pin = request.flags.contains(MapFlags::PIN);
    let can = |flag| importer.flags.contains(flag);
    // What is on the bus is judged by the way to the device.
    let narrow = importer.pci_address.is_none() && importer.dma_bits < WINDOW_ADDRESS_BITS;
    ReasonSet::EMPTY
        .with_if(!survey.regular, Reason::NotRegularFile)
        .with_if(survey.policy == DirectPolicy::Never, Reason::Policy)
        .with_if(write && (survey.read_only || !request.handle_writable), Reason::ReadOnly)
        .with_if(aperture.is_none(), Reason::NoAperture)
        .with_if(write && !(can(ImporterFlags::WRITE) && aperture.is_none_or(|a| a.writable)), Reason::WriteForbidden)
        .with_if(atomic && !(can(ImporterFlags::ATOMIC) && aperture.is_none_or(|a| a.atomic)), Reason::AtomicUnsupported)
        .with_if(pin && pin_meets_cache(survey, write), Reason::CpuWriter)
        .with_if(narrow, Reason::DmaMaskExceeded)
        .with_if(!can(ImporterFlags::DYNAMIC) && !pin, Reason::NotifierRequired)
}

/// A pin cannot be taken back when a program touches the page cache: so no handle may be able to.
fn pin_meets_cache(survey: &Survey, write: bool) -> bool {
    let handles = if write { survey.pins.cached_handles } else { survey.pins.cached_writers };
    handles > 0
}

/// What could end a direct mapping of this request later.
fn triggers(survey: &Survey, request: &MapRequest, aperture: Option<&ApertureInfo>) -> TriggerSet {
    if request.flags.contains(MapFlags::PIN) {
        return PIN_ENDS;
    }
    let all = survey.triggers.union(ALWAYS);
    match aperture.map(|info| info.kind) {
        Some(ApertureKind::Windowed) => all.with(Trigger::AperturePressure),
        _ => all,
    }
}

/// Space that a request takes, and the reason once it is gone.
struct Budget {
    left_bytes: u64,
    reason: Reason,
}

impl Budget {
    /// Takes blocks; what does not fit is refused.
    fn take(&mut self, range: Range, refusals: ReasonSet) -> [(Range, ReasonSet); 2] {
        if refusals.first().is_some_and(|reason| reason <= self.reason) {
            let nothing = Range { start: range.end, ..range };
            return [(range, refusals.with_if(self.left_bytes == 0, self.reason)), (nothing, refusals)];
        }
        let fits = block_ceil(range.length()).min(self.left_bytes);
        self.left_bytes -= fits;
        let split = range.start.saturating_add(fits).min(range.end);
        let (inside, beyond) = (Range { end: split, ..range }, Range { start: split, ..range });
        [(inside, refusals), (beyond, refusals.with(self.reason))]
    }
}

struct Budgets {
    aperture: Budget,
    pins: Budget,
}

impl Budgets {
    fn new(survey: &Survey, request: &MapRequest, aperture: Option<&ApertureInfo>) -> Budgets {
        let aperture_bytes = match aperture {
            Some(info) if info.kind == ApertureKind::Windowed => block_floor(info.capacity_bytes),
            _ => u64::MAX,
        };
        let pin_bytes = match request.flags.contains(MapFlags::PIN) {
            true => block_floor(survey.pins.left_bytes),
            false => u64::MAX,
        };
        Budgets {
            aperture: Budget { left_bytes: aperture_bytes, reason: Reason::ApertureFull },
            pins: Budget { left_bytes: pin_bytes, reason: Reason::PinQuota },
        }
    }

    fn take(&mut self, range: Range, refusals: ReasonSet) -> Vec<(Range, ReasonSet)> {
        let placed = self.aperture.take(range, refusals);
        placed
            .into_iter()
            .flat_map(|(range, refusals)| self.pins.take(range, refusals))
            .filter(|part| !part.0.is_empty())
            .collect()
    }
}

/// Appends a stretch, as part of the last one where they belong together.
pub(crate) fn push(decisions: &mut Vec<Decision>, next: Decision) {
    match decisions.last_mut() {
        Some(last) if continues(last, &next) => last.range.end = next.range.end,
        _ => decisions.push(next),
    }
}

fn continues(last: &Decision, next: &Decision) -> bool {
    let alike = last.refusals == next.refusals && last.triggers == next.triggers && last.range.end == next.range.start;
    alike
        && match (last.placement, next.placement) {
            (Placement::Direct { path, device_offset }, Placement::Direct { path: next_path, device_offset: next_offset }) => {
                path == next_path && device_offset + last.range.length() == next_offset
            }
            (Placement::Fallback(reason), Placement::Fallback(next_reason)) => reason == next_reason,
            _ => false,
        }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
