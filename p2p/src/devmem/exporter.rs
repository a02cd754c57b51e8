//! Device memory as the engine asks about it.

use peerfs_abi::{MapFlags, Reason, Trigger, TriggerSet};

use super::Pool;
use super::allocation::{Home, Place};
use super::space::Piece;
use crate::exporter::Exporter;
use crate::sync::lock;
use crate::types::{CacheProbe, DirectPolicy, Extent, ExtentState, MapRequest, ObjectId, PinSurvey, Range, Survey};

/// What the pool itself may do to an object that ends mappings of it.
const CHANGES: TriggerSet =
    TriggerSet::EMPTY.with(Trigger::Relocation).with(Trigger::CpuAccess).with(Trigger::Unlink).with(Trigger::ClientGone);

impl Exporter for Pool {
    fn survey(&self, request: &MapRequest, range: Range) -> Option<Survey> {
        let Place { bytes, home } = self.find(request.object.allocation()?).ok()?.place().ok()?;
        let extents = match home {
            Home::Device(pieces) => extents(&pieces, range),
            Home::Main(_) => self.survey_migrated(request, bytes, range),
        };
        Some(Survey {
            regular: true,
            size: bytes,
            read_only: false,
            policy: DirectPolicy::Prefer,
            extents,
            cached: Vec::new(),
            closed: Vec::new(),
            triggers: CHANGES,
            // No program has it open through the page cache.
            pins: PinSurvey::default(),
        })
    }

    fn prepare(&self, object: ObjectId) {
        let Some(allocation) = object.allocation().and_then(|id| self.find(id).ok()) else {
            return;
        };
        self.touch(&allocation);
        let migrated = |place: Place| matches!(place.home, Home::Main(_));
        if allocation.place().is_ok_and(migrated)
            && let Ok(alone) = allocation.alone()
        {
            self.move_in(&alone);
        }
    }

    /// No page of device memory is ever in the page cache: its files are read and written directly only.
    fn quiesce(&self, _object: ObjectId, _range: Range, _probe: Option<CacheProbe>) -> Result<(), Reason> {
        Ok(())
    }

    fn write_granted(&self, _object: ObjectId) -> Result<(), Reason> {
        Ok(())
    }

    fn release_blocks(&self, _object: ObjectId, device_ranges: &[Range]) {
        self.end_quarantine(device_ranges);
    }
}

impl Pool {
    /// A question is answered as the map would be: it would move back into the free space that there is.
    fn survey_migrated(&self, request: &MapRequest, bytes: u64, range: Range) -> Vec<Extent> {
        let asked = request.flags.contains(MapFlags::QUERY);
        let preview = if asked { lock(&self.books).preview(bytes) } else { None };
        match preview {
            Some(pieces) => extents(&pieces, range),
            None => vec![Extent { file_offset: 0, length: bytes, state: ExtentState::Migrated }],
        }
    }
}

fn extents(pieces: &[Piece], range: Range) -> Vec<Extent> {
    let first = pieces.partition_point(|piece| piece.at + piece.length <= range.start);
    pieces[first..]
        .iter()
        .take_while(|piece| piece.at < range.end)
        .map(|piece| Extent {
            file_offset: piece.at,
            length: piece.length,
            state: ExtentState::Mapped { device_offset: piece.offset, shared: false },
        })
        .collect()
}

impl Piece {
    pub(super) fn range(&self) -> Range {
        Range::new(self.at, self.length)
    }
}
