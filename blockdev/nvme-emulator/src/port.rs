//! The driver's way to the controller.

use std::io;
use std::sync::Arc;

use peerfs_blockdev::nvme::{BarMemory, DmaBlock, PeerMemory, Port, Reach};
use peerfs_sys::{BufferPool, DmaMemory, Interrupt};

use crate::bar::Bar;
use crate::controller::EmulatedController;
use crate::registers::{CMB_BAR, PMR_BAR};
use crate::state::Core;

/// Where an emulated controller says it is.
const ADDRESS: &str = "0000:00:00.0";

/// Ends the controller's access to a range.
struct Hold {
    core: Arc<Core>,
    address: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.core.lock().space.unmap(self.address);
    }
}

impl EmulatedController {
    fn reach_at(&self, address: Option<u64>) -> io::Result<Reach> {
        let address = address.ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Reach { address, hold: Box::new(Hold { core: self.core.clone(), address }) })
    }

    /// Inside BAR 0 and aligned; what is not is the driver's fault.
    fn is_right(&self, offset: u64, width: u64) -> bool {
        let mut state = self.core.lock();
        let right = offset.is_multiple_of(width) && offset + width <= state.profile.registers_length;
        if !right {
            state.violation(format!("an access of {width} bytes at {offset:#x} of BAR 0"));
        }
        right
    }
}

impl Port for EmulatedController {
    fn address(&self) -> &str {
        ADDRESS
    }

    fn read_u32(&self, offset: u64) -> u32 {
        if !self.is_right(offset, 4) {
            return u32::MAX;
        }
        self.kick();
        self.core.lock().read_register(offset)
    }

    fn write_u32(&self, offset: u64, value: u32) {
        if self.is_right(offset, 4) {
            self.core.lock().write_register(offset, value);
            self.kick();
        }
    }

    fn read_u64(&self, offset: u64) -> u64 {
        if !self.is_right(offset, 8) {
            return u64::MAX;
        }
        let mut state = self.core.lock();
        u64::from(state.read_register(offset)) | u64::from(state.read_register(offset + 4)) << 32
    }

    fn write_u64(&self, offset: u64, value: u64) {
        if self.is_right(offset, 8) {
            let mut state = self.core.lock();
            state.write_register(offset, value as u32);
            state.write_register(offset + 4, (value >> 32) as u32);
        }
    }

    fn registers_length(&self) -> u64 {
        self.core.lock().profile.registers_length
    }

    fn allocate(&self, bytes: usize) -> io::Result<DmaBlock> {
        let memory = DmaMemory::zeroed(bytes)?;
        let address = self.core.lock().space.map_memory(&memory);
        Ok(DmaBlock { reach: self.reach_at(address)?, memory })
    }

    fn attach(&self, pool: &Arc<BufferPool>) -> io::Result<Reach> {
        let address = self.core.lock().space.map_pool(pool);
        self.reach_at(address)
    }

    fn reach(&self, memory: &PeerMemory, writable: bool) -> io::Result<Reach> {
        let address = self.core.lock().space.map_peer(memory, writable);
        self.reach_at(address)
    }

    fn reserve(&self, bytes: u64) -> io::Result<u64> {
        self.core.lock().space.reserve(bytes).ok_or(io::ErrorKind::OutOfMemory.into())
    }

    fn interrupts(&self, count: u16) -> Vec<Arc<Interrupt>> {
        let mut state = self.core.lock();
        let made: io::Result<Vec<_>> = (0..count.min(state.profile.vectors)).map(|_| Interrupt::new().map(Arc::new)).collect();
        state.interrupts = made.unwrap_or_default();
        state.interrupts.clone()
    }

    fn reset(&self) -> io::Result<()> {
        let mut state = self.core.lock();
        state.counts.resets += 1;
        if state.gone || state.profile.reset_fails {
            return Err(io::ErrorKind::TimedOut.into());
        }
        state.reset_function();
        Ok(())
    }

    fn sever(&self) {
        self.core.lock().space.sever();
    }

    fn bar(&self, index: u8, offset: u64, length: Option<u64>) -> io::Result<Arc<dyn BarMemory>> {
        let state = self.core.lock();
        let (memory, size) = match index {
            CMB_BAR => (&state.cmb, state.profile.cmb_bytes),
            PMR_BAR => (&state.pmr, state.profile.pmr_bytes),
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        let length = length.unwrap_or(size.saturating_sub(offset));
        match offset.checked_add(length) {
            Some(end) if length > 0 && end <= size => {}
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        let address = ADDRESS.parse().map_err(io::Error::other)?;
        Ok(Arc::new(Bar { address, core: self.core.clone(), index, memory: memory.clone(), offset, length }))
    }
}
