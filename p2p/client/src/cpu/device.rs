//! The device: address regions, loads, stores and copies.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use peerfs_abi::Path;

use super::fault;
use super::page_table::{Leaf, PAGE, PageTable, Target};
use super::stats::{DeviceStats, StatCounters, bump};
use super::translation_cache::TranslationCache;
use crate::mapping::{Place, direct};
use crate::registry::lock;
use crate::{Attestation, Error, File, MapFlags, Session};

/// A fault and the access behind it, twice; then the access goes through the filesystem this once.
pub(super) const ATTEMPTS: u32 = 4;
/// The copy engine's buffer, bytes.
const COPY_BUFFER: usize = 256 << 10;

/// How a device is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Sets of the translation cache.
    pub cache_sets: usize,
    /// Ways of each set.
    pub cache_ways: usize,
    /// Bits of device virtual address.
    pub va_bits: u32,
    /// How long a page that fell back is not asked for again (the server may ask for longer).
    pub fallback_lifetime: Duration,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        DeviceConfig { cache_sets: 64, cache_ways: 4, va_bits: 48, fallback_lifetime: Duration::from_millis(100) }
    }
}

/// A device with an address space of its own, into which ranges of files are bound.
/// May be used from several threads; clones are the same device.
#[derive(Clone)]
pub struct Device {
    pub(super) shared: Arc<DeviceShared>,
}

pub(super) struct DeviceShared {
    pub(super) session: Session,
    pub(super) config: DeviceConfig,
    pub(super) state: Mutex<State>,
    pub(super) stats: StatCounters,
}

pub(super) struct State {
    pub(super) regions: BTreeMap<u64, Arc<Region>>,
    pub(super) table: PageTable,
    pub(super) cache: TranslationCache,
    /// Leaves that were shot down. The service thread must not call the server while it
    /// owes an acknowledgement, so their mappings are ended by the next fault.
    pub(super) retired: Vec<Leaf>,
}

/// A range of a file bound to device addresses.
pub(super) struct Region {
    pub(super) addresses: Range<u64>,
    pub(super) file: File,
    pub(super) file_offset: u64,
    /// What its faults map with: `WRITE`, `ATOMIC` or nothing.
    pub(super) flags: MapFlags,
}

impl Region {
    pub(super) fn file_offset_of(&self, address: u64) -> u64 {
        self.file_offset + (address - self.addresses.start)
    }
}

/// What one access does to a piece of memory or file.
enum Access<'b> {
    Load(&'b mut [u8]),
    Store(&'b [u8]),
}

impl Device {
    /// A device that maps through `session`.
    pub fn new(session: &Session, config: DeviceConfig) -> Device {
        let state = State {
            regions: BTreeMap::new(),
            table: PageTable::new(config.va_bits),
            cache: TranslationCache::new(config.cache_sets, config.cache_ways),
            retired: Vec::new(),
        };
        let shared =
            Arc::new(DeviceShared { session: session.clone(), config, state: Mutex::new(state), stats: StatCounters::default() });
        Device { shared }
    }

    /// Binds `length` bytes of a file, from `file_offset` on, to device address `address`. Nothing is mapped until it is
    /// used, and then with `flags` (`WRITE` and `ATOMIC` count).
    ///
    /// # Errors
    /// [`Error::DeviceAddress`] when something is no multiple of 4096 (the length may be any), taken or beyond the device's address width.
    pub fn bind(&self, address: u64, file: &File, file_offset: u64, length: u64, flags: MapFlags) -> Result<(), Error> {
        let refuse = |what| Error::DeviceAddress { address, what };
        if !address.is_multiple_of(PAGE) || !file_offset.is_multiple_of(PAGE) || length == 0 {
            return Err(refuse("address and file offset must be multiples of 4096, the length not 0"));
        }
        let limit = self.address_limit();
        let whole_pages = length.checked_next_multiple_of(PAGE);
        let end = whole_pages.and_then(|length| address.checked_add(length));
        let end = end.filter(|end| *end <= limit && file_offset.checked_add(length).is_some());
        let end = end.ok_or_else(|| refuse("the region leaves the address space of device or file"))?;
        let mut state = lock(&self.shared.state);
        let before = state.regions.range(..end).next_back();
        if before.is_some_and(|(_, region)| region.addresses.end > address) {
            return Err(refuse("the addresses are bound already"));
        }
        let region = Region { addresses: address..address + length, file: file.clone(), file_offset, flags };
        state.regions.insert(address, Arc::new(region));
        Ok(())
    }

    /// One past the last address that the device can use.
    pub fn address_limit(&self) -> u64 {
        lock(&self.shared.state).table.limit()
    }

    /// The device addresses that are bound, by rising address, in whole pages.
    pub fn bound(&self) -> Vec<Range<u64>> {
        let state = lock(&self.shared.state);
        let whole = |region: &Arc<Region>| region.addresses.start..region.addresses.end.next_multiple_of(PAGE);
        state.regions.values().map(whole).collect()
    }

    /// Ends the region that starts at `address`, and its mappings.
    ///
    /// # Errors
    /// [`Error::DeviceAddress`] when there is none.
    pub fn unbind(&self, address: u64) -> Result<(), Error> {
        let mut state = lock(&self.shared.state);
        let region = state.regions.remove(&address).ok_or(Error::DeviceAddress { address, what: "no region starts here" })?;
        let mut removed = state.forget(&region.addresses);
        removed.append(&mut state.retired);
        drop(state);
        drop(removed);
        Ok(())
    }

    /// Loads from device memory until the buffer is full or the file ends; returns the bytes loaded.
    ///
    /// # Errors
    /// [`Error::DeviceAddress`] where nothing is bound; otherwise as [`crate::Mapping::read_at`].
    pub fn load(&self, address: u64, target: &mut [u8]) -> Result<usize, Error> {
        let mut done = 0;
        while done < target.len() {
            let at = offset_address(address, done)?;
            let region = self.region(at, false)?;
            let piece = piece_length(&region, at, target.len() - done);
            let wanted = &mut target[done..done + piece];
            let count = self.access(&region, at, Access::Load(wanted))?;
            done += count;
            if count == 0 {
                break;
            }
        }
        Ok(done)
    }

    /// Stores to device memory.
    ///
    /// # Errors
    /// As [`Device::load`]; [`Error::ReadOnly`] where the region was not bound for writing.
    pub fn store(&self, address: u64, source: &[u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < source.len() {
            let at = offset_address(address, done)?;
            let region = self.region(at, true)?;
            let piece = piece_length(&region, at, source.len() - done);
            done += self.access(&region, at, Access::Store(&source[done..done + piece]))?;
        }
        Ok(())
    }

    /// The copy engine: moves bytes between device addresses; returns fewer than `length` when the source file ends.
    /// The ranges must not overlap.
    ///
    /// # Errors
    /// As [`Device::load`] and [`Device::store`].
    pub fn copy(&self, to: u64, from: u64, length: u64) -> Result<u64, Error> {
        let mut buffer = vec![0; COPY_BUFFER.min(usize::try_from(length).unwrap_or(COPY_BUFFER))];
        let mut done = 0;
        while done < length {
            let piece = (length - done).min(buffer.len() as u64) as usize;
            let count = self.load(offset_address(from, done as usize)?, &mut buffer[..piece])?;
            self.store(offset_address(to, done as usize)?, &buffer[..count])?;
            done += count as u64;
            if count < piece {
                break;
            }
        }
        Ok(done)
    }

    /// What the device has done so far.
    pub fn stats(&self) -> DeviceStats {
        self.shared.stats.snapshot()
    }

    pub(super) fn region(&self, address: u64, write: bool) -> Result<Arc<Region>, Error> {
        let state = lock(&self.shared.state);
        let found = state.regions.range(..=address).next_back();
        match found.map(|(_, region)| region) {
            Some(region) if region.addresses.contains(&address) => match write && !region.flags.writes() {
                true => Err(Error::ReadOnly),
                false => Ok(Arc::clone(region)),
            },
            _ => Err(Error::DeviceAddress { address, what: "no file is bound here" }),
        }
    }

    /// One access as far as one translation leads; returns the bytes moved.
    fn access(&self, region: &Arc<Region>, address: u64, mut access: Access) -> Result<usize, Error> {
        for _ in 0..ATTEMPTS {
            let Some(leaf) = self.shared.translate(address) else {
                fault::serve(&self.shared, region, address)?;
                continue;
            };
            let (inside, room) = (address - leaf.start, (leaf.end() - address) as usize);
            let (mapping, direct) = match &leaf.target {
                Target::Direct { mapping, place, valid } if inside < *valid => {
                    (mapping, Some((place, (*valid - inside) as usize)))
                }
                Target::Direct { mapping, .. } | Target::Fallback { mapping, .. } => (mapping, None),
            };
            let Some((place, valid)) = direct else {
                let moved = self.by_filesystem(region, address, access.limit(room))?;
                let counters = &mapping.shared().counters;
                counters.add(moved);
                counters.explain(Some(mapping.reason_at(region.file_offset_of(address))), moved.fallback);
                return Ok(moved.total() as usize);
            };
            let piece = access.reborrow().limit(room.min(valid));
            if let Some(moved) = self.by_grant(place, inside, piece)? {
                mapping.shared().counters.add(moved);
                return Ok(moved.total() as usize);
            }
            self.shared.drop_leaf(&leaf);
        }
        let room = (PAGE - address % PAGE) as usize;
        let moved = self.by_filesystem(region, address, access.limit(room))?;
        Ok(moved.total() as usize)
    }

    /// `None` when the grant was revoked.
    fn by_grant(&self, place: &Place, inside: u64, mut access: Access) -> Result<Option<Attestation>, Error> {
        let place = Place { grant: Arc::clone(&place.grant), offset: place.offset + inside };
        let path = direct(Some(&place), |window, at| match &mut access {
            Access::Load(target) => window.read(at, target),
            Access::Store(source) => window.write(at, source),
        })?;
        Ok(path.map(|path| self.count(path, access.len())))
    }

    fn by_filesystem(&self, region: &Region, address: u64, access: Access) -> Result<Attestation, Error> {
        let offset = region.file_offset_of(address);
        let count = match access {
            Access::Load(target) => region.file.read_at(offset, target)?,
            Access::Store(source) => {
                region.file.write_at(offset, source)?;
                source.len()
            }
        };
        Ok(self.count(Path::Fallback, count))
    }

    fn count(&self, path: Path, bytes: usize) -> Attestation {
        let mut moved = Attestation::default();
        moved.count(path, bytes as u64);
        self.shared.stats.moved.add(moved);
        moved
    }
}

impl DeviceShared {
    /// Translation cache, then page table.
    pub(super) fn translate(&self, address: u64) -> Option<Leaf> {
        let mut state = lock(&self.state);
        if let Some(leaf) = state.cache.lookup(address).filter(is_current) {
            bump(&self.stats.cache_hits);
            return Some(leaf);
        }
        bump(&self.stats.cache_misses);
        let leaf = state.table.lookup(address).cloned().filter(is_current)?;
        let evicted = state.cache.insert(leaf.clone());
        drop(state);
        drop(evicted);
        Some(leaf)
    }

    /// Removes a translation that turned out to be revoked.
    pub(super) fn drop_leaf(&self, leaf: &Leaf) {
        let removed = lock(&self.state).forget(&(leaf.start..leaf.end()));
        drop(removed);
    }

    /// Revocation: after this no access starts on the old translations.
    pub(super) fn shoot_down(&self, addresses: &Range<u64>) {
        let mut state = lock(&self.state);
        let removed = state.forget(addresses);
        if !removed.is_empty() {
            bump(&self.stats.shootdowns);
        }
        state.retired.extend(removed);
    }
}

impl State {
    /// Removes the translations of a range from page table and translation cache.
    pub(super) fn forget(&mut self, addresses: &Range<u64>) -> Vec<Leaf> {
        let mut removed = self.table.remove(addresses);
        removed.append(&mut self.cache.remove(addresses));
        removed
    }
}

impl Access<'_> {
    fn len(&self) -> usize {
        match self {
            Access::Load(target) => target.len(),
            Access::Store(source) => source.len(),
        }
    }

    fn reborrow(&mut self) -> Access<'_> {
        match self {
            Access::Load(target) => Access::Load(target),
            Access::Store(source) => Access::Store(source),
        }
    }
}

impl<'b> Access<'b> {
    fn limit(self, room: usize) -> Access<'b> {
        match self {
            Access::Load(target) => {
                let length = target.len().min(room);
                Access::Load(&mut target[..length])
            }
            Access::Store(source) => Access::Store(&source[..source.len().min(room)]),
        }
    }
}

/// A fallback is not for ever.
fn is_current(leaf: &Leaf) -> bool {
    match leaf.target {
        Target::Direct { .. } => true,
        Target::Fallback { until, .. } => Instant::now() < until,
    }
}

fn piece_length(region: &Region, address: u64, wanted: usize) -> usize {
    let left = region.addresses.end - address;
    usize::try_from(left).map_or(wanted, |left| wanted.min(left))
}

fn offset_address(address: u64, offset: usize) -> Result<u64, Error> {
    address
        .checked_add(offset as u64)
        .ok_or(Error::DeviceAddress { address, what: "the range leaves the device's address space" })
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({:?}, {:?})", self.shared.session, self.stats())
    }
}
