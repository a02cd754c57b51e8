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
        grantable: true,
        bus: None,
    }
}

fn importer(flags: u32, dma_bits: u32) -> Importer {
    Importer {
        name: "cpu".into(),
        flags: ImporterFlags::from_bits_truncate(flags),
        dma_bits,
        va_bits: 47,
        page_bytes: 4096,
        pci_address: None,
        in_client: true,
    }
}

/// Every reason that holds for one byte, the naive way; without those that depend on what came before.
fn reasons(
    at: u64,
    survey: &Survey,
    request: &MapRequest,
    importer: &Importer,
    aperture: Option<&ApertureInfo>,
    conditions: &Conditions,
) -> ReasonSet {
    let block = Range::new(at / 4096 * 4096, 4096);
    let mut found = conditions.refusals;
    let mut add = |holds: bool, reason| found = found.with_if(holds, reason);
    let inside = at < survey.size;
    let extent = survey.extents.iter().find(|e| Range::new(e.file_offset, e.length).overlaps(block));
    let state = extent.map_or(ExtentState::Hole, |e| e.state);
    let atomic = request.flags.contains(MapFlags::ATOMIC);
    let (write, pin) = (atomic || request.flags.contains(MapFlags::WRITE), request.flags.contains(MapFlags::PIN));
    add(!survey.regular, Reason::NotRegularFile);
    add(inside && state == ExtentState::Hole, Reason::Hole);
    add(inside && state == ExtentState::Unwritten, Reason::Unwritten);
    add(!inside, Reason::BeyondEof);
    let whole = request.range.start <= block.start && (block.end.min(survey.size)) <= request.range.end;
    add(inside && !whole, Reason::Misaligned);
    let touched = |ranges: &[Range]| ranges.iter().any(|r| r.overlaps(block));
    add(inside && survey.policy == DirectPolicy::RespectCache && touched(&survey.cached), Reason::PageCached);
    add(inside && (write || pin) && matches!(state, ExtentState::Mapped { shared: true, .. }), Reason::SharedExtent);
    add(survey.policy == DirectPolicy::Never, Reason::Policy);
    add(write && (survey.read_only || !request.handle_writable), Reason::ReadOnly);
    add(inside && touched(&survey.closed), Reason::Busy);
    add(aperture.is_none(), Reason::NoAperture);
    let can = |flag| importer.flags.contains(flag);
    add(write && (!can(ImporterFlags::WRITE) || aperture.is_some_and(|a| !a.writable)), Reason::WriteForbidden);
    add(atomic && (!can(ImporterFlags::ATOMIC) || aperture.is_some_and(|a| !a.atomic)), Reason::AtomicUnsupported);
    if let (Some(extent), ExtentState::Mapped { device_offset, .. }) = (extent, state) {
        let on_device = Range::new(device_offset + (block.start - extent.file_offset), 4096);
        add(inside && conditions.bad.iter().any(|bad| bad.overlaps(on_device)), Reason::MediaError);
    }
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
            let triggers = TriggerSet::EMPTY.with(Trigger::Truncate);
            let pins = PinSurvey { left_bytes: left * 4096 + tail % 4096, cached_handles: handles.0, cached_writers: handles.1 };
            Survey { regular, size, read_only, policy, extents, cached, closed, triggers, pins }
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
        uid: 0,
        cache_probe: None,
    })
}

/// Device blocks 256 to 300 are where files of [`survey`] lie.
fn conditions() -> impl Strategy<Value = Conditions> {
    let bad = proptest::collection::btree_set(256u64..300, 0..3);
    let everywhere =
        proptest::sample::subsequence(vec![Reason::DeviceResetting, Reason::NoPeerPath, Reason::ImporterQuota], 0..=1);
    (bad, everywhere, proptest::bool::weighted(0.8)).prop_map(|(bad, everywhere, calm)| Conditions {
        refusals: everywhere.into_iter().filter(|_| !calm).collect(),
        bad: merged_blocks(&bad.into_iter().map(|block| Range::new(block * 4096, 4096)).collect::<Vec<_>>()),
    })
}

/// Blocks left of a budget; one block is charged once, however it is cut.
struct Blocks {
    left: u64,
    last: Option<u64>,
    reason: Reason,
}

impl Blocks {
    fn charge(&mut self, block: u64, all: ReasonSet) -> ReasonSet {
        if all.first().is_some_and(|reason| reason <= self.reason) {
            return all.with_if(self.left == 0, self.reason);
        }
        if self.last == Some(block) {
            return all;
        }
        if self.left == 0 {
            return all.with(self.reason);
        }
        self.left -= 1;
        self.last = Some(block);
        all
    }
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
        conditions in conditions(),
    ) {
        let info = aperture(capacity_blocks * 4096, abilities.0, abilities.1);
        let info = abilities.2.then_some(&info);
        let importer = importer(flags, bits);
        let decisions = decide(&survey, &request, &importer, info, &conditions);
        let pin = request.flags.contains(MapFlags::PIN);
        let windows = if info.is_some() { capacity_blocks } else { u64::MAX };
        let mut aperture = Blocks { left: windows, last: None, reason: Reason::ApertureFull };
        let pins = if pin { survey.pins.left_bytes / 4096 } else { u64::MAX };
        let mut pins = Blocks { left: pins, last: None, reason: Reason::PinQuota };
        let mut at = request.range.start;
        for (index, decision) in decisions.iter().enumerate() {
            prop_assert_eq!(decision.range.start, at);
            prop_assert!(!decision.range.is_empty());
            if index > 0 {
                prop_assert!(!continues(&decisions[index - 1], decision), "not maximal");
            }
            // Answers change at block boundaries and at the end of the object only: one byte of each block and side.
            let mut byte = at;
            while byte < decision.range.end {
                let all = reasons(byte, &survey, &request, &importer, info, &conditions);
                let all = pins.charge(byte / 4096, aperture.charge(byte / 4096, all));
                prop_assert_eq!(decision.refusals, all, "byte {}", byte);
                match decision.placement {
                    Placement::Fallback(reason) => {
                        prop_assert_eq!(Some(reason), all.first());
                        prop_assert!(decision.triggers.is_empty());
                    }
                    Placement::Direct { device_offset, .. } => {
                        prop_assert_eq!(decision.range.start % 4096, 0);
                        prop_assert_eq!(decision.triggers.contains(Trigger::AperturePressure), !pin);
                        prop_assert_eq!(decision.triggers.contains(Trigger::Truncate), !pin);
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
        triggers: TriggerSet::EMPTY,
        pins: PinSurvey::default(),
    };
    let request = MapRequest {
        object: ObjectId(1),
        range: Range { start: 0, end: 10_000 },
        flags: MapFlags::empty(),
        handle_writable: false,
        uid: 0,
        cache_probe: None,
    };
    let info = aperture(1 << 20, true, true);
    let direct = Placement::Direct { path: PathKind::DirectWindow, device_offset: 4096 };
    let decisions = decide(&survey, &request, &importer(7, 64), Some(&info), &Conditions::default());
    let placed: Vec<_> =
        decisions.iter().map(|decision| (decision.range.start, decision.range.end, decision.placement)).collect();
    assert_eq!(placed, [(0, 5000, direct), (5000, 10_000, Placement::Fallback(Reason::BeyondEof))]);
}
