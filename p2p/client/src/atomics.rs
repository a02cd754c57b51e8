//! Atomic operations on directly mapped ranges.
//!
//! They are real: one locked instruction on the window's memory, which every
//! importer of the range shares. Where the range falls back there is nothing
//! that is atomic, so there they are refused and never imitated.

use peerfs_abi::Reason;
use peerfs_sys::{ATOMICS, AtomicWord, Fault, Window};

use crate::mapping::Place;
use crate::{Attestation, Error, Mapping, PinKind};

impl Mapping {
    /// Adds to the word (u32 or u64, native byte order) at the file offset, wrapping, and answers what it was.
    /// Sequentially consistent among all importers. Never raises SIGBUS.
    ///
    /// An error means that nothing was added, whatever happened on the way; a sum that was answered survives
    /// every revocation. Only the death of the server may lose it, like any store that was not synced.
    ///
    /// # Errors
    /// [`Error::Revoked`]: map again and repeat. [`Error::AtomicUnsupported`] where the range falls back, is
    /// pinned as a dma-buf, or was not mapped with [`crate::MapFlags::ATOMIC`], [`Error::ReadOnly`] on a mapping that cannot write,
    /// [`Error::Misaligned`]; otherwise as [`Mapping::read_at`].
    pub fn fetch_add<W: AtomicWord>(&self, offset: u64, value: W) -> Result<W, Error> {
        self.atomically::<W>(offset, |window, at| window.fetch_add(at, value))
    }

    /// Stores `new` in the word at the file offset if it is `current`; `Ok` with what it was, else `Err` with it.
    /// With the same promises as [`Mapping::fetch_add`].
    ///
    /// # Errors
    /// As [`Mapping::fetch_add`].
    pub fn compare_exchange<W: AtomicWord>(&self, offset: u64, current: W, new: W) -> Result<Result<W, W>, Error> {
        let was = self.atomically::<W>(offset, |window, at| window.compare_exchange(at, current, new))?;
        Ok(if was == current { Ok(was) } else { Err(was) })
    }

    fn atomically<W: AtomicWord>(
        &self,
        file_offset: u64,
        operation: impl FnOnce(&Window, usize) -> Result<W, Fault>,
    ) -> Result<W, Error> {
        let unsupported = |reason| Error::AtomicUnsupported { file_offset, reason };
        if !self.writable() {
            return Err(Error::ReadOnly);
        }
        if !self.atomic() || !ATOMICS {
            return Err(unsupported(Reason::AtomicUnsupported));
        }
        let word_bytes = size_of::<W>();
        self.check(file_offset, word_bytes)?;
        if !file_offset.is_multiple_of(word_bytes as u64) {
            return Err(Error::Misaligned { file_offset, word_bytes });
        }
        // A dma-buf may lose the file's blocks while its memory lives on: nobody could say then whether an operation counts.
        if self.pin_at(file_offset) == Some(PinKind::Dmabuf) {
            return Err(unsupported(Reason::AtomicUnsupported));
        }
        let part = self.part(file_offset, word_bytes);
        let place = part.place.filter(|_| part.length == word_bytes);
        let place = place.ok_or_else(|| unsupported(self.reason_at(file_offset)))?;
        let (was, moved) = in_window(&place, word_bytes, operation)?.ok_or(Error::Revoked { file_offset })?;
        self.shared().counters.add(moved);
        Ok(was)
    }
}

/// One operation in a grant's window; `None` when it was revoked before the operation took place.
///
/// Unlike a copy it needs no second check: the window is the authoritative copy until it is cut, the cut makes the
/// instruction fault, and the server writes back after the cut. So what did not fault counts.
pub(crate) fn in_window<R>(
    place: &Place,
    bytes: usize,
    operation: impl FnOnce(&Window, usize) -> Result<R, Fault>,
) -> Result<Option<(R, Attestation)>, Error> {
    let (Some(entered), Ok(at)) = (place.grant.enter()?, usize::try_from(place.offset)) else {
        return Ok(None);
    };
    let Ok(was) = operation(entered.window(), at) else {
        return Ok(None);
    };
    let mut moved = Attestation::default();
    moved.count(place.grant.path(), bytes as u64);
    Ok(Some((was, moved)))
}
