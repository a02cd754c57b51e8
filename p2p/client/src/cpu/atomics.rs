//! Atomic operations of the device: translate, fault and try again, as any access does. Where the
//! page falls back they are refused: there is no memory to be atomic in.

use std::sync::Arc;

use peerfs_abi::Reason;
use peerfs_sys::{AtomicWord, Fault, Window};

use super::device::{ATTEMPTS, Device, Region};
use super::fault;
use super::page_table::Target;
use crate::atomics::in_window;
use crate::mapping::Place;
use crate::{Error, MapFlags};

impl Device {
    /// Adds to the word (u32 or u64) at a device address, wrapping, and answers what it was. A revocation on the way
    /// is a fault like any other: the page is mapped again and the operation repeated, once it is known that it did
    /// not take place.
    ///
    /// # Errors
    /// [`Error::AtomicUnsupported`] where the page falls back (with [`Reason::Busy`] it is worth repeating) or the
    /// region was not bound with [`MapFlags::ATOMIC`]; otherwise as [`crate::Mapping::fetch_add`] and [`Device::load`].
    pub fn fetch_add<W: AtomicWord>(&self, address: u64, value: W) -> Result<W, Error> {
        self.atomically::<W>(address, |window, at| window.fetch_add(at, value))
    }

    /// Stores `new` in the word at a device address if it is `current`; `Ok` with what it was, else `Err` with it.
    ///
    /// # Errors
    /// As [`Device::fetch_add`].
    pub fn compare_exchange<W: AtomicWord>(&self, address: u64, current: W, new: W) -> Result<Result<W, W>, Error> {
        let was = self.atomically::<W>(address, |window, at| window.compare_exchange(at, current, new))?;
        Ok(if was == current { Ok(was) } else { Err(was) })
    }

    fn atomically<W: AtomicWord>(
        &self,
        address: u64,
        operation: impl Fn(&Window, usize) -> Result<W, Fault>,
    ) -> Result<W, Error> {
        let word_bytes = size_of::<W>();
        let region = self.region(address, true)?;
        let file_offset = region.file_offset_of(address);
        let unsupported = |reason| Error::AtomicUnsupported { file_offset, reason };
        if !region.flags.contains(MapFlags::ATOMIC) {
            return Err(unsupported(Reason::AtomicUnsupported));
        }
        if !address.is_multiple_of(word_bytes as u64) {
            return Err(Error::Misaligned { file_offset, word_bytes });
        }
        if region.addresses.end - address < word_bytes as u64 {
            return Err(Error::DeviceAddress { address, what: "the word leaves the region" });
        }
        for _ in 0..ATTEMPTS {
            match self.atomic_attempt(&region, address, &operation)? {
                Attempt::Done(was) => return Ok(was),
                Attempt::Again => {}
                Attempt::Fallback(reason) => return Err(unsupported(reason)),
            }
        }
        Err(unsupported(Reason::Busy))
    }

    fn atomic_attempt<W: AtomicWord>(
        &self,
        region: &Arc<Region>,
        address: u64,
        operation: &impl Fn(&Window, usize) -> Result<W, Fault>,
    ) -> Result<Attempt<W>, Error> {
        let Some(leaf) = self.shared.translate(address) else {
            fault::serve(&self.shared, region, address)?;
            return Ok(Attempt::Again);
        };
        let inside = address - leaf.start;
        let end = inside + size_of::<W>() as u64;
        match &leaf.target {
            Target::Direct { mapping, place, valid } if end <= *valid => {
                let place = Place { grant: Arc::clone(&place.grant), offset: place.offset + inside };
                if let Some((was, moved)) = in_window(&place, size_of::<W>(), operation)? {
                    mapping.shared().counters.add(moved);
                    self.shared.stats.moved.add(moved);
                    return Ok(Attempt::Done(was));
                }
                self.shared.drop_leaf(&leaf);
                Ok(Attempt::Again)
            }
            Target::Direct { mapping, .. } | Target::Fallback { mapping, .. } => {
                Ok(Attempt::Fallback(mapping.reason_at(region.file_offset_of(address))))
            }
        }
    }
}

/// How one try of an atomic operation ended.
enum Attempt<W> {
    Done(W),
    /// Translated now, or revoked: it did not take place.
    Again,
    Fallback(Reason),
}
