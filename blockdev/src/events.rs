//! Who wants to hear what happens to a device.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{DeviceEvent, EventSink};

/// The subscribers of a device. Shared between the device and whoever learns of events.
#[derive(Default)]
pub struct DeviceEvents(Mutex<Vec<EventSink>>);

impl DeviceEvents {
    /// From now on `sink` hears of every event.
    pub fn subscribe(&self, sink: EventSink) {
        self.sinks().push(sink);
    }

    /// Tells all subscribers, in the caller's thread.
    pub fn report(&self, event: &DeviceEvent) {
        // A sink may subscribe another.
        let sinks = self.sinks().clone();
        for sink in sinks {
            sink(event.clone());
        }
    }

    fn sinks(&self) -> MutexGuard<'_, Vec<EventSink>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for DeviceEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceEvents({} subscribers)", self.sinks().len())
    }
}
