//! What the driver needs of whatever connects it with a controller: VFIO, or an emulated controller in tests.

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;

use peerfs_sys::{BufferPool, DmaMemory, DmaRange, Interrupt};

use crate::BusPlace;

/// The controller's access to memory: where it finds it. Ends when dropped.
pub struct Reach {
    /// Address of the first byte for the controller; contiguous, aligned to 4096.
    pub address: u64,
    /// What ends the access when it is dropped.
    pub hold: Box<dyn Any + Send + Sync>,
}

/// Memory that the controller reaches.
#[derive(Debug)]
pub struct DmaBlock {
    /// Where it finds it. First: the access ends before the memory goes.
    pub reach: Reach,
    /// The memory.
    pub memory: Arc<DmaMemory>,
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reach({:#x})", self.address)
    }
}

impl DmaBlock {
    /// Where the controller finds its first byte.
    pub fn address(&self) -> u64 {
        self.reach.address
    }
}

/// Memory in a BAR of a device, for the DMA engine of another. Whole pages of 4096 bytes.
#[derive(Debug, Clone)]
pub struct PeerMemory {
    /// The memory it is part of.
    pub bar: Arc<dyn BarMemory>,
    /// Its first byte in there.
    pub offset: u64,
    /// Length, bytes.
    pub length: u64,
}

/// The way to one controller. Register offsets are bytes in BAR 0, naturally aligned and inside it.
pub trait Port: Send + Sync + fmt::Debug {
    /// PCI address, for messages.
    fn address(&self) -> &str;
    /// Reads a register: all ones when the device does not answer, as on the bus.
    fn read_u32(&self, offset: u64) -> u32;
    /// Writes a register; every earlier store to [`DmaBlock`] memory is visible to the controller before.
    fn write_u32(&self, offset: u64, value: u32);
    /// As [`Port::read_u32`], 8 bytes.
    fn read_u64(&self, offset: u64) -> u64;
    /// As [`Port::write_u32`], 8 bytes.
    fn write_u64(&self, offset: u64, value: u64);
    /// Length of BAR 0, bytes.
    fn registers_length(&self) -> u64;
    /// Zeroed memory that the controller may read and write, rounded up to 4096.
    ///
    /// # Errors
    /// Memory, or address space for devices, is used up, or the kernel refuses.
    fn allocate(&self, bytes: usize) -> io::Result<DmaBlock>;
    /// Lets the controller reach the buffers of a pool.
    ///
    /// # Errors
    /// As [`Port::allocate`].
    fn attach(&self, pool: &Arc<BufferPool>) -> io::Result<Reach>;
    /// Lets the controller reach memory of another device: for reading, or for writing too.
    ///
    /// # Errors
    /// As [`Port::allocate`]; the memory cannot be mapped for another device.
    fn reach(&self, memory: &PeerMemory, writable: bool) -> io::Result<Reach>;
    /// A range of addresses for the controller that no [`DmaBlock`] ever gets: for its own memory.
    ///
    /// # Errors
    /// Address space for devices is used up.
    fn reserve(&self, bytes: u64) -> io::Result<u64>;
    /// Interrupts number 0 to `count - 1`, fewer if there are not so many; none: completions have to be polled.
    fn interrupts(&self, count: u16) -> Vec<Arc<Interrupt>>;
    /// Resets the function. What the controller was told is forgotten; memory stays within its reach.
    ///
    /// # Errors
    /// The device knows no such reset, or does not come back.
    fn reset(&self) -> io::Result<()>;
    /// Takes all memory out of the controller's reach, for good.
    fn sever(&self);
    /// Has `told` called once when the device is to be removed. It reads as gone by then, and has stopped; its memory is given
    /// back when `told` has returned and other devices have let go of it, or a little later.
    fn on_removal(&self, _told: Box<dyn Fn() + Send + Sync>) {}
    /// The memory of another BAR, from `offset` on (bytes); to its end if no length is given.
    ///
    /// # Errors
    /// There is no such BAR, it is shorter, or the kernel refuses to map it.
    fn bar(&self, index: u8, offset: u64, length: Option<u64>) -> io::Result<Arc<dyn BarMemory>>;
}

/// Memory of a BAR, reached by copying loads and stores that never tear aligned words of 4 bytes.
pub trait BarMemory: Send + Sync + fmt::Debug {
    /// Length, bytes.
    fn length(&self) -> u64;
    /// Where it is on the bus.
    fn bus(&self) -> BusPlace;
    /// Copies out; `false`: the device is gone.
    fn read(&self, offset: u64, out: &mut [u8]) -> bool;
    /// Copies in; `false`: the device is gone.
    fn write(&self, offset: u64, data: &[u8]) -> bool;
    /// A part of it in whole pages, to be mapped for another device; `None`: the kernel does not let it be mapped.
    fn dma_range(&self, _offset: u64, _length: u64) -> Option<DmaRange> {
        None
    }
}
