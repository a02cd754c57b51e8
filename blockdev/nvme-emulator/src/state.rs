//! The inside of the controller, under one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use peerfs_nvme_spec::memory::cmb_memory_space;
use peerfs_sys::{DmaMemory, Interrupt};

use crate::completion::Late;
use crate::faults::Faults;
use crate::media::Media;
use crate::memory::AddressSpace;
use crate::profile::Profile;
use crate::queues::Queues;
use crate::random::Random;
use crate::registers::Registers;

/// What the controller was told so far.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Admin commands by opcode.
    pub admin: BTreeMap<u8, u64>,
    /// I/O commands by opcode.
    pub io: BTreeMap<u8, u64>,
    /// Times CC.EN was set.
    pub enables: u64,
    /// Times a normal shutdown was announced.
    pub shutdowns: u64,
    /// Resets of the function that were asked for.
    pub resets: u64,
}

/// What happens in the middle of something else.
pub(crate) struct Interlude(pub(crate) Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Interlude {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interlude")
    }
}

/// What port, thread and memory handles share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) state: Mutex<State>,
    /// Run once, after the next copy out of a BAR.
    pub(crate) after_read: Mutex<Option<Interlude>>,
    /// There may be something to process, or the thread is to end.
    pub(crate) work: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) profile: Profile,
    pub(crate) random: Random,
    pub(crate) media: Media,
    pub(crate) registers: Registers,
    pub(crate) queues: Queues,
    pub(crate) space: AddressSpace,
    pub(crate) faults: Faults,
    pub(crate) late: Vec<Late>,
    pub(crate) interrupts: Vec<Arc<Interrupt>>,
    pub(crate) cmb: Arc<DmaMemory>,
    pub(crate) pmr: Arc<DmaMemory>,
    pub(crate) counts: Counts,
    pub(crate) violations: Vec<String>,
    /// Block size by the last namespace page that it answered: a controller means what it says, however spoilt.
    pub(crate) told_power: Option<u8>,
    pub(crate) gone: bool,
    /// Accesses to BARs reach nothing, as if it were gone; what is read is all ones.
    pub(crate) undecoded: bool,
    pub(crate) stopping: bool,
}

impl Core {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(crate) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Copies out of memory that a command names; the buffer of the controller itself is such memory.
    pub(crate) fn dma_read(&mut self, address: u64, out: &mut [u8]) -> Option<()> {
        match self.cmb_offset(address, out.len() as u64) {
            Some(offset) => self.cmb.read(offset, out).ok(),
            None => self.space.read(address, out),
        }
    }

    /// Copies into memory that a command names.
    pub(crate) fn dma_write(&mut self, address: u64, data: &[u8]) -> Option<()> {
        match self.cmb_offset(address, data.len() as u64) {
            Some(offset) => self.cmb.write(offset, data).ok(),
            None => self.space.write(address, data),
        }
    }

    fn cmb_offset(&self, address: u64, length: u64) -> Option<u64> {
        let base = self.registers.cmbmsc & !0xFFF;
        let enabled = self.registers.cmbmsc == cmb_memory_space(base) && self.profile.cmb_bytes > 0;
        let offset = address.checked_sub(base)?;
        (enabled && offset.checked_add(length)? <= self.profile.cmb_bytes).then_some(offset)
    }

    /// Raises every interrupt.
    pub(crate) fn raise_all(&self) {
        for interrupt in &self.interrupts {
            interrupt.notify().expect("an eventfd can be written");
        }
    }
}
