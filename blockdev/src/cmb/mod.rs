//! A controller memory buffer: windows over any block device. In software they are main memory; over a controller that
//! lends memory of its own they are pieces of that ([`lent`]).
//!
//! A window's pages are the authoritative copy of the blocks in it from the
//! moment it is filled until it has been written back. So the same object is
//! both the aperture and the block device that everybody above uses: requests
//! on windowed blocks are served from the window, all others go to the device
//! below.
//!
//! Two rules keep a hostile peer from doing harm. Window memory of this host is never mapped
//! here, and never reached by the size of its file: bytes move by registered-buffer
//! I/O, which a truncated or resized file cannot disturb. And what is written to the
//! device is first copied to memory of ours, so it cannot change under the write.
//!
//! The same serves a device whose blocks live in memory as an *identity* aperture: there a window is not a copy of its
//! blocks but their home. The old home is given up when the window is filled, nothing is written through, and when the
//! window is cut its blocks move to new memory of the device. A window that was cut is never used again.
//!
//! Lock order: `Core::order`, then `Core::phase`, then `Shared::index`, then the list of raw writes.

mod lent;
mod lockable;
mod memory;
mod overlay;
mod raw;
mod window;

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use peerfs_sys::Engine;

use crate::nvme::ControllerMemory;
use crate::placed::{HasRuns, Index};
use crate::{
    Aperture, ApertureInfo, ApertureKind, BLOCK_BYTES, BlockDevice, DeviceError, IoBuf, Run, Window, WindowError, WindowSpec,
};

use lent::LentSpace;
use lockable::lendable;
use memory::Source;
use raw::RawRequests;
use window::{CmbWindow, Core};

/// A CMB over a block device; see the module's documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cmb {
    shared: Arc<Shared>,
}

/// What a window's memory is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Memfd,
    DmaBuf,
}

/// What the aperture, its windows and the overlay have in common.
#[derive(Debug)]
struct Shared {
    inner: Arc<dyn BlockDevice>,
    source: Source,
    kind: ApertureKind,
    capacity_bytes: u64,
    /// What windows may take of it.
    budget_bytes: u64,
    page_bytes: u64,
    index: RwLock<Index<Core>>,
    raw_requests: RawRequests,
    next_window: AtomicU64,
}

impl Cmb {
    /// Windows of up to `budget_bytes` in all over `inner`. `engine` should be the one `inner` uses:
    /// then windows are filled by the device directly.
    pub fn new(inner: Arc<dyn BlockDevice>, engine: Arc<Engine>, budget_bytes: u64) -> Self {
        Cmb::of_kind(ApertureKind::Windowed, inner, Source::Host(engine), budget_bytes, host_page_bytes())
    }

    /// Windows in the memory that the controller of `inner` lends: it moves the blocks between them itself.
    pub fn of_controller(inner: Arc<dyn BlockDevice>, memory: Arc<ControllerMemory>) -> Self {
        let space = LentSpace::new(memory);
        let capacity_bytes = space.capacity_bytes();
        Cmb::of_kind(ApertureKind::Windowed, inner, Source::Controller(space), capacity_bytes, BLOCK_BYTES)
    }

    /// All of `inner`, whose blocks are memory, as an aperture: a window is the home of its blocks. `inner` should
    /// give up the memory of what it is told to discard.
    pub fn identity(inner: Arc<dyn BlockDevice>, engine: Arc<Engine>) -> Self {
        let size_bytes = inner.info().size_bytes;
        Cmb::of_kind(ApertureKind::Identity, inner, Source::Host(engine), size_bytes, host_page_bytes())
    }

    fn of_kind(kind: ApertureKind, inner: Arc<dyn BlockDevice>, source: Source, capacity_bytes: u64, page_bytes: u64) -> Self {
        let wanted_bytes = capacity_bytes;
        let capacity_bytes = match source {
            Source::Host(_) => lendable(wanted_bytes, peerfs_sys::lockable_bytes()),
            Source::Controller(_) => wanted_bytes,
        };
        let budget_bytes = match kind {
            // Blocks that live in the aperture need no room in it: there is no more of them than the device has.
            ApertureKind::Identity if capacity_bytes == wanted_bytes => u64::MAX,
            ApertureKind::Identity | ApertureKind::Windowed => capacity_bytes,
        };
        Cmb {
            shared: Arc::new(Shared {
                inner,
                source,
                kind,
                capacity_bytes,
                budget_bytes,
                page_bytes,
                index: RwLock::default(),
                raw_requests: RawRequests::default(),
                next_window: AtomicU64::new(1),
            }),
        }
    }

    fn make(&self, spec: WindowSpec, form: Form) -> Result<Arc<Core>, WindowError> {
        let shared = &self.shared;
        let memory = shared.source.allocate(shared, spec.length, form)?;
        let valid_length = spec.valid_length.min(spec.length);
        let id = shared.next_window.fetch_add(1, Ordering::Relaxed);
        let core = Arc::new(Core::new(id, spec, shared.kind, form == Form::DmaBuf));
        // Held while filling: whoever finds the window in the index waits here.
        let mut filling = core.begin_fill();
        shared.index_mut().insert(&core).map_err(|device_offset| WindowError::Overlap { device_offset })?;
        // From here on nothing that matters to these blocks goes past the window; wait for what did.
        shared.raw_requests.settle(core.runs());
        let filled = core.fill(&mut filling, shared, memory, valid_length);
        if filled.is_err() {
            // Before the phase is unlocked: who waits there looks up again and must not find it.
            shared.index_mut().remove(&core);
        }
        drop(filling);
        filled?;
        Ok(core)
    }
}

impl Aperture for Cmb {
    fn info(&self) -> ApertureInfo {
        let index = self.shared.index();
        ApertureInfo {
            name: self.shared.name().into(),
            kind: self.shared.kind,
            path: self.shared.source.path(),
            capacity_bytes: self.shared.capacity_bytes,
            used_bytes: index.used_bytes(),
            windows: index.windows(),
            page_bytes: self.shared.page_bytes,
            writable: true,
            // Windows of host memory are plain memory, so whoever has them mapped can. A bus may not carry atomics.
            atomic: matches!(self.shared.source, Source::Host(_)),
            grantable: self.shared.source.is_grantable(),
            bus: self.shared.source.bus(),
        }
    }

    fn open_window(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        self.open(spec, Form::Memfd)
    }

    fn open_dmabuf(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        self.open(spec, Form::DmaBuf)
    }
}

impl Cmb {
    fn open(&self, spec: WindowSpec, form: Form) -> Result<Arc<dyn Window>, WindowError> {
        spec.check(&self.shared.inner.info())?;
        let charge = self.shared.charge(spec.length, &spec.runs);
        self.shared
            .index_mut()
            .reserve(charge, self.shared.budget_bytes)
            .map_err(|needed_bytes| WindowError::Full { needed_bytes })?;
        match self.make(spec, form) {
            Ok(core) => Ok(Arc::new(CmbWindow::new(core, self.shared.clone()))),
            Err(err) => {
                self.shared.index_mut().release(charge);
                Err(err)
            }
        }
    }
}

impl Shared {
    /// Memory to copy through on the way to the device.
    fn buffer(&self, length: usize) -> IoBuf {
        match &self.source {
            // Copied to without a detour by the engine that has the windows.
            Source::Host(engine) => engine.buffer(length),
            Source::Controller(_) => self.inner.buffer(length),
        }
    }

    fn name(&self) -> &'static str {
        match (self.kind, &self.source) {
            (ApertureKind::Windowed, Source::Host(_)) => "software CMB",
            (ApertureKind::Windowed, Source::Controller(_)) => "CMB of the controller",
            (ApertureKind::Identity, _) => "device memory",
        }
    }

    /// What a window takes of the aperture: its memory, or the blocks whose home it is.
    fn charge(&self, length: u64, runs: &[Run]) -> u64 {
        match self.kind {
            ApertureKind::Windowed => length,
            ApertureKind::Identity => runs.iter().map(|run| run.length).sum(),
        }
    }

    fn index(&self) -> RwLockReadGuard<'_, Index<Core>> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index<Core>> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, reason: &str) -> DeviceError {
        DeviceError::Unusable { device: self.inner.info().name, reason: reason.into() }
    }
}

/// What the kernel backs memory files with when asked for huge pages.
fn host_page_bytes() -> u64 {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let huge = setting.is_ok_and(|text| ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|on| text.contains(on)));
    if huge { 2 << 20 } else { 4096 }
}
