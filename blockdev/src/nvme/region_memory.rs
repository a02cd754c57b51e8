//! A Persistent Memory Region as memory that holds the blocks of a volume.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::NvmeError;
use super::pmr::{Access, PersistentRegion};
use super::port::{PeerMemory, Port};
use crate::{BlockMemory, BusPlace, DeviceError, DeviceEvent, DeviceEvents, OpenMode, PathKind, WindowContent};

/// The region under the name of its volume. A region that fails is reported as removed, once.
#[derive(Debug)]
pub(super) struct RegionMemory {
    name: String,
    region: PersistentRegion,
    read_only: bool,
    events: Arc<DeviceEvents>,
    lost: AtomicBool,
}

impl RegionMemory {
    pub(super) fn new(name: String, region: PersistentRegion, mode: OpenMode, events: Arc<DeviceEvents>) -> Self {
        RegionMemory { name, region, read_only: mode == OpenMode::ReadOnly, events, lost: AtomicBool::new(false) }
    }

    /// Tells of it when the controller is to be removed.
    pub(super) fn watch_removal(self: &Arc<Self>, port: &dyn Port) {
        let own = Arc::downgrade(self);
        port.on_removal(Box::new(move || {
            if let Some(memory) = own.upgrade() {
                memory.report_lost();
            }
        }));
    }

    fn report_lost(&self) {
        if !self.lost.swap(true, Ordering::AcqRel) {
            self.events.report(&DeviceEvent::Removed);
        }
    }

    fn judge(&self, op: &'static str, place: (u64, u64), result: Result<Access, NvmeError>) -> Result<(), DeviceError> {
        match result {
            Ok(Access::Plain) => Ok(()),
            Ok(Access::Revived) => {
                self.events.report(&DeviceEvent::Recovered);
                Ok(())
            }
            Err(error) => {
                let (offset, length) = place;
                tracing::warn!(device = self.name, op, offset, length, %error);
                if matches!(error, NvmeError::CacheLost) {
                    self.events.report(&DeviceEvent::Recovered);
                } else {
                    self.report_lost();
                }
                Err(DeviceError::Io { device: self.name.clone(), op, offset, length, errno: error.errno() })
            }
        }
    }
}

impl BlockMemory for RegionMemory {
    fn length(&self) -> u64 {
        self.region.length()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let place = (offset, out.len() as u64);
        self.judge("read", place, self.region.read(offset, out))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let length = data.len() as u64;
        if self.read_only {
            return Err(DeviceError::Io { device: self.name.clone(), op: "write", offset, length, errno: libc::EROFS });
        }
        self.judge("write", (offset, length), self.region.write(offset, data))
    }

    fn barrier(&self) -> Result<(), DeviceError> {
        self.judge("flush", (0, self.length()), self.region.make_durable().map(|()| Access::Plain))
    }

    fn path(&self) -> PathKind {
        PathKind::DirectBar
    }

    fn peer_memory(&self, offset: u64, length: u64) -> Option<PeerMemory> {
        Some(PeerMemory { bar: self.region.bar().clone(), offset, length })
    }

    fn content(&self) -> WindowContent {
        WindowContent(self.region.times_off())
    }

    fn has_kept(&self, content: WindowContent) -> bool {
        self.region.has_been_on_since(content.0)
    }

    fn bus(&self) -> Option<BusPlace> {
        Some(self.region.bus())
    }
}
