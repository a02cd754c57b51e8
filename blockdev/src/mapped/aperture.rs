//! All of a mapped device as an aperture: each block is reached where it lives.
//!
//! Nothing is copied when a window opens, is cut or is written back: a window is
//! permission. It owns blocks for one file at a time, keeps what lies behind the end
//! of that file zero, and makes what a peer stores durable.
//!
//! The memory of a BAR or of a DAX file cannot be handed to a process and be taken
//! back from it, so these windows are for importers that run beside the aperture and
//! are not granted to clients: [`crate::ApertureInfo::grantable`] is false, and maps by
//! clients fall back with `NoGrantObject`. The importer inside the server reads through
//! them. A [`crate::Cmb`] over the device serves clients.
//!
//! Like the software CMB this is aperture and block device at once, because what the
//! filesystem writes behind the end of a file, before it moves the end, must stay.
//!
//! Lock order: the index, then the ends of files by the number of their windows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::placed::Index;
use crate::tail::Tail;
use crate::{
    Aperture, ApertureInfo, ApertureKind, BlockDevice, BlockMemory, DeviceError, DeviceInfo, EventSink, Io, IoBuf, Ticket,
    Window, WindowError, WindowSpec,
};

use super::window::{Core, MappedWindow};

/// An identity aperture over a mapped device; see the module's documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MappedAperture {
    shared: Arc<Shared>,
}

/// What the aperture and its windows have in common.
#[derive(Debug)]
pub(super) struct Shared {
    name: &'static str,
    device: Arc<dyn BlockDevice>,
    memory: Arc<dyn BlockMemory>,
    /// Held for reading while blocks are written, so that a new window finds no write under way that did not see it.
    index: RwLock<Index<Core>>,
    next_window: AtomicU64,
}

impl MappedAperture {
    /// All of `device`, whose blocks are those of `memory`, under a `name` for people.
    pub fn new(name: &'static str, device: Arc<dyn BlockDevice>, memory: Arc<dyn BlockMemory>) -> Self {
        let next_window = AtomicU64::new(1);
        MappedAperture { shared: Arc::new(Shared { name, device, memory, index: RwLock::default(), next_window }) }
    }

    /// Runs `write`, which writes a range of the device, with the windows on the range knowing of it.
    fn write<T>(&self, offset: u64, length: u64, write: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        self.info_of_device().check_range(offset, length)?;
        let index = self.shared.index();
        let parts = index.split(offset, length).into_iter();
        let mut places: Vec<_> = parts.filter_map(|part| part.place.map(|(core, at)| (core, at..at + part.length))).collect();
        places.sort_by_key(|(core, range)| (core.id(), range.start));
        let mut tails: Vec<(u64, MutexGuard<'_, Tail>)> = Vec::new();
        for (core, range) in &places {
            if tails.last().is_none_or(|(id, _)| *id != core.id()) {
                tails.push((core.id(), core.tail()));
            }
            if let Some((_, tail)) = tails.last_mut() {
                tail.note_write(range.clone());
            }
        }
        write()
    }

    fn info_of_device(&self) -> DeviceInfo {
        self.shared.device.info()
    }
}

impl Aperture for MappedAperture {
    fn info(&self) -> ApertureInfo {
        let index = self.shared.index();
        ApertureInfo {
            name: self.shared.name.into(),
            kind: ApertureKind::Identity,
            path: self.shared.memory.path(),
            capacity_bytes: self.info_of_device().size_bytes,
            used_bytes: index.used_bytes(),
            windows: index.windows(),
            page_bytes: 4096,
            writable: true,
            // Whether a device's atomic operations arrive as such is for the path to it to say; none does yet.
            atomic: false,
            grantable: false,
            bus: self.shared.memory.bus(),
        }
    }

    fn open_window(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        let shared = &self.shared;
        spec.check(&self.info_of_device())?;
        let core = Arc::new(Core::new(shared.next_window.fetch_add(1, Ordering::Relaxed), spec));
        let mut index = shared.index_mut();
        index.insert(&core).map_err(|device_offset| WindowError::Overlap { device_offset })?;
        if let Err(err) = core.clear_last_block(shared.memory()) {
            index.remove(&core);
            return Err(err.into());
        }
        index.lend(core.lent_bytes());
        drop(index);
        Ok(Arc::new(MappedWindow::new(core, shared.clone())))
    }
}

impl BlockDevice for MappedAperture {
    fn info(&self) -> DeviceInfo {
        self.info_of_device()
    }

    fn buffer(&self, length: usize) -> IoBuf {
        self.shared.device.buffer(length)
    }

    fn submit(&self, io: Io) -> Ticket {
        if !io.is_write() {
            return self.shared.device.submit(io);
        }
        Ticket::ready(self.write(io.offset(), io.length(), || self.shared.device.submit(io).wait()))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.shared.device.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.shared.device.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.write(offset, length, || self.shared.device.write_zeroes(offset, length))
    }

    fn subscribe(&self, sink: EventSink) {
        self.shared.device.subscribe(sink);
    }
}

impl Shared {
    pub(super) fn memory(&self) -> &dyn BlockMemory {
        &*self.memory
    }

    fn index(&self) -> RwLockReadGuard<'_, Index<Core>> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn index_mut(&self) -> RwLockWriteGuard<'_, Index<Core>> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refuse(&self, reason: &str) -> DeviceError {
        DeviceError::Unusable { device: self.device.info().name, reason: reason.into() }
    }
}
