//! As much of an NVMe driver as sends Identify. Sections are of the NVMe base specification 2.0.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerfs_sys::{Bar, DmaAccess, DmaMapping, DmaMemory, Interrupt, VfioContainer, VfioDevice};

use super::Outcome;

// Registers, 3.1.3.
const CAP: u64 = 0x00;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1C;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

const READY: u32 = 1;
/// Enabled, with entries of 64 and 16 bytes.
const CC_ENABLED: u32 = 6 << 16 | 4 << 20 | 1;
const QUEUE_ENTRIES: u32 = 16;
const PAGE: u64 = 4096;

/// A running controller with its admin queues. Takes up to 15 commands, which is once around the queues.
pub struct Controller {
    registers: Arc<Bar>,
    queues: Arc<DmaMemory>,
    _queues_at: DmaMapping,
    interrupts: Vec<Interrupt>,
    sent: u32,
}

impl Controller {
    /// Resets the controller and starts it.
    pub fn start(container: &Arc<VfioContainer>, device: &VfioDevice) -> Result<Self, Box<dyn Error>> {
        let registers = device.bar(0)?.ok_or("the controller has no registers")?;
        let queues = DmaMemory::zeroed(2 * PAGE as usize)?;
        let queues_at = container.map_dma(queues.dma_range(), DmaAccess::ReadWrite)?;
        let at = queues_at.iova();
        let controller = Controller { registers, queues, _queues_at: queues_at, interrupts: device.interrupts(1)?, sent: 0 };
        controller.stop()?;
        let registers = &controller.registers;
        registers.write_u32(AQA, (QUEUE_ENTRIES - 1) << 16 | (QUEUE_ENTRIES - 1))?;
        registers.write_u64(ASQ, at)?;
        registers.write_u64(ACQ, at + PAGE)?;
        registers.write_u32(CC, CC_ENABLED)?;
        controller.wait_for(|status| status & READY != 0)?;
        Ok(controller)
    }

    /// Identify Controller (5.17) into the page that the device sees at `address`.
    pub fn identify(&mut self, address: u64) -> Outcome {
        let mut command = [0; 64];
        command[0] = 6;
        command[24..32].copy_from_slice(&address.to_le_bytes());
        command[40] = 1;
        self.queues.write(u64::from(self.sent) * 64, &command)?;
        let completion = PAGE + u64::from(self.sent) * 16;
        self.sent += 1;
        self.registers.write_u32(DOORBELLS, self.sent)?;
        if !self.interrupts[0].wait(Some(Duration::from_secs(5)))? {
            return Err("the interrupt of an Identify command does not arrive".into());
        }
        // Phase 1 and status 0, 3.3.3.2.
        match self.queues.load_u32(completion + 12)? >> 16 {
            1 => Ok(()),
            status => Err(format!("Identify ends with phase and status {status:#x}").into()),
        }
    }

    /// Disables it: afterwards it has let go of all memory.
    pub fn stop(&self) -> Outcome {
        self.registers.write_u32(CC, 0)?;
        self.wait_for(|status| status & READY == 0)
    }

    /// CAP.TO says how long the controller may take, in units of 500 ms.
    fn wait_for(&self, state: impl Fn(u32) -> bool) -> Outcome {
        let units = self.registers.read_u64(CAP)? >> 24 & 0xFF;
        let deadline = Instant::now() + Duration::from_millis(500) * units as u32;
        while !state(self.registers.read_u32(CSTS)?) {
            if Instant::now() > deadline {
                return Err("the controller does not become ready in time".into());
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}
