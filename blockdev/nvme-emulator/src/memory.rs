//! The addresses at which the controller finds memory, and what it may reach.

use std::collections::BTreeMap;
use std::sync::Arc;

use peerfs_blockdev::nvme::PeerMemory;
use peerfs_sys::{AccessError, BufferPool, DmaMemory};

/// Between two ranges nothing is mapped for at least this long, bytes: an access past an end is seen.
const GAP: u64 = 1 << 20;

/// Addresses end here: what common IOMMUs translate (39 bits).
const LIMIT: u64 = 1 << 39;

/// Why an access of the controller did not take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaFaultReason {
    /// Nothing is mapped there, or no longer.
    Unmapped,
    /// The controller was cut off from all memory.
    Severed,
    /// A buffer that its owner has, not the controller.
    NotLent,
}

/// An access of the controller that did not take place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaFault {
    /// First byte.
    pub address: u64,
    /// Length, bytes.
    pub length: u64,
    /// The controller wanted to write.
    pub write: bool,
    /// What stopped it.
    pub reason: DmaFaultReason,
}

#[derive(Debug, Clone)]
enum Backing {
    Memory(Arc<DmaMemory>),
    Pool(Arc<BufferPool>),
    /// Addresses without memory behind them.
    Reserved(u64),
    /// Memory of another device, for reading, or for writing too.
    Peer(PeerMemory, bool),
}

/// All that the controller may name.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    next: u64,
    severed: bool,
    ranges: BTreeMap<u64, Backing>,
    pub(crate) faults: Vec<DmaFault>,
}

impl AddressSpace {
    pub(crate) fn new() -> Self {
        AddressSpace { next: GAP, severed: false, ranges: BTreeMap::new(), faults: Vec::new() }
    }

    pub(crate) fn map_memory(&mut self, memory: &Arc<DmaMemory>) -> Option<u64> {
        self.map(Backing::Memory(memory.clone()))
    }

    pub(crate) fn map_pool(&mut self, pool: &Arc<BufferPool>) -> Option<u64> {
        self.map(Backing::Pool(pool.clone()))
    }

    pub(crate) fn map_peer(&mut self, memory: &PeerMemory, writable: bool) -> Option<u64> {
        self.map(Backing::Peer(memory.clone(), writable))
    }

    pub(crate) fn reserve(&mut self, bytes: u64) -> Option<u64> {
        self.map(Backing::Reserved(bytes))
    }

    fn map(&mut self, backing: Backing) -> Option<u64> {
        let address = self.next;
        let end = address.checked_add(backing.length())?.checked_next_multiple_of(4096)?.checked_add(GAP)?;
        if end > LIMIT {
            return None;
        }
        self.next = end;
        self.ranges.insert(address, backing);
        Some(address)
    }

    pub(crate) fn unmap(&mut self, address: u64) {
        self.ranges.remove(&address);
    }

    pub(crate) fn sever(&mut self) {
        self.severed = true;
    }

    /// Copies out of memory. `None`: it was blocked, which is recorded.
    pub(crate) fn read(&mut self, address: u64, out: &mut [u8]) -> Option<()> {
        let length = out.len() as u64;
        self.access(address, length, false, |place| place.read(out))
    }

    /// Copies into memory. `None`: it was blocked, which is recorded.
    pub(crate) fn write(&mut self, address: u64, data: &[u8]) -> Option<()> {
        self.access(address, data.len() as u64, true, |place| place.write(data))
    }

    /// Stores a word after everything that was written before.
    pub(crate) fn store(&mut self, address: u64, value: u32) -> Option<()> {
        self.access(address, 4, true, |place| match &place.backing {
            Backing::Memory(memory) => memory.store_u32(place.offset, value),
            _ => place.write(&value.to_le_bytes()),
        })
    }

    /// What an address leads to now, and will for whoever has translated it, also when it is unmapped.
    pub(crate) fn translate(&self, address: u64) -> Option<Place> {
        let (start, backing) = self.ranges.range(..=address).next_back().filter(|_| !self.severed)?;
        Some(Place { backing: backing.clone(), offset: address - start })
    }

    fn access(
        &mut self,
        address: u64,
        length: u64,
        write: bool,
        copy: impl FnOnce(&Place) -> Result<(), AccessError>,
    ) -> Option<()> {
        let result = match self.translate(address) {
            _ if self.severed => Err(DmaFaultReason::Severed),
            Some(place) => copy(&place).map_err(|error| match error {
                AccessError::NotLent { .. } => DmaFaultReason::NotLent,
                _ => DmaFaultReason::Unmapped,
            }),
            None => Err(DmaFaultReason::Unmapped),
        };
        result.map_err(|reason| self.faults.push(DmaFault { address, length, write, reason })).ok()
    }
}

/// Memory behind an address.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    backing: Backing,
    offset: u64,
}

impl Place {
    pub(crate) fn read(&self, out: &mut [u8]) -> Result<(), AccessError> {
        match &self.backing {
            Backing::Memory(memory) => memory.read(self.offset, out),
            Backing::Pool(pool) => pool.device_read(self.offset, out),
            Backing::Reserved(_) => Err(AccessError::Gone),
            Backing::Peer(memory, _) => peer_place(memory, self.offset, out.len() as u64)
                .filter(|place| memory.bar.read(*place, out))
                .map(drop)
                .ok_or(AccessError::Gone),
        }
    }

    pub(crate) fn write(&self, data: &[u8]) -> Result<(), AccessError> {
        match &self.backing {
            Backing::Memory(memory) => memory.write(self.offset, data),
            Backing::Pool(pool) => pool.device_write(self.offset, data),
            Backing::Reserved(_) | Backing::Peer(_, false) => Err(AccessError::Gone),
            Backing::Peer(memory, true) => peer_place(memory, self.offset, data.len() as u64)
                .filter(|place| memory.bar.write(*place, data))
                .map(drop)
                .ok_or(AccessError::Gone),
        }
    }
}

/// Where a range of a peer's memory is in its BAR.
fn peer_place(memory: &PeerMemory, offset: u64, length: u64) -> Option<u64> {
    let end = offset.checked_add(length)?;
    (end <= memory.length).then(|| memory.offset + offset)
}

impl Backing {
    fn length(&self) -> u64 {
        match self {
            Backing::Memory(memory) => memory.length(),
            Backing::Pool(pool) => pool.length(),
            Backing::Reserved(bytes) => *bytes,
            Backing::Peer(memory, _) => memory.length,
        }
    }
}
