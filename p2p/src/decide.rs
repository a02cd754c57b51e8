//! The decision: which stretches of a request may be mapped directly, and why the others may not.
//!
//! A pure function. Of all the reasons that hold for a stretch the first in
//! pipeline order is given ([`Reason::ALL`]).

use peerfs_abi::{ImporterFlags, MapFlags, Reason};
use peerfs_blockdev::{ApertureInfo, ApertureKind, BLOCK_BYTES};

use crate::types::{Decision, DirectPolicy, Extent, ExtentState, Importer, MapRequest, Placement, Range, Survey};

/// Windows lie anywhere in at least this many bits of address space.
const WINDOW_ADDRESS_BITS: u32 = 32;

/// Decides a request. The answer covers `request.range` exactly, in order, in maximal stretches: neighbours differ in
/// reason, or are direct but not neighbours on the device. With a windowed aperture, blocks beyond its whole capacity
/// are `ApertureFull`; how much of it is in use is not considered. Blocks of a pin beyond what is left of the quota
/// are `PinQuota`.
pub fn decide(survey: &Survey, request: &MapRequest, importer: &Importer, aperture: Option<&ApertureInfo>) -> Vec<Decision> {
    let everywhere = everywhere(survey, request, importer, aperture);
    let blocked = Blocked::new(survey, request);
    let mut room = Room::new(survey, request, aperture);
    let mut decisions = Vec::new();
    for piece in pieces(survey, request.range, &blocked) {
        let reason = piece_reason(survey, request, &blocked, &piece);
        match (reason.into_iter().chain(everywhere).min(), piece.device_offset()) {
            // The aperture's space is asked about after the filesystem, before everything else.
            (reason, Some(device_offset)) if reason.is_none_or(|r| r > Reason::ApertureFull) => {
                place(&mut decisions, &mut room, piece.range, device_offset, reason, aperture);
            }
            (reason, _) => push(&mut decisions, piece.range, Placement::Fallback(reason.unwrap_or(Reason::Hole))),
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
    fn device_offset(&self) -> Option<u64> {
        let extent = self.extent?;
        match extent.state {
            ExtentState::Mapped { device_offset, .. } => Some(device_offset + (self.range.start - extent.file_offset)),
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
fn pieces(survey: &Survey, range: Range, blocked: &Blocked) -> Vec<Piece> {
    let mut cuts = vec![range.start, range.end, survey.size, blocked.aligned.start, blocked.aligned.end];
    for extent in &survey.extents {
        cuts.extend([extent.file_offset, extent.file_offset.saturating_add(extent.length)]);
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

fn extent_at(extents: &[Extent], offset: u64) -> Option<Extent> {
    let after = extents.partition_point(|extent| extent.file_offset <= offset);
    let extent = *extents.get(after.checked_sub(1)?)?;
    (offset - extent.file_offset < extent.length).then_some(extent)
}

/// The first reason that holds for this piece in particular.
fn piece_reason(survey: &Survey, request: &MapRequest, blocked: &Blocked, piece: &Piece) -> Option<Reason> {
    let at = piece.range.start;
    if at >= survey.size {
        return Some(Reason::BeyondEof);
    }
    let shared = match piece.extent.map(|extent| extent.state) {
        None | Some(ExtentState::Hole) => return Some(Reason::Hole),
        Some(ExtentState::Unwritten) => return Some(Reason::Unwritten),
        Some(ExtentState::Migrated) => return Some(Reason::ApertureFull),
        Some(ExtentState::Mapped { shared, .. }) => shared,
    };
    if !(blocked.aligned.start..blocked.aligned.end).contains(&at) {
        Some(Reason::Misaligned)
    } else if contains(&blocked.cached, at) {
        Some(Reason::PageCached)
    } else if shared && request.flags.contains(MapFlags::WRITE) {
        Some(Reason::SharedExtent)
    } else if contains(&blocked.closed, at) {
        Some(Reason::Busy)
    } else {
        None
    }
}

/// The first reason that holds for the whole request.
fn everywhere(survey: &Survey, request: &MapRequest, importer: &Importer, aperture: Option<&ApertureInfo>) -> Option<Reason> {
    let write = request.flags.contains(MapFlags::WRITE);
    let atomic = request.flags.contains(MapFlags::ATOMIC);
    let pin = request.flags.contains(MapFlags::PIN);
    let can = |flag| importer.flags.contains(flag);
    let rules = [
        (!survey.regular, Reason::NotRegularFile),
        (survey.policy == DirectPolicy::Never, Reason::Policy),
        (write && (survey.read_only || !request.handle_writable), Reason::ReadOnly),
        (aperture.is_none(), Reason::NoAperture),
        (write && !(can(ImporterFlags::WRITE) && aperture.is_none_or(|a| a.writable)), Reason::WriteForbidden),
        (atomic && !(can(ImporterFlags::ATOMIC) && aperture.is_none_or(|a| a.atomic)), Reason::AtomicUnsupported),
        (pin && pin_meets_cache(survey, write), Reason::CpuWriter),
        (importer.dma_bits < WINDOW_ADDRESS_BITS, Reason::DmaMaskExceeded),
        (!can(ImporterFlags::DYNAMIC) && !pin, Reason::NotifierRequired),
    ];
    rules.iter().filter(|rule| rule.0).map(|rule| rule.1).min()
}

/// A pin cannot be taken back when a program touches the page cache: so no handle may be able to.
fn pin_meets_cache(survey: &Survey, write: bool) -> bool {
    let handles = if write { survey.pins.cached_handles } else { survey.pins.cached_writers };
    handles > 0
}

/// What is left for direct blocks while a request is decided, bytes.
struct Room {
    aperture: u64,
    pins: u64,
}

impl Room {
    fn new(survey: &Survey, request: &MapRequest, aperture: Option<&ApertureInfo>) -> Room {
        Room {
            aperture: match aperture {
                Some(info) if info.kind == ApertureKind::Windowed => block_floor(info.capacity_bytes),
                _ => u64::MAX,
            },
            pins: match request.flags.contains(MapFlags::PIN) {
                true => block_floor(survey.pins.left_bytes),
                false => u64::MAX,
            },
        }
    }

    /// The first part of a range that fits.
    fn take(left: &mut u64, range: Range) -> Range {
        let fits = block_ceil(range.length()).min(*left);
        *left -= fits;
        Range { end: range.start.saturating_add(fits).min(range.end), ..range }
    }
}

/// Takes blocks off what is left; what does not fit is `ApertureFull`, or `PinQuota`.
fn place(
    decisions: &mut Vec<Decision>,
    room: &mut Room,
    range: Range,
    device_offset: u64,
    reason: Option<Reason>,
    aperture: Option<&ApertureInfo>,
) {
    let inside = Room::take(&mut room.aperture, range);
    let allowed = match reason.is_none_or(|reason| reason > Reason::PinQuota) {
        true => Room::take(&mut room.pins, inside),
        false => inside,
    };
    let placement = match (reason, aperture) {
        (None, Some(info)) => Placement::Direct { path: info.path, device_offset },
        (reason, _) => Placement::Fallback(reason.unwrap_or(Reason::NoAperture)),
    };
    push(decisions, allowed, placement);
    push(decisions, Range { start: allowed.end, ..inside }, Placement::Fallback(Reason::PinQuota));
    push(decisions, Range { start: inside.end, ..range }, Placement::Fallback(Reason::ApertureFull));
}

/// Appends a stretch, as part of the last one where they belong together.
pub(crate) fn push(decisions: &mut Vec<Decision>, range: Range, placement: Placement) {
    if range.is_empty() {
        return;
    }
    if let Some(last) = decisions.last_mut()
        && last.range.end == range.start
        && continues(last, placement)
    {
        last.range.end = range.end;
        return;
    }
    decisions.push(Decision { range, placement });
}

fn continues(last: &Decision, next: Placement) -> bool {
    match (last.placement, next) {
        (Placement::Direct { path, device_offset }, Placement::Direct { path: next_path, device_offset: next_offset }) => {
            path == next_path && device_offset + last.range.length() == next_offset
        }
        (Placement::Fallback(reason), Placement::Fallback(next_reason)) => reason == next_reason,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
