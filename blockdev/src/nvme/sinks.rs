//! Who wants to hear of events.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::{DeviceEvent, EventSink};

/// Receivers, called in the order in which they came.
#[derive(Default)]
pub(super) struct Sinks(Mutex<Vec<EventSink>>);

impl Sinks {
    pub(super) fn add(&self, sink: EventSink) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(sink);
    }

    /// Tells everybody, with no lock held.
    pub(super) fn report(&self, event: &DeviceEvent) {
        let sinks = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for sink in sinks {
            sink(event.clone());
        }
    }
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sinks", self.0.lock().unwrap_or_else(PoisonError::into_inner).len())
    }
}
