//! Memory of the controller that the host maps: buffer and region.

use std::fmt;
use std::sync::{Arc, PoisonError};

use peerfs_blockdev::BusPlace;
use peerfs_blockdev::nvme::BarMemory;
use peerfs_blockdev::pci::PciAddress;
use peerfs_nvme_spec::memory::PMR_ENABLE;
use peerfs_sys::DmaMemory;

use crate::registers::PMR_BAR;
use crate::state::Core;

/// Part of a BAR.
pub(crate) struct Bar {
    pub(crate) core: Arc<Core>,
    pub(crate) address: PciAddress,
    pub(crate) index: u8,
    pub(crate) memory: Arc<DmaMemory>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Bar {
    fn is_gone(&self) -> bool {
        self.core.lock().gone
    }

    /// What all bytes read as, and no store changes, while there is no memory behind it: the BAR is not decoded, or the
    /// region not enabled.
    fn filler(&self) -> Option<u8> {
        let state = self.core.lock();
        match (state.undecoded, self.index) {
            (true, _) => Some(0xFF),
            (false, PMR_BAR) if state.registers.pmrctl & PMR_ENABLE == 0 => Some(0),
            _ => None,
        }
    }

    fn place(&self, offset: u64, length: usize) -> u64 {
        assert!(offset.checked_add(length as u64).is_some_and(|end| end <= self.length), "outside of the BAR");
        self.offset + offset
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bar({} at {:#x}, {} bytes)", self.index, self.offset, self.length)
    }
}

impl BarMemory for Bar {
    fn length(&self) -> u64 {
        self.length
    }

    fn bus(&self) -> BusPlace {
        BusPlace { address: self.address, bar: self.index, offset: self.offset, length: self.length }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        let place = self.place(offset, out.len());
        if self.is_gone() {
            out.fill(0xFF);
            return false;
        }
        match self.filler() {
            Some(filler) => out.fill(filler),
            None => self.memory.read(place, out).expect("checked"),
        }
        let interlude = self.core.after_read.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(interlude) = interlude {
            (interlude.0)();
        }
        true
    }

    fn write(&self, offset: u64, data: &[u8]) -> bool {
        let place = self.place(offset, data.len());
        if self.is_gone() {
            return false;
        }
        if self.filler().is_none() {
            self.memory.write(place, data).expect("checked");
        }
        true
    }
}
