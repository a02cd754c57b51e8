//! The thread that finds pins that nobody holds any more. It runs while there are pins.

use std::sync::{Arc, Weak};

use super::{Pin, Pins};
use crate::clock::{Clock, Gate};
use crate::engine::Engine;
use crate::sync::{lock, thread};

impl Engine {
    /// A pin became live: it is looked at from now on.
    pub(super) fn watch_pin(&self, pin: Arc<Pin>) {
        let mut table = lock(&self.pins.table);
        table.pins.insert(pin.id, pin);
        if table.watched {
            return;
        }
        let (engine, clock, gate) = (self.pins.engine.clone(), self.clock.clone(), self.pins.gate.clone());
        let interval = self.config.pin_poll;
        let started = thread::Builder::new().name("peerfs-pins".into()).spawn(move || watch(&engine, &*clock, &gate, interval));
        match started {
            Ok(_) => table.watched = true,
            // The next pin tries again.
            Err(error) => tracing::error!(%error, "pins end with the mount only: their thread could not be started"),
        }
    }
}

fn watch(engine: &Weak<Engine>, clock: &dyn Clock, gate: &Arc<Gate>, interval: std::time::Duration) {
    loop {
        let next = clock.now() + interval;
        clock.wait(gate, Some(next), &mut || engine.strong_count() == 0);
        let Some(engine) = engine.upgrade() else { return };
        engine.reap_pins();
        if engine.pins.leave_if_idle() {
            return;
        }
    }
}

impl Pins {
    pub(super) fn all(&self) -> Vec<Arc<Pin>> {
        lock(&self.table).pins.values().cloned().collect()
    }

    pub(super) fn has(&self, pin: &Pin) -> bool {
        lock(&self.table).pins.contains_key(&pin.id)
    }

    pub(super) fn remove(&self, pin: &Pin) {
        lock(&self.table).pins.remove(&pin.id);
        self.gate.notify();
    }

    /// The thread's last look: true when there is nothing to watch, and the next pin starts another.
    fn leave_if_idle(&self) -> bool {
        let mut table = lock(&self.table);
        table.watched = !table.pins.is_empty();
        !table.watched
    }
}
