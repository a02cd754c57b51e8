//! Mapping by address, as the proposal has it: the program names addresses at which it has
//! mapped files of the mount, and the device gets what is behind them.
//!
//! The processor's mapping rules. Its end, a move, less access to it or another file in its place
//! end the device's mapping: before it happens when done through the calls here, and otherwise at
//! the next access, because every access compares the address map of the process with what was
//! mapped, before and after.

mod changes;
mod guard;
mod resolve;
mod table;

pub use guard::AddressGuard;
pub use table::{Backing, Stretch};

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use peerfs_sys::{AddressMap, read_own_memory};

use self::table::{FileStretch, Known, Table};
use crate::{Attestation, Error, MapFlags, Revocation, Session};

/// Addresses of this process that a device reaches too. Dropping it ends the device's side only, as
/// [`crate::Mapping::unmap`] does for each stretch.
pub struct AddressMapping {
    session: Session,
    view: Arc<View>,
}

/// What guards need, too: they may outlive the mapping.
struct View {
    flags: MapFlags,
    maps: AddressMap,
    table: Table,
}

impl Session {
    /// Maps what the processor has mapped at `length` bytes from `address` on, in whole pages: files of the mount,
    /// shared, in any number of stretches. Memory of other kinds can be read through the result too; where
    /// nothing is mapped an access is an error. See [`AddressMapping::stretches`].
    ///
    /// # Errors
    /// [`Error::Address`] for an empty range; otherwise as [`Session::map`].
    pub fn map_address(&self, address: u64, length: u64, flags: MapFlags) -> Result<AddressMapping, Error> {
        self.owner.core.check()?;
        let name = &self.owner.core.name;
        let maps = AddressMap::open().map_err(|source| Error::system("open the address map for", name, source))?;
        let addresses = whole_pages(address, length)?;
        let view = View { flags, maps, table: Table::default() };
        let mapping = AddressMapping { session: self.clone(), view: Arc::new(view) };
        mapping.add(addresses)?;
        Ok(mapping)
    }
}

impl AddressMapping {
    /// What is behind the addresses, in order and without gaps inside what was asked for.
    pub fn stretches(&self) -> Vec<Stretch> {
        self.view.table.list()
    }

    /// Reads from an address on, until the buffer is full. Never raises a signal.
    ///
    /// # Errors
    /// [`Error::AddressChanged`] when the processor's mapping is another one now, [`Error::Address`] where nothing can
    /// be read (also behind the end of the file); otherwise as [`crate::Mapping::read_at`].
    pub fn read_at(&self, address: u64, target: &mut [u8]) -> Result<Attestation, Error> {
        self.session.owner.core.check()?;
        let mut moved = Attestation::default();
        let mut done = 0;
        while done < target.len() {
            let at = offset(address, done)?;
            let (known, room) = self.view.table.find(at)?;
            let piece = &mut target[done..];
            let length = piece.len().min(room);
            let piece = &mut piece[..length];
            match known {
                Known::File(stretch) => moved += self.read_file(&stretch, at, piece)?,
                Known::Memory => moved += read_memory(at, piece)?,
            }
            done += length;
        }
        Ok(moved)
    }

    /// Writes to an address on.
    ///
    /// # Errors
    /// As [`AddressMapping::read_at`]; [`Error::ReadOnly`] without [`MapFlags::WRITE`]; [`Error::Address`] for
    /// memory that is no file of the mount.
    pub fn write_at(&self, address: u64, source: &[u8]) -> Result<Attestation, Error> {
        self.session.owner.core.check()?;
        if !self.view.flags.writes() {
            return Err(Error::ReadOnly);
        }
        let mut moved = Attestation::default();
        let mut done = 0;
        while done < source.len() {
            let at = offset(address, done)?;
            let (known, room) = self.view.table.find(at)?;
            let length = (source.len() - done).min(room);
            let Known::File(stretch) = known else {
                return Err(Error::Address {
                    address: at,
                    what: "this memory is no file of the mount, so a device cannot write it",
                });
            };
            moved += self.write_file(&stretch, at, &source[done..done + length])?;
            done += length;
        }
        Ok(moved)
    }

    /// Takes the device's address of a range, as [`crate::Mapping::access`]. While the guard lives the calls that change the
    /// processor's mapping of the range are refused; a change behind the library's back shows in
    /// [`AddressGuard::still_valid`].
    ///
    /// # Errors
    /// As [`AddressMapping::read_at`] and [`crate::Mapping::access`].
    pub fn access(&self, addresses: Range<u64>) -> Result<AddressGuard, Error> {
        self.session.owner.core.check()?;
        let (known, room) = self.view.table.find(addresses.start)?;
        let Known::File(stretch) = known else {
            return Err(Error::Address { address: addresses.start, what: "this memory is no file of the mount" });
        };
        let length = addresses.end.saturating_sub(addresses.start);
        if length > room as u64 {
            return Err(Error::Split { file_offset: stretch.file_offset_of(addresses.start), available: room as u64 });
        }
        self.verify(&stretch, &addresses)?;
        let start = stretch.file_offset_of(addresses.start);
        let guard = stretch.mapping.access(start..start + length)?;
        if !self.view.table.enter(&stretch) {
            return Err(Error::AddressChanged { address: addresses.start });
        }
        Ok(AddressGuard::new(&self.view, stretch, addresses, guard))
    }

    /// Calls back when part of it is revoked, as [`crate::Mapping::on_revoke`], for what is mapped at this moment.
    pub fn on_revoke(&self, callback: impl Fn(&Revocation) + Clone + Send + Sync + 'static) {
        for stretch in self.view.table.files() {
            stretch.mapping.on_revoke(callback.clone());
        }
    }

    /// What has moved through the files' mappings that are alive.
    pub fn moved(&self) -> Attestation {
        let mut total = Attestation::default();
        self.view.table.files().iter().for_each(|stretch| total += stretch.mapping.moved());
        total
    }

    /// Ends the device's side everywhere, for those who share the mapping, as [`crate::Mapping::end`]: an access answers
    /// [`Error::AddressChanged`] from now on, and guards are not valid any more.
    ///
    /// # Errors
    /// [`Error::StaleContext`] in a fork child.
    pub fn end(&self) -> Result<(), Error> {
        if !self.session.owner.core.is_home() {
            return Err(Error::StaleContext);
        }
        self.view.table.end_in(&(0..u64::MAX));
        Ok(())
    }

    /// Resolves addresses and maps what is behind them.
    fn add(&self, addresses: Range<u64>) -> Result<(), Error> {
        let View { flags, maps, table } = &*self.view;
        table.insert(resolve::resolve(&self.session, maps, addresses, *flags)?);
        // What changed while we mapped it is no longer what was resolved.
        for stretch in table.files() {
            match self.verify(&stretch, &stretch.addresses) {
                Ok(()) | Err(Error::AddressChanged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_file(&self, stretch: &FileStretch, address: u64, target: &mut [u8]) -> Result<Attestation, Error> {
        let touched = address..address + target.len() as u64;
        self.verify(stretch, &touched)?;
        let moved = stretch.mapping.read_at(stretch.file_offset_of(address), target)?;
        let count = moved.total() as usize;
        let end = address + count as u64;
        // As the processor sees it: zeros to the end of the file's last page, and nothing behind it.
        if count < target.len() && touched.end > end.next_multiple_of(PAGE) {
            return Err(Error::Address { address: end.next_multiple_of(PAGE), what: "the file has ended before" });
        }
        target[count..].fill(0);
        self.verify(stretch, &touched)?;
        Ok(moved)
    }

    fn write_file(&self, stretch: &FileStretch, address: u64, source: &[u8]) -> Result<Attestation, Error> {
        let touched = address..address + source.len() as u64;
        self.verify(stretch, &touched)?;
        let start = stretch.file_offset_of(address);
        // A store by the processor does not extend the file either.
        if start.saturating_add(source.len() as u64) > stretch.file.size()? {
            return Err(Error::Address { address, what: "the file ends before the end of the write" });
        }
        let moved = stretch.mapping.write_at(start, source)?;
        self.verify(stretch, &touched)?;
        Ok(moved)
    }

    /// Is the processor's mapping of these addresses still the one that was mapped? If not, the device loses it.
    fn verify(&self, stretch: &FileStretch, addresses: &Range<u64>) -> Result<(), Error> {
        match self.view.verify(stretch, addresses) {
            Ok(None) => Ok(()),
            Ok(Some(address)) => Err(Error::AddressChanged { address }),
            Err(source) => Err(Error::system("look into the address map for", &self.session.owner.core.name, source)),
        }
    }
}

impl View {
    /// Where the processor's mapping is no longer the one that was mapped, if anywhere: then the device loses the stretch.
    fn verify(&self, stretch: &FileStretch, addresses: &Range<u64>) -> io::Result<Option<u64>> {
        let changed = stretch.is_intact(&self.maps, addresses, self.flags.writes())?;
        if changed.is_some() {
            self.table.end(stretch);
        }
        Ok(changed)
    }
}

impl Drop for AddressMapping {
    fn drop(&mut self) {
        // In a fork child there is nothing to end.
        let _ = self.end();
    }
}

const PAGE: u64 = 4096;

fn whole_pages(address: u64, length: u64) -> Result<Range<u64>, Error> {
    let end = address.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE));
    match end {
        Some(end) if length > 0 => Ok(address - address % PAGE..end),
        _ => Err(Error::Address { address, what: "the range is empty or leaves the address space" }),
    }
}

fn offset(address: u64, done: usize) -> Result<u64, Error> {
    address.checked_add(done as u64).ok_or(Error::Address { address, what: "the range leaves the address space" })
}

fn read_memory(address: u64, target: &mut [u8]) -> Result<Attestation, Error> {
    let unreadable = Error::Address { address, what: "this memory cannot be read" };
    let Ok(start) = usize::try_from(address) else {
        return Err(unreadable);
    };
    read_own_memory(start, target).map_err(|_| unreadable)?;
    let mut moved = Attestation::default();
    moved.count(peerfs_abi::Path::Fallback, target.len() as u64);
    Ok(moved)
}

impl fmt::Debug for AddressMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.stretches()).finish()
    }
}
