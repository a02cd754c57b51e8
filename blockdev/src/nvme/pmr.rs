//! The Persistent Memory Region: memory in a BAR that keeps its contents without power (section 4.8).
//!
//! Reads and writes are copies by the CPU, so nothing is sent to the controller. With the region switched off a BAR answers
//! zeros and swallows writes without a word, and all ones while the function is reset. So every copy is followed by a look
//! at PMRCTL and at the [`ResetMark`], and counts only if the region was on all the time: else it is switched on again and
//! the copy repeated, at most [`MAX_REVIVALS`] times in [`REVIVAL_WINDOW`]; after that every access fails. A device that
//! does not answer is reset first, and is gone if that fails. Whoever was off may have lost writes that were not durable, so
//! the next barrier fails, whatever access has found it off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use peerfs_nvme_spec::memory::{PMR_ENABLE, PmrCap, PmrHealth, PmrStatus};
use peerfs_nvme_spec::register::offset;

use super::error::NvmeError;
use super::port::{BarMemory, Port};
use super::registers;
use super::reset_mark::ResetMark;
use crate::BusPlace;

/// Times the region is switched on again in [`REVIVAL_WINDOW`].
pub const MAX_REVIVALS: usize = 5;

/// See [`MAX_REVIVALS`].
pub const REVIVAL_WINDOW: Duration = Duration::from_secs(60);

/// Longest time a region may ask for to get ready.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// How earlier writes are made to persist (PMRCAP.PMRWBM).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Barrier {
    StatusRead,
    MemoryRead,
}

/// A region that is switched on. Stays on when dropped: that loses nothing.
#[derive(Debug)]
pub struct PersistentRegion {
    port: Arc<dyn Port>,
    bar: Arc<dyn BarMemory>,
    mark: ResetMark,
    barrier: Barrier,
    ready_timeout: Duration,
    read_only: bool,
    revivals: Mutex<Vec<Instant>>,
    /// It was off since the last barrier.
    was_off: AtomicBool,
    /// Times that it was found off.
    times_off: AtomicU64,
}

/// What an access did besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Plain,
    /// The region had been switched off, and is on again.
    Revived,
}

impl PersistentRegion {
    /// Switches the region of a controller on.
    ///
    /// # Errors
    /// There is none, it does not get ready, it lost its contents, or it cannot be mapped.
    pub fn open(port: Arc<dyn Port>) -> Result<Self, NvmeError> {
        let capabilities = registers::capabilities(&*port)?;
        if !capabilities.has_pmr() {
            return Err(NvmeError::Unsupported("the controller has no Persistent Memory Region".into()));
        }
        let cap = PmrCap(port.read_u32(offset::PMRCAP));
        let barrier = match (cap.status_read_is_barrier(), cap.memory_read_is_barrier()) {
            (true, _) => Barrier::StatusRead,
            (false, true) => Barrier::MemoryRead,
            (false, false) => {
                return Err(NvmeError::Nonsense("its Persistent Memory Region has no write barrier (PMRCAP.PMRWBM is 0)".into()));
            }
        };
        let bar = port
            .bar(cap.bar(), 0, None)
            .map_err(|err| NvmeError::system("the Persistent Memory Region cannot be mapped", &err))?;
        let ready_timeout = Duration::from_millis(cap.ready_timeout_ms()).max(Duration::from_millis(500)).min(READY_LIMIT);
        let mut region = PersistentRegion {
            mark: ResetMark::set(port.clone(), capabilities)?,
            port,
            bar,
            barrier,
            ready_timeout,
            read_only: false,
            revivals: Mutex::default(),
            was_off: AtomicBool::new(false),
            times_off: AtomicU64::new(0),
        };
        region.read_only = region.switch_on()? == PmrHealth::ReadOnly;
        Ok(region)
    }

    /// Length, bytes.
    pub fn length(&self) -> u64 {
        self.bar.length()
    }

    /// Where it is on the bus.
    pub fn bus(&self) -> BusPlace {
        self.bar.bus()
    }

    /// The region takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Its memory.
    pub(super) fn bar(&self) -> &Arc<dyn BarMemory> {
        &self.bar
    }

    /// Times that it was found off so far.
    pub(super) fn times_off(&self) -> u64 {
        self.times_off.load(Ordering::Acquire)
    }

    /// It has not been off since it had been so often, as far as anybody can tell.
    pub(super) fn has_been_on_since(&self, times_off: u64) -> bool {
        matches!(self.is_on(), Ok(true)) && self.times_off() == times_off
    }

    fn switch_on(&self) -> Result<PmrHealth, NvmeError> {
        self.port.write_u32(offset::PMRCTL, PMR_ENABLE);
        let mut status = PmrStatus(0);
        let ready = registers::wait_until(self.ready_timeout, || {
            // NRDY is 0 in a region that is off, too.
            let on = self.is_on()?;
            status = PmrStatus(self.port.read_u32(offset::PMRSTS));
            Ok(on && status.is_ready())
        })?;
        if !ready {
            let waited_ms = self.ready_timeout.as_millis() as u64;
            return Err(NvmeError::Unsupported(format!(
                "the Persistent Memory Region did not get ready within {waited_ms} ms (PMRSTS {:#x})",
                status.0
            )));
        }
        match status.health() {
            health @ (PmrHealth::Normal | PmrHealth::ReadOnly) => Ok(health),
            health => Err(NvmeError::Unsupported(format!(
                "the Persistent Memory Region is not in order: {health:?} (PMRSTS {:#x})",
                status.0
            ))),
        }
    }

    /// PMRCTL is exactly what was written, and nobody has reset the function; a device that is gone answers all ones.
    fn is_on(&self) -> Result<bool, NvmeError> {
        match self.port.read_u32(offset::PMRCTL) {
            u32::MAX => Err(NvmeError::Gone),
            control => Ok(control == PMR_ENABLE && self.mark.is_there()?),
        }
    }

    /// Copies out. `place`: byte offset.
    ///
    /// # Errors
    /// The device is gone, or the region cannot be kept on; nothing of `out` counts.
    pub fn read(&self, place: u64, out: &mut [u8]) -> Result<Access, NvmeError> {
        self.access(|| self.bar.read(place, out))
    }

    /// Copies in; durable after [`PersistentRegion::make_durable`].
    ///
    /// # Errors
    /// As for reads; any part may have been written.
    pub fn write(&self, place: u64, data: &[u8]) -> Result<Access, NvmeError> {
        self.access(|| self.bar.write(place, data))
    }

    /// Everything that was written before is durable afterwards.
    ///
    /// # Errors
    /// The region reports an error, was off since the last barrier ([`NvmeError::CacheLost`], once), or as for reads:
    /// earlier writes may be lost.
    pub fn make_durable(&self) -> Result<(), NvmeError> {
        let mut status = PmrStatus(0);
        self.access(|| {
            let read = self.barrier == Barrier::StatusRead || self.bar.read(self.length() - 8, &mut [0; 8]);
            status = PmrStatus(self.port.read_u32(offset::PMRSTS));
            read
        })?;
        if self.was_off.swap(false, Ordering::AcqRel) {
            return Err(NvmeError::CacheLost);
        }
        match (status.error(), status.health()) {
            (0, PmrHealth::Normal | PmrHealth::ReadOnly) => Ok(()),
            (error, health) => {
                Err(NvmeError::Unsupported(format!("the Persistent Memory Region reports error {error:#x}, health {health:?}")))
            }
        }
    }

    fn access(&self, mut copy: impl FnMut() -> bool) -> Result<Access, NvmeError> {
        let mut done = Access::Plain;
        loop {
            // Somebody else may switch it on again before this looks.
            let times_off = self.times_off();
            if copy() && self.has_been_on_since(times_off) {
                return Ok(done);
            }
            self.revive()?;
            done = Access::Revived;
        }
    }

    fn revive(&self) -> Result<(), NvmeError> {
        let mut revivals = self.revivals.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.is_on();
        if matches!(state, Ok(true)) {
            // Somebody else was faster.
            return Ok(());
        }
        let now = Instant::now();
        revivals.retain(|then| now.duration_since(*then) < REVIVAL_WINDOW);
        if revivals.len() >= MAX_REVIVALS {
            return Err(NvmeError::GivenUp(format!(
                "its Persistent Memory Region was switched off {} times in {} s by somebody else",
                MAX_REVIVALS + 1,
                REVIVAL_WINDOW.as_secs()
            )));
        }
        revivals.push(now);
        if let Err(error) = state {
            // A device that is being reset does not answer for a while; ours waits for the end of that.
            tracing::warn!(controller = self.port.address(), "it does not answer: resetting the function");
            self.port.reset().map_err(|_| error)?;
        }
        self.was_off.store(true, Ordering::Release);
        self.times_off.fetch_add(1, Ordering::AcqRel);
        tracing::warn!(
            controller = self.port.address(),
            "the Persistent Memory Region was switched off, or its function reset: switching it on again"
        );
        self.mark.renew()?;
        self.switch_on()?;
        // What was copied while it got ready does not count either.
        self.times_off.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}
