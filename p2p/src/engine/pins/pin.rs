//! One pin: its window, what of it the object still owns, and who holds it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use peerfs_blockdev::{Run, Window};
use rangemap::RangeSet;

use super::quota::Charge;
use crate::api::{Client, GrantError, GrantObject};
use crate::clock::Gate;
use crate::engine::mappings::Mapping;
use crate::sync::{Mutex, lock};
use crate::types::{GrantId, ObjectId, Range};

/// See the module.
pub(in crate::engine) struct Pin {
    /// Never reused; also its name in custody.
    pub(super) id: u64,
    pub(super) object: ObjectId,
    /// From the first byte of the window to its last, in the object as it was when the pin was made.
    pub(super) range: Range,
    /// Stretches of the object that the window holds, whole blocks, sorted.
    pub(super) parts: Vec<Range>,
    pub(super) writable: bool,
    pub(super) importer: String,
    pub(super) owner: Client,
    pub(super) created: Duration,
    pub(super) window: Arc<dyn Window>,
    /// The window's runs by place on the device.
    by_device: Vec<Run>,
    /// Notified when the holder acknowledges a forced revocation: one for all pins.
    gate: Arc<Gate>,
    state: Mutex<State>,
}

struct State {
    /// Its name, while the mapping it was made through lives.
    grant: Option<GrantId>,
    /// A descriptor was handed over: from then on the holders decide.
    taken: bool,
    phase: Phase,
    acked: bool,
    /// Device ranges, bytes, that the object gave up and that wait for our end.
    orphaned: RangeSet<u64>,
    charge: Option<Charge>,
}

/// How far a pin has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Live,
    /// Somebody is ending it.
    Ending,
    /// A dma-buf that lost its blocks; its holders still have the memory.
    Detached,
}

/// What of a pin its grant needs to know.
pub(in crate::engine) struct PinGrant {
    pub(in crate::engine) pin: Arc<Pin>,
    pub(in crate::engine) mapping: Arc<Mapping>,
    /// Number in the session's sequence page.
    pub(in crate::engine) slot: u32,
}

/// What a new pin is made of.
pub(super) struct PinParts {
    pub(super) id: u64,
    pub(super) object: ObjectId,
    pub(super) range: Range,
    pub(super) parts: Vec<Range>,
    pub(super) writable: bool,
    pub(super) mapping: Arc<Mapping>,
    pub(super) created: Duration,
    pub(super) window: Arc<dyn Window>,
    pub(super) grant: GrantId,
    pub(super) charge: Charge,
    pub(super) gate: Arc<Gate>,
}

impl Pin {
    pub(super) fn new(made: PinParts) -> Arc<Pin> {
        let context = &made.mapping.context;
        Arc::new(Pin {
            id: made.id,
            object: made.object,
            range: made.range,
            parts: made.parts,
            writable: made.writable,
            importer: context.importer.name.clone(),
            owner: context.owner,
            created: made.created,
            by_device: sorted_by_device(&*made.window),
            window: made.window,
            gate: made.gate,
            state: Mutex::new(State {
                grant: Some(made.grant),
                taken: false,
                phase: Phase::Live,
                acked: false,
                orphaned: RangeSet::new(),
                charge: Some(made.charge),
            }),
        })
    }

    /// What it is handed over as.
    pub(in crate::engine) fn form(&self) -> GrantObject {
        if self.window.is_dmabuf() { GrantObject::PinnedDmabuf } else { GrantObject::PinnedMemfd }
    }

    pub(in crate::engine) fn length(&self) -> u64 {
        self.window.length()
    }

    pub(in crate::engine) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Hands its descriptor over, once. From then on it ends with its last holder.
    pub(in crate::engine) fn take(&self, writable: bool) -> Result<OwnedFd, GrantError> {
        let mut state = lock(&self.state);
        if state.phase != Phase::Live {
            return Err(GrantError::Gone);
        }
        if state.taken {
            return Err(GrantError::Taken);
        }
        // Opened before it counts as taken: nobody looks for holders before there is one.
        let fd = self.window.grant_fd(writable).map_err(|err| GrantError::Failed { reason: err.to_string() })?;
        state.taken = true;
        Ok(fd)
    }

    /// The importer has stopped.
    pub(in crate::engine) fn acknowledge(&self) {
        lock(&self.state).acked = true;
        self.gate.notify();
    }

    pub(super) fn is_acknowledged(&self) -> bool {
        lock(&self.state).acked
    }

    pub(super) fn grant(&self) -> Option<GrantId> {
        lock(&self.state).grant
    }

    pub(super) fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    /// Claims the right to end it, unless somebody else has it.
    pub(super) fn begin_end(&self) -> bool {
        let mut state = lock(&self.state);
        let ours = state.phase == Phase::Live;
        if ours {
            state.phase = Phase::Ending;
        }
        ours
    }

    /// As [`Pin::begin_end`], if it was handed over and nobody holds it any more.
    pub(super) fn begin_end_if_unheld(&self) -> bool {
        let mut state = lock(&self.state);
        // Under the lock, so that it is not handed over in between.
        let ours = state.phase == Phase::Live && state.taken && !self.window.is_held();
        if ours {
            state.phase = Phase::Ending;
        }
        ours
    }

    /// The mapping it was made through has ended. True when that is its end too: nobody was ever handed it.
    pub(super) fn lose_mapping(&self) -> bool {
        let mut state = lock(&self.state);
        state.grant = None;
        let ours = state.phase == Phase::Live && !state.taken;
        if ours {
            state.phase = Phase::Ending;
        }
        ours
    }

    /// Its blocks are the object's no longer; the memory stays with its holders.
    pub(super) fn set_detached(&self) {
        lock(&self.state).phase = Phase::Detached;
    }

    /// Takes device ranges that the object gives up, as far as they are ours.
    pub(super) fn orphan(&self, freed: &[Range]) -> Vec<Range> {
        let mut found = Vec::new();
        let mut offsets = Vec::new();
        for freed in freed {
            let first = self.by_device.partition_point(|run| on_device(run).end <= freed.start);
            for run in self.by_device[first..].iter().take_while(|run| run.device_offset < freed.end) {
                let common = on_device(run).intersect(*freed);
                if !common.is_empty() {
                    found.push(common);
                    let start = run.window_offset + (common.start - run.device_offset);
                    offsets.push(start..start + common.length());
                }
            }
        }
        let mut state = lock(&self.state);
        state.orphaned.extend(found.iter().map(|range| range.start..range.end));
        self.window.disown(&offsets);
        found
    }

    pub(super) fn is_orphaned(&self) -> bool {
        !lock(&self.state).orphaned.is_empty()
    }

    /// What waits for our end.
    pub(super) fn take_orphaned(&self) -> Vec<Range> {
        let orphaned = std::mem::take(&mut lock(&self.state).orphaned);
        orphaned.into_iter().map(|range| Range { start: range.start, end: range.end }).collect()
    }

    /// Gives the quota back.
    pub(super) fn discharge(&self) {
        let charge = lock(&self.state).charge.take();
        drop(charge);
    }

    /// Parts of the object whose blocks it still shares with the object, in the order of the window.
    pub(super) fn attached(&self) -> Vec<Range> {
        let state = lock(&self.state);
        let mut attached = Vec::new();
        for run in self.window.runs() {
            let device = on_device(run);
            let to_object = |at: u64| self.range.start + run.window_offset + (at - run.device_offset);
            let whole = device.start..device.end;
            let parts = state.orphaned.gaps(&whole).map(|part| Range { start: to_object(part.start), end: to_object(part.end) });
            attached.extend(parts);
        }
        attached
    }
}

fn sorted_by_device(window: &dyn Window) -> Vec<Run> {
    let mut runs = window.runs().to_vec();
    runs.sort_unstable_by_key(|run| run.device_offset);
    runs
}

fn on_device(run: &Run) -> Range {
    Range::new(run.device_offset, run.length)
}
