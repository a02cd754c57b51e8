use proptest::prelude::*;

use super::*;
use crate::types::{ObjectId, PinSurvey};
use peerfs_blockdev::PathKind;

fn aperture(capacity_bytes: u64, writable: bool, atomic: bool) -> ApertureInfo {
    ApertureInfo {
        name: "test".into(),
        kind: ApertureKind::Windowed,
        path: PathKind::DirectWindow,
        capacity_bytes,
        used_bytes: 0,
        windows: 0,
        page_bytes: 4096,
        writable,
        atomic,
    }
}

fn importer(flags: u32, dma_bits: u32) -> Importer {
    Importer { name: "cpu".into(), flags: ImporterFlags::from_bits_truncate(flags), dma_bits, va_bits: 47, page_bytes: 4096 }
}

/// Every reason that holds for one byte, the naive way; without `ApertureFull`, which depends on what came before.
fn reasons(at: u64, survey: &Survey, request: &MapRequest, importer: &Importer, aperture: Option<&ApertureInfo>) -> Vec<Reason> {
    let block = Range::new(at / 4096 * 4096, 4096);
    let mut found = Vec::new();
    let mut add = |holds: bool, reason| found.extend(holds.then_some(reason));
    let inside = at < survey.size;
    let state = survey
        .extents
        .iter()
        .find(|e| Range::new(e.file_offset, e.length).overlaps(block))
        .map_or(ExtentState::Hole, |e| e.state);
    let (write, pin) = (request.flags.contains(MapFlags::WRITE), request.flags.contains(MapFlags::PIN));
    add(!survey.regular, Reason::NotRegularFile);
    add(inside && state == ExtentState::Hole, Reason::Hole);
    add(inside && state == ExtentState::Unwritten, Reason::Unwritten);
    add(!inside, Reason::BeyondEof);
    let whole = request.range.start <= block.start && (block.end.min(survey.size)) <= request.range.end;
    add(inside && !whole, Reason::Misaligned);
    let touched = |ranges: &[Range]| ranges.iter().any(|r| r.overlaps(block));
    add(inside && survey.policy == DirectPolicy::RespectCache && touched(&survey.cached), Reason::PageCached);
    add(inside && write && matches!(state, ExtentState::Mapped { shared: true, .. }), Reason::SharedExtent);
    add(survey.policy == DirectPolicy::Never, Reason::Policy);
    add(write && (survey.read_only || !request.handle_writable), Reason::ReadOnly);
    add(inside && touched(&survey.closed), Reason::Busy);
    add(aperture.is_none(), Reason::NoAperture);
    let can = |flag| importer.flags.contains(flag);
    add(write && (!can(ImporterFlags::WRITE) || aperture.is_some_and(|a| !a.writable)), Reason::WriteForbidden);
    let atomic = request.flags.contains(MapFlags::ATOMIC);
    add(atomic && (!can(ImporterFlags::ATOMIC) || aperture.is_some_and(|a| !a.atomic)), Reason::AtomicUnsupported);
    let handles = if write { survey.pins.cached_handles } else { survey.pins.cached_writers };
    add(pin && handles > 0, Reason::CpuWriter);
    add(importer.dma_bits < 32, Reason::DmaMaskExceeded);
    add(!pin && !can(ImporterFlags::DYNAMIC), Reason::NotifierRequired);
    found
}

fn survey() -> impl Strategy<Value = Survey> {
    let extent = (1u64..5, 0u8..5, any::<bool>());
    let ranges = || proptest::collection::vec((0u64..90_000, 0u64..9_000).prop_map(|(s, l)| Range::new(s, l)), 0..3);
    let policy = prop_oneof![
        6 => Just(DirectPolicy::Prefer),
        3 => Just(DirectPolicy::RespectCache),
        1 => Just(DirectPolicy::Never)
    ];
    (
        proptest::collection::vec(extent, 0..12),
        0u64..5000,
        proptest::bool::weighted(0.95),
        proptest::bool::weighted(0.2),
        policy,
        ranges(),
        ranges(),
        (0u64..20, prop_oneof![4 => Just((0, 0)), 1 => Just((1, 0)), 1 => Just((1, 1))]),
    )
        .prop_map(|(stretches, tail, regular, read_only, policy, cached, closed, (left, handles))| {
            let mut extents = Vec::new();
            let (mut at, mut device) = (0, 1 << 20);
            for (blocks, kind, gap) in stretches {
                let length = blocks * 4096;
                device += u64::from(gap) * 4096;
                let state = match kind {
                    0 => ExtentState::Hole,
                    1 => ExtentState::Unwritten,
                    _ => ExtentState::Mapped { device_offset: device, shared: kind == 2 },
                };
                extents.push(Extent { file_offset: at, length, state });
                at += length;
                device += length;
            }
            let size = at.saturating_sub(tail);
            extents.retain(|e| e.file_offset < size.next_multiple_of(4096));
            let pins = PinSurvey { left_bytes: left * 4096 + tail % 4096, cached_handles: handles.0, cached_writers: handles.1 };
            Survey { regular, size, read_only, policy, extents, cached, closed, pins }
        })
}

fn request() -> impl Strategy<Value = MapRequest> {
    let offset = || prop_oneof![(0u64..25).prop_map(|b| b * 4096), 0u64..100_000];
    let flags = prop_oneof![3 => Just(0u32), 3 => Just(2), 1 => 0u32..8];
    (offset(), offset(), flags, proptest::bool::weighted(0.8)).prop_map(|(a, b, flags, handle_writable)| MapRequest {
        object: ObjectId(1),
        range: Range { start: a.min(b), end: a.max(b) },
        flags: MapFlags::from_bits_truncate(flags),
        handle_writable,
        cache_probe: None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_a_byte_by_byte_oracle(
        survey in survey(),
        request in request(),
        flags in prop_oneof![3 => Just(7u32), 1 => 0u32..8],
        bits in prop_oneof![8 => Just(64u32), 1 => 24u32..40],
        capacity_blocks in prop_oneof![2 => Just(1000u64), 1 => 0u64..20],
        abilities in (proptest::bool::weighted(0.9), proptest::bool::weighted(0.9), proptest::bool::weighted(0.9)),
    ) {
        let info = aperture(capacity_blocks * 4096, abilities.0, abilities.1);
        let info = abilities.2.then_some(&info);
        let importer = importer(flags, bits);
        let decisions = decide(&survey, &request, &importer, info);
        let mut at = request.range.start;
        let mut budget = capacity_blocks;
        let mut last_charged = None;
        let pinned = request.flags.contains(MapFlags::PIN);
        let mut pins_left = if pinned { survey.pins.left_bytes / 4096 } else { u64::MAX };
        let mut last_pinned = None;
        for (index, decision) in decisions.iter().enumerate() {
            prop_assert_eq!(decision.range.start, at);
            prop_assert!(!decision.range.is_empty());
            if index > 0 {
                prop_assert!(!continues(&decisions[index - 1], decision.placement), "not maximal");
            }
            // Answers change at block boundaries and at the end of the object only: one byte of each block and side.
            let mut byte = at;
            while byte < decision.range.end {
                let mut all = reasons(byte, &survey, &request, &importer, info);
                if all.iter().all(|reason| *reason > Reason::ApertureFull) {
                    if last_charged != Some(byte / 4096) && budget == 0 {
                        all.push(Reason::ApertureFull);
                    } else if last_charged != Some(byte / 4096) {
                        budget -= 1;
                        last_charged = Some(byte / 4096);
                    }
                }
                if all.iter().all(|reason| *reason > Reason::PinQuota) && last_pinned != Some(byte / 4096) {
                    if pins_left == 0 {
                        all.push(Reason::PinQuota);
                    } else {
                        pins_left -= 1;
                        last_pinned = Some(byte / 4096);
                    }
                }
                match decision.placement {
                    Placement::Fallback(reason) => prop_assert_eq!(Some(&reason), all.iter().min(), "byte {}", byte),
                    Placement::Direct { device_offset, .. } => {
                        prop_assert!(all.is_empty(), "byte {} is {:?}", byte, all);
                        prop_assert_eq!(decision.range.start % 4096, 0);
                        let extent = survey.extents.iter().find(|e| Range::new(e.file_offset, e.length).overlaps(Range::new(byte, 1)));
                        let expected = extent.map(|e| match e.state {
                            ExtentState::Mapped { device_offset, .. } => device_offset + (byte - e.file_offset),
                            _ => 0,
                        });
                        prop_assert_eq!(Some(device_offset + (byte - decision.range.start)), expected);
                    }
                }
                let next_block = (byte / 4096 + 1) * 4096;
                byte = if byte < survey.size { next_block.min(survey.size) } else { next_block };
            }
            at = decision.range.end;
        }
        prop_assert_eq!(at, request.range.end.max(request.range.start));
    }
}

#[test]
fn the_last_partial_block_is_direct_up_to_the_end_of_the_object() {
    let extent = Extent { file_offset: 0, length: 8192, state: ExtentState::Mapped { device_offset: 4096, shared: false } };
    let survey = Survey {
        regular: true,
        size: 5000,
        read_only: false,
        policy: DirectPolicy::Prefer,
        extents: vec![extent],
        cached: Vec::new(),
        closed: Vec::new(),
        pins: PinSurvey::default(),
    };
    let request = MapRequest {
        object: ObjectId(1),
        range: Range { start: 0, end: 10_000 },
        flags: MapFlags::empty(),
        handle_writable: false,
        cache_probe: None,
    };
    let info = aperture(1 << 20, true, true);
    let direct = Placement::Direct { path: PathKind::DirectWindow, device_offset: 4096 };
    let expected = [
        Decision { range: Range { start: 0, end: 5000 }, placement: direct },
        Decision { range: Range { start: 5000, end: 10_000 }, placement: Placement::Fallback(Reason::BeyondEof) },
    ];
    assert_eq!(decide(&survey, &request, &importer(7, 64), Some(&info)), expected);
}
