//! A grant in use: the window, whether it is still valid, and who is inside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerfs_abi::ioctl::Event;
use peerfs_abi::{Path, Trigger};
use peerfs_sys::Window;

use crate::Error;
use crate::attestation::Counters;
use crate::callbacks::Callbacks;
use crate::registry::lock;
use crate::segment::GrantPlace;
use crate::session::Core;

/// What an importer is told when a direct mapping ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// The mapping.
    pub mapping_id: u64,
    /// Start of the range in the file, bytes.
    pub file_offset: u64,
    /// Length of the range, bytes.
    pub length: u64,
    /// Why; `None` for a reason newer than this library.
    pub trigger: Option<Trigger>,
    /// How long the importer may take to stop.
    pub deadline: Duration,
}

/// What the grants of one mapping have in common.
#[derive(Default)]
pub(crate) struct Shared {
    /// The server's number of the mapping; 0 until it has answered.
    pub(crate) mapping_id: AtomicU64,
    pub(crate) callbacks: Callbacks,
    pub(crate) counters: Counters,
}

impl Shared {
    /// Calls back.
    pub(crate) fn notify(&self, event: &Event) {
        let revocation = Revocation {
            mapping_id: self.mapping_id.load(Ordering::Acquire),
            file_offset: event.file_offset,
            length: event.length,
            trigger: Trigger::from_code(event.trigger),
            deadline: Duration::from_millis(event.deadline_ms.into()),
        };
        self.callbacks.run(&revocation);
    }
}

/// What the server handed over for a grant.
#[derive(Default)]
pub(crate) struct Taken {
    /// `None`: it was revoked before it could be mapped.
    pub(crate) window: Option<Window>,
    pub(crate) pin: Option<OwnedFd>,
}

/// One grant as used by one mapping.
pub(crate) struct Grant {
    place: GrantPlace,
    /// The descriptor of a pin, for handing it on.
    pin: Option<OwnedFd>,
    path: Path,
    core: Arc<Core>,
    pub(crate) shared: Arc<Shared>,
    state: Mutex<State>,
}

struct State {
    /// `None` once revoked.
    window: Option<Arc<Window>>,
    inside: usize,
}

impl Grant {
    pub(crate) fn new(core: Arc<Core>, shared: Arc<Shared>, place: GrantPlace, path: Path, taken: Taken) -> Arc<Grant> {
        let state = State { window: taken.window.map(Arc::new), inside: 0 };
        Arc::new(Grant { place, pin: taken.pin, path, core, shared, state: Mutex::new(state) })
    }

    /// The descriptor of a pin, and its size in bytes.
    pub(crate) fn pin(&self) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.pin.as_ref()?.as_fd(), self.place.length))
    }

    pub(crate) fn id(&self) -> u64 {
        self.place.id
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    /// Enters the window if it is valid; `None` when it was revoked. Until the result is dropped, the revocation is not acknowledged.
    pub(crate) fn enter(self: &Arc<Self>) -> Result<Option<Entered>, Error> {
        let window = {
            let mut state = lock(&self.state);
            let Some(window) = state.window.clone() else {
                return Ok(None);
            };
            state.inside += 1;
            window
        };
        let entered = Entered { grant: Arc::clone(self), window };
        Ok(entered.still_valid()?.then_some(entered))
    }

    /// Lets nobody in any more. The window lives on while somebody is inside or holds the answer.
    pub(crate) fn close(&self) -> Option<Arc<Window>> {
        lock(&self.state).window.take()
    }

    /// Was it revoked or given back?
    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).window.is_none()
    }

    /// Is nobody inside?
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).inside == 0
    }

    fn leave(&self) {
        let mut state = lock(&self.state);
        state.inside -= 1;
        let last_of_closed = state.inside == 0 && state.window.is_none();
        drop(state);
        if last_of_closed {
            self.core.wake();
        }
    }
}

/// Proof of being inside a grant's window.
pub(crate) struct Entered {
    grant: Arc<Grant>,
    window: Arc<Window>,
}

impl Entered {
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    pub(crate) fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The check after an access: what was moved counts only when this answers `true`.
    pub(crate) fn still_valid(&self) -> Result<bool, Error> {
        let place = &self.grant.place;
        self.grant.core.is_valid(place.slot, place.sequence)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // In a fork child the lock may be held for ever by a thread that does not exist there.
        if self.grant.core.is_home() {
            self.grant.leave();
        }
    }
}
