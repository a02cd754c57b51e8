//! The Controller Memory Buffer: memory in a BAR that the controller lends, and that its commands can name.
//!
//! A reset or a loss of power may lose its content (section 4.7), and a BAR that lost it answers like any other. So
//! whoever keeps something in it asks after each access whether the content is still that of the same [`Content`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use peerfs_nvme_spec::memory::{CMB_BASE_INVALID, CMB_CAPABILITIES_SHOWN, CmbLocation, CmbSize, cmb_memory_space};
use peerfs_nvme_spec::register::offset;

use super::controller::Controller;
use super::error::NvmeError;
use super::port::{BarMemory, Port};
use super::registers;
use crate::WindowSlice;

/// A controller's CMB, enabled for use by its commands.
#[derive(Debug)]
pub struct ControllerMemory {
    id: u64,
    bar: Arc<dyn BarMemory>,
    /// Where commands find its first byte.
    base: u64,
    port: Arc<dyn Port>,
    /// Odd while the controller is reset, and for good when it was given up.
    content: AtomicU64,
}

/// What the memory holds between two losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content(u64);

impl ControllerMemory {
    /// Tells controllers' memories of this process apart; never reused.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The memory as the CPU, or a peer, sees it.
    pub fn bar(&self) -> &Arc<dyn BarMemory> {
        &self.bar
    }

    /// Where commands of this controller find the byte at `offset`.
    pub fn address(&self, offset: u64) -> u64 {
        self.base + offset
    }

    /// The content as of now.
    pub fn content(&self) -> Content {
        Content(self.content.load(Ordering::SeqCst))
    }

    /// Nothing was lost since `content` was current. Asked after an access: it then was to what is meant.
    pub fn has_kept(&self, content: Content) -> bool {
        // A reset by somebody else, or a loss of power, shows there before anybody hears of it.
        let running = registers::health(&*self.port).is_ok();
        let enabled = self.port.read_u64(offset::CMBMSC) == cmb_memory_space(self.base);
        running && enabled && content.0.is_multiple_of(2) && content == self.content()
    }

    fn begin_loss(&self) {
        self.content.fetch_or(1, Ordering::SeqCst);
    }

    fn end_loss(&self) {
        self.content.fetch_add(1, Ordering::SeqCst);
    }
}

/// What a controller has lent, kept for its next life.
pub(super) type Lent = OnceLock<Arc<ControllerMemory>>;

impl Controller {
    /// The controller's CMB, enabled; `None` if it has none that both reads and writes may use.
    ///
    /// # Errors
    /// It has one, but it cannot be used.
    pub fn lend_memory(&self) -> Result<Option<Arc<ControllerMemory>>, NvmeError> {
        // Recovery must not come in between, and two callers get the same.
        let life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        life.check()?;
        if let Some(memory) = self.lent.get() {
            return Ok(Some(memory.clone()));
        }
        if !self.cap.has_cmb() {
            return Ok(None);
        }
        let port = &*self.port;
        port.write_u64(offset::CMBMSC, CMB_CAPABILITIES_SHOWN);
        let size = CmbSize(port.read_u32(offset::CMBSZ));
        let location = CmbLocation(port.read_u32(offset::CMBLOC));
        if size.bytes() == 0 || !size.takes_read_data() || !size.takes_write_data() {
            return Ok(None);
        }
        let bar = port
            .bar(location.bar(), location.offset_bytes(size), Some(size.bytes()))
            .map_err(|err| NvmeError::system("the controller memory buffer cannot be mapped", &err))?;
        let base =
            port.reserve(size.bytes()).map_err(|err| NvmeError::system("no addresses for the controller memory buffer", &err))?;
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let memory = ControllerMemory {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            bar,
            base,
            port: self.port.clone(),
            content: AtomicU64::new(0),
        };
        self.enable_memory(&memory)?;
        Ok(Some(self.lent.get_or_init(|| Arc::new(memory)).clone()))
    }

    fn enable_memory(&self, memory: &ControllerMemory) -> Result<(), NvmeError> {
        self.port.write_u64(offset::CMBMSC, cmb_memory_space(memory.base));
        match self.port.read_u32(offset::CMBSTS) {
            u32::MAX => Err(NvmeError::Gone),
            status if status & CMB_BASE_INVALID != 0 => Err(NvmeError::Unsupported(format!(
                "the controller does not accept {:#x} as base of its memory buffer",
                memory.base
            ))),
            _ => Ok(()),
        }
    }

    /// What was lent does not count any more: a reset comes.
    pub(super) fn forget_memory(&self) {
        if let Some(memory) = self.lent.get() {
            memory.begin_loss();
        }
    }

    /// The controller works again: what is put into its memory from now on is kept.
    pub(super) fn renew_memory(&self) {
        if let Some(memory) = self.lent.get() {
            memory.end_loss();
        }
    }

    /// No address stands for the buffer any more. No reset of the controller changes that by itself, so an earlier driver's
    /// choice would divert commands from memory that is mapped there now.
    pub(super) fn withdraw_memory(&self) {
        if self.cap.has_cmb() {
            self.port.write_u64(offset::CMBMSC, 0);
        }
    }

    /// Enables again what was lent before a reset.
    pub(super) fn restore_memory(&self) -> Result<(), NvmeError> {
        self.lent.get().map_or(Ok(()), |memory| self.enable_memory(memory))
    }

    /// Where commands of this controller find a window, if it is in the controller's own memory.
    pub(super) fn lent_address(&self, window: &WindowSlice) -> Option<u64> {
        let memory = self.lent.get()?;
        let start = window.memory.controller_offset(memory.id)?;
        Some(memory.address(start + window.offset))
    }
}
