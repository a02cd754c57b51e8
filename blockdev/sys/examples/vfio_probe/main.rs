//! What works between this machine's VFIO and its devices, step by step: a diagnostic for "my device does not open".
//!
//! `vfio_probe [--write] [--removal] ADDRESS…`: opens each device (bound to vfio-pci), prints what it
//! has, maps memory for it, tries its interrupts, and, for an NVMe controller, asks
//! it to identify itself by DMA. The controller is reset. With `--write` memory of a
//! controller (CMB or PMR) is written, by peer-to-peer DMA of the next device too, and
//! restored. With `--removal` it waits until the kernel wants the first device back,
//! and then until vfio-pci has it again. Fails at the first thing that does not work.
//!
//! `vfio_probe /sys/bus/pci/devices/ADDRESS/resourceN` maps a BAR of a device without a driver.

mod controller;
mod nvme;

use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerfs_sys::{AccessError, Bar, DmaAccess, DmaMemory, VfioContainer, VfioDevice, VfioError};

const USAGE: &str = "usage: vfio_probe [--write] [--removal] ADDRESS… | /sys/bus/pci/devices/ADDRESS/resourceN";
const FLAGS: [&str; 2] = ["--write", "--removal"];

type Outcome = Result<(), Box<dyn Error>>;

/// How long to wait for somebody.
const PATIENCE: Duration = Duration::from_secs(60);
const PCI_COMMAND: u64 = 4;
const PCI_COMMAND_MEMORY: u16 = 2;
const NVME_CLASS: [u8; 3] = [0x02, 0x08, 0x01];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vfio_probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Outcome {
    let (flags, addresses): (Vec<&str>, Vec<&str>) = arguments.iter().map(String::as_str).partition(|text| text.starts_with('-'));
    let [first, ..] = addresses[..] else { return Err(USAGE.into()) };
    if flags.iter().any(|flag| !FLAGS.contains(flag)) {
        return Err(USAGE.into());
    }
    if first.starts_with('/') {
        let bar =
            Bar::from_sysfs(first).map_err(|error| format!("cannot map {first}: {error} (does a driver have the device?)"))?;
        println!("{bar:?}, begins with {:#x}", bar.read_u32(0)?);
        return Ok(());
    }
    let container = VfioContainer::open()?;
    let memory = DmaMemory::zeroed(4096)?;
    let early = container.map_dma(memory.dma_range(), DmaAccess::ReadWrite);
    println!("an empty container: {}", expect_error(early)?);
    let devices = addresses.iter().map(|address| VfioDevice::open(&container, address)).collect::<Result<Vec<_>, _>>()?;
    print_iommu(&container)?;
    map_memory(&container)?;
    for device in &devices {
        println!("\n{}", device.address());
        probe(&container, device)?;
    }
    if flags.contains(&"--write") {
        println!("\npeer-to-peer");
        for (device, peer) in devices.iter().zip(devices.iter().cycle().skip(1)) {
            nvme::write_memory(&container, device, peer)?;
        }
    }
    if flags.contains(&"--removal") {
        removal(&container, devices, first)?;
    }
    println!("\nall steps passed");
    Ok(())
}

fn removal(container: &Arc<VfioContainer>, devices: Vec<VfioDevice>, first: &str) -> Outcome {
    println!("waiting for the removal of {first}");
    if !devices[0].removal_request()?.wait(Some(PATIENCE))? {
        return Err("nobody wants to remove it".into());
    }
    // A mapping may outlive the devices, and the IOMMU, which the kernel takes away with the last of them.
    let memory = DmaMemory::zeroed(4096)?;
    let mapping = container.map_dma(memory.dma_range(), DmaAccess::ReadWrite)?;
    drop(devices);
    println!("removal requested; waiting for its return");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error @ VfioError::NotBound { .. }) = VfioDevice::open(container, first) {
        if Instant::now() > deadline {
            return Err(error.into());
        }
        std::thread::yield_now();
    }
    mapping.unmap()?;
    let device = VfioDevice::open(container, first)?;
    probe(container, &device)
}

fn print_iommu(container: &VfioContainer) -> Outcome {
    let info = container.info()?;
    println!("IOMMU page sizes {:#x}, mappings left {:?}", info.page_sizes, info.mappings_left);
    for range in info.iova_ranges {
        println!("  addresses {:#x} to {:#x}", range.start(), range.end());
    }
    Ok(())
}

fn map_memory(container: &Arc<VfioContainer>) -> Outcome {
    const ROUNDS: u32 = 500;
    let memory = DmaMemory::zeroed(4096)?;
    let mapping = container.map_dma(memory.dma_range(), DmaAccess::ReadWrite)?;
    let again = container.map_dma_at(memory.dma_range(), mapping.iova(), DmaAccess::Read);
    println!("a page at {:#x}; there once more: {}", mapping.iova(), expect_error(again)?);
    let outside = container.map_dma_at(memory.dma_range(), 0xFEE0_0000, DmaAccess::Read);
    println!("in the MSI window: {}", expect_error(outside)?);
    mapping.unmap()?;
    let begin = Instant::now();
    for _ in 0..ROUNDS {
        container.map_dma(memory.dma_range(), DmaAccess::Read)?.unmap()?;
    }
    println!("map and unmap a page: {:?}", begin.elapsed() / ROUNDS);
    Ok(())
}

fn expect_error<T>(result: Result<T, VfioError>) -> Result<VfioError, Box<dyn Error>> {
    result.err().ok_or_else(|| "the kernel accepts what it must not".into())
}

fn probe(container: &Arc<VfioContainer>, device: &VfioDevice) -> Outcome {
    device.enable_memory_and_bus_master()?;
    let ids: [u8; 4] = device.read_config(0)?;
    let class: [u8; 3] = device.read_config(9)?;
    println!(
        "  vendor and device {:02x}{:02x}:{:02x}{:02x}, class {class:02x?}, can reset: {}",
        ids[1],
        ids[0],
        ids[3],
        ids[2],
        device.can_reset()
    );
    for region in device.regions().iter().filter(|region| region.length > 0) {
        println!("  BAR {}: {:#x} bytes, mappable {:x?}", region.index, region.length, region.mappable);
        lend_to_others(container, device, region.index as usize)?;
    }
    try_messages(device)?;
    try_interrupts(device)?;
    let Some(registers) = device.bar(0)? else { return Ok(()) };
    if class == NVME_CLASS {
        nvme::probe(container, device, &registers)?;
    }
    vanish(device, &registers)?;
    if device.can_reset() {
        device.reset()?;
        println!("  reset");
    }
    Ok(())
}

/// What one device exports, the others reach: peer-to-peer.
fn lend_to_others(container: &Arc<VfioContainer>, device: &VfioDevice, index: usize) -> Outcome {
    let Some(bar) = device.bar(index)?.filter(|bar| bar.mapped_length() == bar.length()) else { return Ok(()) };
    let page = bar.dma_range(0, 4096)?;
    let mapping = container.map_dma(page, DmaAccess::ReadWrite)?;
    println!("    its first page for other devices at {:#x}", mapping.iova());
    Ok(mapping.unmap()?)
}

fn try_messages(device: &VfioDevice) -> Outcome {
    let removal = device.removal_request()?;
    println!("  removal request set up, pending: {}", removal.take()?);
    match device.error_message() {
        Ok(_) => println!("  error message set up"),
        Err(error) => println!("  no error messages: {error}"),
    }
    Ok(())
}

fn try_interrupts(device: &VfioDevice) -> Outcome {
    let available = device.interrupt_count()?;
    println!("  {available} MSI-X interrupts");
    for count in [available.min(1), available.min(2), available.min(1)].into_iter().filter(|count| *count > 0) {
        let interrupts = device.interrupts(count)?;
        let last = interrupts.last().ok_or("no interrupt")?;
        device.simulate_interrupt(count - 1)?;
        if !last.wait(Some(Duration::from_secs(5)))? {
            return Err("a simulated interrupt does not arrive".into());
        }
        println!("    {count} enabled, number {} arrives", count - 1);
    }
    let too_many = device.interrupts(available + 1);
    println!("    one too many: {}", expect_error(too_many)?);
    Ok(())
}

/// A device whose memory space is off is, for its mappings, a device that was removed.
fn vanish(device: &VfioDevice, registers: &Bar) -> Outcome {
    let command = u16::from_le_bytes(device.read_config(PCI_COMMAND)?);
    device.write_config(PCI_COMMAND, &(command & !PCI_COMMAND_MEMORY).to_le_bytes())?;
    let mut bytes = [0; 64];
    let answers = [registers.read_u32(0).err(), registers.write_u32(0, 0).err(), registers.read(0, &mut bytes).err()];
    device.write_config(PCI_COMMAND, &command.to_le_bytes())?;
    if answers != [Some(AccessError::Gone); 3] {
        return Err(format!("registers of a device that is off answer {answers:?}").into());
    }
    println!("  with its memory space off, access is an error; on again: {:#x}", registers.read_u32(0)?);
    Ok(())
}
