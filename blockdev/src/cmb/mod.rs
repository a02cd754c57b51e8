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
//! Lock order: `Core::order`, then `Core::phase`, then `Shared::index`, then the list of raw writes.

mod index;
mod overlay;
mod raw;
mod window;

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use peerfs_sys::{Engine, RegisteredWindow};

use crate::{
    Aperture, ApertureInfo, ApertureKind, BLOCK_BYTES, BlockDevice, DeviceError, PathKind, Window, WindowError, WindowMemory,
    WindowSlice, WindowSpec,
};

use index::Index;
use raw::RawWrites;
use window::{CmbWindow, Core};

/// Most bytes in one window: what the kernel registers in one slot.
pub const MAX_WINDOW_BYTES: u64 = 1 << 30;

/// A software CMB over a block device; see the module's documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SoftwareCmb {
    shared: Arc<Shared>,
}

/// What the aperture, its windows and the overlay have in common.
#[derive(Debug)]
struct Shared {
    inner: Arc<dyn BlockDevice>,
    engine: Arc<Engine>,
    capacity_bytes: u64,
    page_bytes: u64,
    index: RwLock<Index>,
    raw_writes: RawWrites,
    next_window: AtomicU64,
}

impl SoftwareCmb {
    /// Windows of up to `budget_bytes` in all over `inner`. `engine` should be the one `inner` uses:
    /// then windows are filled by the device directly.
    pub fn new(inner: Arc<dyn BlockDevice>, engine: Arc<Engine>, budget_bytes: u64) -> Self {
        SoftwareCmb {
            shared: Arc::new(Shared {
                inner,
                engine,
                capacity_bytes: budget_bytes,
                page_bytes: page_bytes(),
                index: RwLock::default(),
                raw_writes: RawWrites::default(),
                next_window: AtomicU64::new(1),
            }),
        }
    }

    fn validate(&self, spec: &WindowSpec) -> Result<(), DeviceError> {
        let info = self.shared.inner.info();
        let mut end = 0;
        for run in &spec.runs {
            info.check_range(run.device_offset, run.length)?;
            let sorted = run.window_offset >= end && run.length > 0;
            end = run.window_offset.saturating_add(run.length);
            if !sorted || !run.window_offset.is_multiple_of(BLOCK_BYTES) || end > spec.length {
                return Err(self.shared.refuse("the runs of a window overlap or leave it"));
            }
        }
        let sized = spec.length > 0 && spec.length <= MAX_WINDOW_BYTES;
        if !sized || !spec.length.is_multiple_of(BLOCK_BYTES) {
            return Err(self.shared.refuse("a window has 4096 bytes to 1 GiB, in blocks"));
        }
        Ok(())
    }

    /// Memory for a window whose budget is reserved.
    fn allocate(&self, length: u64) -> Result<Arc<RegisteredWindow>, WindowError> {
        RegisteredWindow::create(&self.shared.engine, length).map_err(|err| {
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

    fn make(&self, spec: WindowSpec) -> Result<Arc<Core>, WindowError> {
        let shared = &self.shared;
        let memory = self.allocate(spec.length)?;
        let valid_length = spec.valid_length.min(spec.length);
        let id = shared.next_window.fetch_add(1, Ordering::Relaxed);
        let core = Arc::new(Core::new(id, spec));
        // Held while filling: whoever finds the window in the index waits here.
        let mut filling = core.begin_fill();
        shared.index_mut().insert(&core).map_err(|device_offset| WindowError::Overlap { device_offset })?;
        // From here on no new write of these blocks goes past the window; wait for the older ones.
        shared.raw_writes.settle(core.runs());
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
            name: "software CMB".into(),
            kind: ApertureKind::Windowed,
            path: PathKind::DirectWindow,
            capacity_bytes: self.shared.capacity_bytes,
            used_bytes: index.used_bytes(),
            windows: index.windows(),
            page_bytes: self.shared.page_bytes,
            writable: true,
            atomic: false,
        }
    }

    fn open_window(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        self.validate(&spec)?;
        let length = spec.length;
        self.shared
            .index_mut()
            .reserve(length, self.shared.capacity_bytes)
            .map_err(|needed_bytes| WindowError::Full { needed_bytes })?;
        match self.make(spec) {
            Ok(core) => Ok(Arc::new(CmbWindow::new(core, self.shared.clone()))),
            Err(err) => {
                self.shared.index_mut().release(length);
                Err(err)
            }
        }
    }
}

impl Shared {
    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
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
