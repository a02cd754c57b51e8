//! Does DMA of an NVMe controller arrive, in main memory and in another controller's memory, and no longer than it may?

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use peerfs_sys::{Bar, BufferPool, DmaAccess, VfioContainer, VfioDevice};

use super::Outcome;
use super::controller::Controller;

// Registers, NVMe base specification 2.0, 3.1.3.
const CAP: u64 = 0x00;
const VS: u64 = 0x08;
const CMBLOC: u64 = 0x38;
const CMBSZ: u64 = 0x3C;
const CMBMSC: u64 = 0x50;
const PMRCAP: u64 = 0xE00;
const PMRCTL: u64 = 0xE04;

const CAP_PMRS: u64 = 1 << 56;
const CAP_CMBS: u64 = 1 << 57;
const PAGE: usize = 4096;

/// Prints what the controller is and has it identify itself.
pub fn probe(container: &Arc<VfioContainer>, device: &VfioDevice, registers: &Bar) -> Outcome {
    let cap = registers.read_u64(CAP)?;
    let version = registers.read_u32(VS)?;
    let halves = u64::from(registers.read_u32(CAP + 4)?) << 32 | u64::from(registers.read_u32(CAP)?);
    println!("  NVMe {}.{}, CAP {cap:#x} (as two words {halves:#x})", version >> 16, version >> 8 & 0xFF);

    let pool = BufferPool::new()?;
    let pool_at = container.map_dma(pool.dma_range(), DmaAccess::ReadWrite)?;
    let lent = pool.buffer(PAGE).and_then(|buf| buf.lend(&pool).ok()).ok_or("no buffer")?;
    let mut controller = Controller::start(container, device)?;
    let begin = Instant::now();
    let done = controller.identify(pool_at.iova() + lent.dma_offset());
    let took = begin.elapsed();
    controller.stop()?;
    // Disabled, the controller has let go of the buffer, whatever came of the command.
    let answer = lent.reclaim();
    done?;
    println!("  Identify in {took:?}: serial {:?}, model {:?}", text(&answer[4..24]), text(&answer[24..64]));
    Ok(())
}

/// The controller's own memory, switched on, in which BAR it may be.
fn own_memory(device: &VfioDevice) -> Result<Option<Arc<Bar>>, Box<dyn Error>> {
    let Some(registers) = device.bar(0)? else { return Ok(None) };
    let cap = registers.read_u64(CAP)?;
    let bar = if cap & CAP_PMRS != 0 {
        registers.write_u32(PMRCTL, 1)?;
        registers.read_u32(PMRCAP)? >> 5 & 7
    } else if cap & CAP_CMBS != 0 {
        registers.write_u64(CMBMSC, 1)?;
        println!("  CMBLOC {:#x}, CMBSZ {:#x}", registers.read_u32(CMBLOC)?, registers.read_u32(CMBSZ)?);
        registers.read_u32(CMBLOC)? & 7
    } else {
        return Ok(None);
    };
    Ok(device.bar(bar as usize)?)
}

/// Writes the first page of the device's memory from here and from `peer`, and puts back what was there.
pub fn write_memory(container: &Arc<VfioContainer>, device: &VfioDevice, peer: &VfioDevice) -> Outcome {
    let Some(memory) = own_memory(device)? else { return Ok(()) };
    let mut before = [0; PAGE];
    memory.read(0, &mut before)?;
    println!("  memory of {}: {memory:?}, begins with {:?}", device.address(), text(&before[..32]));
    let tried = write_here(&memory).and_then(|()| write_by_peer(container, &memory, peer));
    memory.write(0, &before)?;
    tried
}

fn write_here(memory: &Bar) -> Outcome {
    let pattern: Vec<u8> = (0..PAGE).map(|i| (i * 7) as u8).collect();
    let mut after = [0; PAGE];
    let begin = Instant::now();
    memory.write(3, &pattern[3..])?;
    let written = begin.elapsed();
    memory.read(3, &mut after[3..])?;
    println!("    a page written in {written:?}, read in {:?}", begin.elapsed() - written);
    match after[3..] == pattern[3..] {
        true => Ok(()),
        false => Err("device memory returns other bytes than were written".into()),
    }
}

/// Peer-to-peer: the peer's Identify lands in the memory while it is mapped, and never afterwards.
fn write_by_peer(container: &Arc<VfioContainer>, memory: &Arc<Bar>, peer: &VfioDevice) -> Outcome {
    let mut controller = Controller::start(container, peer)?;
    let mapping = container.map_dma(memory.dma_range(0, memory.length())?, DmaAccess::ReadWrite)?;
    let address = mapping.iova();
    let mut page = [0; PAGE];
    memory.write(0, &page)?;
    controller.identify(address)?;
    memory.read(0, &mut page)?;
    println!("    {} writes {:?} to it at {address:#x}", peer.address(), text(&page[4..24]));
    let arrived = page != [0; PAGE];

    mapping.unmap()?;
    memory.write(0, &[0; PAGE])?;
    let blocked = controller.identify(address);
    println!("    once more after the mapping has ended: {blocked:?}");
    controller.stop()?;
    memory.read(0, &mut page)?;
    match (arrived, page == [0; PAGE]) {
        (true, true) => Ok(()),
        (false, _) => Err("what the peer writes does not arrive".into()),
        (_, false) => Err("the peer writes to memory that is no longer mapped".into()),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches([' ', '\0']).to_string()
}
