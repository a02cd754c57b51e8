//! The fake aperture, watched: each window is cut before it is written back, written
//! back once where the device takes it, and no block is in two windows.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peerfs_blockdev::{Aperture, ApertureInfo, DeviceError, Run, Window, WindowError, WindowSpec};

use crate::engine::tests::world::FakeAperture;
use crate::types::Range;

#[derive(Debug)]
pub(super) struct WatchedAperture {
    inner: FakeAperture,
    windows: Mutex<Vec<Arc<WatchedWindow>>>,
}

#[derive(Debug)]
pub(super) struct WatchedWindow {
    inner: Arc<dyn Window>,
    /// The standard library's lock: looking at a window is no step of a schedule.
    life: Mutex<Life>,
}

#[derive(Debug, Clone, Copy)]
struct Life {
    valid_length: u64,
    cut: bool,
    written_back: bool,
    /// The device refused it once, so whoever flushes may try again, also side by side.
    refused: bool,
}

impl WatchedAperture {
    pub(super) fn new(capacity: u64) -> Arc<WatchedAperture> {
        Arc::new(WatchedAperture { inner: FakeAperture::new(capacity), windows: Mutex::default() })
    }

    /// From now on the device takes nothing, or works again.
    pub(super) fn refuse_write_back(&self, refuse: bool) {
        self.inner.fail_write_back.store(refuse, Ordering::SeqCst);
    }

    /// Windows that still are the authority for their blocks.
    pub(super) fn live(&self) -> Vec<Arc<WatchedWindow>> {
        held(&self.windows).iter().filter(|window| !held(&window.life).written_back).cloned().collect()
    }
}

impl WatchedWindow {
    /// Where the file ends in it.
    pub(super) fn valid_length(&self) -> u64 {
        held(&self.life).valid_length
    }

    fn overlaps(&self, runs: &[Run]) -> bool {
        let on_device = |run: &Run| Range::new(run.device_offset, run.length);
        self.runs().iter().any(|own| runs.iter().any(|run| on_device(own).overlaps(on_device(run))))
    }
}

/// A window's memory cannot be reached any more. Asked of the memory itself.
pub(super) fn is_cut(window: &dyn Window) -> bool {
    let memory = std::fs::File::from(window.custody_fd().expect("a duplicate").expect("memory of this host"));
    memory.metadata().expect("a size").len() == 0
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Aperture for WatchedAperture {
    fn info(&self) -> ApertureInfo {
        self.inner.info()
    }

    fn open_window(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        let other = self.live().into_iter().find(|window| window.overlaps(&spec.runs));
        assert!(other.is_none(), "a second window over blocks of {other:?}");
        let life = Life { valid_length: spec.valid_length, cut: false, written_back: false, refused: false };
        let window = Arc::new(WatchedWindow { inner: self.inner.open_window(spec)?, life: Mutex::new(life) });
        held(&self.windows).push(window.clone());
        Ok(window)
    }
}

impl Window for WatchedWindow {
    fn length(&self) -> u64 {
        self.inner.length()
    }

    fn runs(&self) -> &[Run] {
        self.inner.runs()
    }

    fn grant_fd(&self, writable: bool) -> Result<OwnedFd, DeviceError> {
        self.inner.grant_fd(writable)
    }

    fn custody_fd(&self) -> Result<Option<OwnedFd>, DeviceError> {
        self.inner.custody_fd()
    }

    fn is_held(&self) -> bool {
        self.inner.is_held()
    }

    fn disown(&self, offsets: &[std::ops::Range<u64>]) {
        self.inner.disown(offsets);
    }

    fn set_writable(&self) {
        assert!(!held(&self.life).cut, "made writable after the cut");
        self.inner.set_writable();
    }

    fn set_valid_length(&self, valid_length: u64) {
        held(&self.life).valid_length = valid_length;
        self.inner.set_valid_length(valid_length);
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.inner.flush()
    }

    fn cut(&self) {
        self.inner.cut();
        held(&self.life).cut = true;
    }

    fn write_back(&self) -> Result<(), DeviceError> {
        let life = *held(&self.life);
        assert!(life.cut, "written back while its importer may still store into it");
        if life.written_back && life.refused {
            return Ok(());
        }
        assert!(!life.written_back, "written back twice");
        let done = self.inner.write_back();
        match done {
            Ok(()) => held(&self.life).written_back = true,
            Err(_) => held(&self.life).refused = true,
        }
        done
    }
}
