//! A controller memory buffer in software: windows of main memory over any block device.
//!
//! A window's pages are the authoritative copy of the blocks in it from the
//! moment it is filled until it has been written back. So the same object is
//! both the aperture and the block device that everybody above uses: requests
//! on windowed blocks are served from the window, all others go to the device
//! below.
//!
//! Two rules keep a hostile peer from doing harm. Window memory is never mapped
//! here, and never reached by the size of its file: bytes move by registered-buffer
//! I/O, which a truncated or resized file cannot disturb. And what is written to the
//! device is first copied to memory of ours, so it cannot change under the write.
//!
//! The same serves a device whose blocks live in memory as an *identity* aperture: there a window is not a copy of its
//! blocks but their home. The old home is given up when the window is filled, nothing is written through, and when the
//! window is cut its blocks move to new memory of the device. A window that was cut is never used again.
//!
//! Lock order: `Core::order`, then `Core::phase`, then `Shared::index`, then the list of raw writes.

mod overlay;
mod raw;
mod window;

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use peerfs_sys::{Engine, RegisteredWindow};

use crate::placed::{HasRuns, Index};
use crate::{
    Aperture, ApertureInfo, ApertureKind, BlockDevice, DeviceError, PathKind, Run, Window, WindowError, WindowMemory,
    WindowSlice, WindowSpec,
};

use raw::RawRequests;
use window::{CmbWindow, Core};

/// A software CMB over a block device; see the module's documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SoftwareCmb {
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
    engine: Arc<Engine>,
    kind: ApertureKind,
    capacity_bytes: u64,
    page_bytes: u64,
    index: RwLock<Index<Core>>,
    raw_requests: RawRequests,
    next_window: AtomicU64,
}

impl SoftwareCmb {
    /// Windows of up to `budget_bytes` in all over `inner`. `engine` should be the one `inner` uses:
    /// then windows are filled by the device directly.
    pub fn new(inner: Arc<dyn BlockDevice>, engine: Arc<Engine>, budget_bytes: u64) -> Self {
        SoftwareCmb::of_kind(ApertureKind::Windowed, inner, engine, budget_bytes)
    }

    /// All of `inner`, whose blocks are memory, as an aperture: a window is the home of its blocks. `inner` should
    /// give up the memory of what it is told to discard.
    pub fn identity(inner: Arc<dyn BlockDevice>, engine: Arc<Engine>) -> Self {
        let size_bytes = inner.info().size_bytes;
        SoftwareCmb::of_kind(ApertureKind::Identity, inner, engine, size_bytes)
    }

    fn of_kind(kind: ApertureKind, inner: Arc<dyn BlockDevice>, engine: Arc<Engine>, capacity_bytes: u64) -> Self {
        SoftwareCmb {
            shared: Arc::new(Shared {
                inner,
                engine,
                kind,
                capacity_bytes,
                page_bytes: page_bytes(),
                index: RwLock::default(),
                raw_requests: RawRequests::default(),
                next_window: AtomicU64::new(1),
            }),
        }
    }

    /// Memory for a window whose budget is reserved.
    fn allocate(&self, length: u64, form: Form) -> Result<Arc<RegisteredWindow>, WindowError> {
        let engine = &self.shared.engine;
        if form == Form::DmaBuf {
            // Whatever it fails for, memory of the other kind is the better answer.
            let made = RegisteredWindow::create_dmabuf(engine, length);
            return made.map_err(|err| WindowError::Unsupported { reason: format!("/dev/udmabuf: {err}") });
        }
        RegisteredWindow::create(engine, length).map_err(|err| {
            let short = matches!(err.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC));
            // Our own reservation counts as a window.
            if short && self.shared.index().windows() > 1 {
                return WindowError::Full { needed_bytes: length };
            }
            WindowError::Device(self.shared.refuse(&format!(
                "no memory for a window of {length} bytes ({err}): raise RLIMIT_MEMLOCK \
                 (`ulimit -l`) or run with CAP_IPC_LOCK"
            )))
        })
    }

    fn make(&self, spec: WindowSpec, form: Form) -> Result<Arc<Core>, WindowError> {
        let shared = &self.shared;
        let memory = self.allocate(spec.length, form)?;
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

impl Aperture for SoftwareCmb {
    fn info(&self) -> ApertureInfo {
        let index = self.shared.index();
        ApertureInfo {
            name: self.shared.name().into(),
            kind: self.shared.kind,
            path: PathKind::DirectWindow,
            capacity_bytes: self.shared.capacity_bytes,
            used_bytes: index.used_bytes(),
            windows: index.windows(),
            page_bytes: self.shared.page_bytes,
            writable: true,
            // Windows are plain memory, so whoever has them mapped can.
            atomic: true,
            grantable: true,
        }
    }

    fn open_window(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        self.open(spec, Form::Memfd)
    }

    fn open_dmabuf(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        self.open(spec, Form::DmaBuf)
    }
}

impl SoftwareCmb {
    fn open(&self, spec: WindowSpec, form: Form) -> Result<Arc<dyn Window>, WindowError> {
        spec.check(&self.shared.inner.info())?;
        let charge = self.shared.charge(spec.length, &spec.runs);
        self.shared
            .index_mut()
            .reserve(charge, self.shared.budget_bytes())
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
    fn name(&self) -> &'static str {
        match self.kind {
            ApertureKind::Windowed => "software CMB",
            ApertureKind::Identity => "device memory",
        }
    }

    /// Blocks that live in the aperture need no room in it: there is no more of them than the device has.
    fn budget_bytes(&self) -> u64 {
        match self.kind {
            ApertureKind::Windowed => self.capacity_bytes,
            ApertureKind::Identity => u64::MAX,
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

/// Window memory as the device below sees it.
#[derive(Debug)]
struct RingMemory(Arc<RegisteredWindow>);

impl RingMemory {
    fn slice(memory: &Arc<RegisteredWindow>, offset: u64, length: u64) -> WindowSlice {
        WindowSlice { memory: Arc::new(RingMemory(memory.clone())), offset, length }
    }
}

impl WindowMemory for RingMemory {
    fn slot(&self) -> u32 {
        self.0.slot()
    }

    fn engine_id(&self) -> u64 {
        self.0.engine().id()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let length = out.len() as u64;
        let done = self.0.read(offset, out);
        done.map_err(|err| window_error("read", offset, length, &err))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let length = data.len() as u64;
        let done = self.0.write(offset, data);
        done.map_err(|err| window_error("write", offset, length, &err))
    }
}

fn window_error(op: &'static str, offset: u64, length: u64, err: &std::io::Error) -> DeviceError {
    DeviceError::Io { device: "window of the software CMB".into(), op, offset, length, errno: crate::ringfile::raw(err) }
}

/// What the kernel backs memory files with when asked for huge pages.
fn page_bytes() -> u64 {
    let setting = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let huge = setting.is_ok_and(|text| ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|on| text.contains(on)));
    if huge { 2 << 20 } else { 4096 }
}
