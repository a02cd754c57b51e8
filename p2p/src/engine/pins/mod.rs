//! Pins: grants that nothing takes back but an administrator and the end of the mount.
//!
//! A pin has a window of its own from the start. Its lifetime is that of its
//! memory's holders, in whatever process, not that of the mapping through which it
//! was made: a thread looks at every handed-over pin at an interval. While it
//! lives its blocks are mapped for nobody else, and files are opened so that the
//! CPU's page cache stays out of its way. Blocks that the file gives up under a
//! pin stay out of reuse until its end.
//!
//! Locks: the table and a pin's own state are leaves.

mod build;
mod coherence;
mod end;
mod map;
mod object;
mod pin;
mod quota;
mod reaper;
mod records;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::Engine;
use crate::clock::Gate;
use crate::sync::Mutex;

pub use end::PinReport;
pub(super) use object::ObjectPins;
pub(super) use pin::{Pin, PinGrant};
pub use quota::PinQuota;
pub use records::{PinRecord, PinTotals};

use quota::Quota;

/// Most bytes of one pin: what one window can hold.
const PIN_BYTES_MAX: u64 = 1 << 30;

/// All pins of an engine.
pub(super) struct Pins {
    pub(super) engine: Weak<Engine>,
    table: Mutex<Table>,
    /// Notified when a pin has ended, and to stop the thread.
    gate: Arc<Gate>,
    quota: Quota,
}

#[derive(Default)]
struct Table {
    pins: BTreeMap<u64, Arc<Pin>>,
    /// The thread that looks for pins that nobody holds any more is running.
    watched: bool,
}

impl Pins {
    pub(super) fn new(engine: Weak<Engine>) -> Self {
        Pins { engine, table: Mutex::default(), gate: Arc::default(), quota: Quota::default() }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // The thread finds that there is no engine any more.
        self.gate.notify();
    }
}
