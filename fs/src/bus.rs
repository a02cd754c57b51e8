//! Keeps the engine's topology that of the machine: read at the mount, at every event of the PCI bus, and when an importer
//! with an address comes, because a register that somebody has written (setpci) is no event.

mod events;

use std::io;
use std::sync::{Arc, Weak};

use peerfs_blockdev::BusPlace;
use peerfs_blockdev::pci::Host;
use peerfs_p2p::Engine;
use peerfs_p2p::topology::Topology;

pub use events::BusEvents;

/// The machine's bus around one mount.
#[derive(Debug)]
pub struct Bus {
    host: Host,
    /// Where the aperture is, if it is in a BAR.
    place: Option<BusPlace>,
    engine: Weak<Engine>,
}

impl Bus {
    /// The bus of `host` around the device whose aperture is at `place`; the engine knows of it from now on.
    pub fn new(host: Host, place: Option<BusPlace>, engine: &Arc<Engine>) -> Arc<Self> {
        let bus = Arc::new(Bus { host, place, engine: Arc::downgrade(engine) });
        bus.look();
        bus
    }

    /// Reads the machine's tree again. Mappings of importers that have lost their way are revoked, which is waited for.
    pub fn look(&self) {
        let Some(engine) = self.engine.upgrade() else { return };
        let report = engine.refresh_topology(|| self.topology());
        if report.revoked > 0 {
            tracing::info!(
                grants = report.revoked,
                "the PCI bus changed: importers without a way to the device lost their grants"
            );
        }
    }

    /// An importer with an address comes: looks for what was changed without an event, where that could matter.
    pub fn look_for_importer(&self) {
        if self.place.is_some() {
            self.look();
        }
    }

    /// What cannot be read is not there: nobody is let through for want of knowledge.
    fn topology(&self) -> Topology {
        let read = Topology::of_machine(&self.host, self.place).or_else(|error| {
            tracing::warn!(%error, "no device on the bus reaches the aperture");
            Topology::of_machine(&self.host, None)
        });
        read.unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing is known of the PCI bus");
            Topology::empty()
        })
    }

    /// Looks again at every event of the bus, until the result is dropped.
    ///
    /// # Errors
    /// The kernel gives no socket for events, or no thread can be had.
    pub fn follow(self: &Arc<Self>) -> io::Result<BusEvents> {
        let bus = Arc::clone(self);
        BusEvents::listen(move || bus.look())
    }
}
