//! As much of an NVMe controller as shows that DMA and interrupts arrive. Sections are of the NVMe base specification 2.0.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerfs_sys::{Bar, BufferPool, DmaAccess, DmaMemory, VfioContainer, VfioDevice};

use super::Outcome;

// Registers, 3.1.3.
const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1C;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const CMBLOC: u64 = 0x38;
const CMBSZ: u64 = 0x3C;
const CMBMSC: u64 = 0x50;
const PMRCAP: u64 = 0xE00;
const PMRCTL: u64 = 0xE04;
const PMRSTS: u64 = 0xE08;
const DOORBELLS: u64 = 0x1000;

const CAP_PMRS: u64 = 1 << 56;
const CAP_CMBS: u64 = 1 << 57;
const READY: u32 = 1;
/// Enabled, with entries of 64 and 16 bytes.
const CC_ENABLED: u32 = 6 << 16 | 4 << 20 | 1;
const QUEUE_ENTRIES: u32 = 16;
const PAGE: u64 = 4096;

/// Prints what the controller is and has it identify itself.
pub fn probe(container: &Arc<VfioContainer>, device: &VfioDevice, registers: &Bar) -> Outcome {
    let cap = registers.read_u64(CAP)?;
    let version = registers.read_u32(VS)?;
    let halves = u64::from(registers.read_u32(CAP + 4)?) << 32 | u64::from(registers.read_u32(CAP)?);
    println!("  NVMe {}.{}, CAP {cap:#x} (as two words {halves:#x})", version >> 16, version >> 8 & 0xFF);
    if cap & CAP_PMRS != 0 {
        println!("  persistent memory region, PMRCAP {:#x}", registers.read_u32(PMRCAP)?);
    }
    if cap & CAP_CMBS != 0 {
        registers.write_u64(CMBMSC, 1)?;
        println!("  controller memory buffer, CMBLOC {:#x} CMBSZ {:#x}", registers.read_u32(CMBLOC)?, registers.read_u32(CMBSZ)?);
        registers.write_u64(CMBMSC, 0)?;
    }
    identify(container, device, registers, cap)
}

/// One Identify Controller command (5.17) by DMA, with an interrupt.
fn identify(container: &Arc<VfioContainer>, device: &VfioDevice, registers: &Bar, cap: u64) -> Outcome {
    let queues = DmaMemory::zeroed(2 * PAGE as usize)?;
    let queues_at = container.map_dma(queues.dma_range(), DmaAccess::ReadWrite)?;
    let pool = BufferPool::new()?;
    let pool_at = container.map_dma(pool.dma_range(), DmaAccess::ReadWrite)?;
    let interrupts = device.interrupts(1)?;
    let lent = pool.buffer(PAGE as usize).and_then(|buf| buf.lend(&pool).ok()).ok_or("no buffer")?;

    enable(registers, queues_at.iova(), cap)?;
    let mut command = [0; 64];
    command[0] = 6;
    command[24..32].copy_from_slice(&(pool_at.iova() + lent.dma_offset()).to_le_bytes());
    command[40] = 1;
    queues.write(0, &command)?;
    let begin = Instant::now();
    registers.write_u32(DOORBELLS, 1)?;
    let arrived = interrupts[0].wait(Some(Duration::from_secs(5)))?;
    let status = queues.load_u32(PAGE + 12)?;
    println!("  Identify: interrupt {arrived}, status {status:#x}, {:?}", begin.elapsed());
    registers.write_u32(CC, 0)?;
    wait_for(registers, cap, |status| status & READY == 0)?;

    // Disabled, the controller has let go of the buffer, whatever came of the command.
    let answer = lent.reclaim();
    println!("  serial {:?}, model {:?}", text(&answer[4..24]), text(&answer[24..64]));
    match (arrived, status >> 16) {
        (true, 1) => Ok(()),
        _ => Err("the Identify command did not succeed".into()),
    }
}

fn enable(registers: &Bar, queues: u64, cap: u64) -> Outcome {
    registers.write_u32(CC, 0)?;
    wait_for(registers, cap, |status| status & READY == 0)?;
    registers.write_u32(AQA, (QUEUE_ENTRIES - 1) << 16 | (QUEUE_ENTRIES - 1))?;
    registers.write_u64(ASQ, queues)?;
    registers.write_u64(ACQ, queues + PAGE)?;
    registers.write_u32(CC, CC_ENABLED)?;
    wait_for(registers, cap, |status| status & READY != 0)
}

/// CAP.TO says how long the controller may take, in units of 500 ms.
fn wait_for(registers: &Bar, cap: u64, state: impl Fn(u32) -> bool) -> Outcome {
    let deadline = Instant::now() + Duration::from_millis(500) * (cap >> 24 & 0xFF) as u32;
    while !state(registers.read_u32(CSTS)?) {
        if Instant::now() > deadline {
            return Err("the controller does not become ready in time".into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Writes the first page of the region, compares it, and puts back what was there.
pub fn write_persistent_memory(device: &VfioDevice, registers: &Bar) -> Outcome {
    if registers.read_u64(CAP)? & CAP_PMRS == 0 {
        return Ok(());
    }
    let bar = registers.read_u32(PMRCAP)? >> 5 & 7;
    let memory = device.bar(bar as usize)?.ok_or("the region's BAR is missing")?;
    registers.write_u32(PMRCTL, 1)?;
    println!("  PMR in BAR {bar}: {memory:?}, PMRSTS {:#x}", registers.read_u32(PMRSTS)?);
    let mut before = [0; PAGE as usize];
    memory.read(0, &mut before)?;
    println!("    begins with {:?}", text(&before[..32]));
    let pattern: Vec<u8> = (0..PAGE).map(|i| (i * 7) as u8).collect();
    let mut after = [0; PAGE as usize];
    memory.write(3, &pattern[3..])?;
    memory.read(3, &mut after[3..])?;
    let last = memory.length() - 8;
    memory.write_u64(last, memory.read_u64(last)?)?;
    memory.write(0, &before)?;
    speed(&memory)?;
    registers.write_u32(PMRCTL, 0)?;
    match after[3..] == pattern[3..] {
        false => return Err("the persistent memory region returns other bytes than were written".into()),
        true => println!("    written, read back, restored"),
    }
    Ok(())
}

fn speed(memory: &Bar) -> Result<(), Box<dyn Error>> {
    const CHUNK: usize = 512 << 10;
    if memory.length() < CHUNK as u64 {
        return Ok(());
    }
    let mut chunk = vec![0; CHUNK];
    let begin = Instant::now();
    memory.read(0, &mut chunk)?;
    let read = begin.elapsed();
    memory.write(0, &chunk)?;
    println!("    512 KiB read in {read:?}, written in {:?}", begin.elapsed() - read);
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches([' ', '\0']).to_string()
}
