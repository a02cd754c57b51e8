//! Changes of the processor's mapping made through the library: the device's side ends first.

use std::io;
use std::ops::Range;

use peerfs_sys::{CpuMapping, Protection};

use super::AddressMapping;
use super::table::Known;
use crate::Error;

impl AddressMapping {
    /// Ends the device's side of every stretch that has one of these addresses, whole, before the program changes the
    /// processor's. An access answers [`Error::AddressChanged`] from now on.
    ///
    /// # Errors
    /// [`Error::AddressInUse`] while an access guard is held there; nothing is ended then.
    pub fn release(&self, addresses: Range<u64>) -> Result<(), Error> {
        self.session.owner.core.check()?;
        self.view.table.release(&addresses).map(drop)
    }

    /// Takes up again what is mapped at these addresses now.
    ///
    /// # Errors
    /// As [`crate::Session::map_address`].
    pub fn renew(&self, addresses: Range<u64>) -> Result<(), Error> {
        self.session.owner.core.check()?;
        let length = addresses.end.saturating_sub(addresses.start);
        self.add(super::whole_pages(addresses.start, length)?)
    }

    /// Ends the device's side of every stretch that has one of these addresses, whole, lets `change` change the processor's
    /// mappings, and takes up again what is there then.
    ///
    /// # Errors
    /// Before `change` is called as [`AddressMapping::release`], after it as [`AddressMapping::renew`].
    pub fn change<R>(&self, addresses: Range<u64>, change: impl FnOnce() -> R) -> Result<R, Error> {
        let asked = super::whole_pages(addresses.start, addresses.end.saturating_sub(addresses.start))?;
        let before = self.let_go(asked.clone())?;
        let changed = change();
        // Each of them has an address of `asked`, so all of it is one range.
        let start = before.iter().map(|ended| ended.start).fold(asked.start, u64::min);
        let end = before.iter().map(|ended| ended.end).fold(asked.end, u64::max);
        self.add(start..end)?;
        Ok(changed)
    }

    /// munmap(2) of a part of `cpu` (offsets in it, whole pages), the device's side first. What is left of a
    /// stretch is mapped for the device again.
    ///
    /// # Errors
    /// As [`AddressMapping::release`], and what munmap(2) answers.
    pub fn munmap(&self, cpu: &mut CpuMapping, range: Range<usize>) -> Result<(), Error> {
        let before = self.let_go(span(cpu, range.clone()))?;
        let unmapped = cpu.unmap(range);
        self.renew_all(before)?;
        unmapped.map_err(|source| self.failed("unmap part of", source))
    }

    /// mremap(2) of `cpu` to a new length; it may move, and the device's side with it.
    ///
    /// # Errors
    /// As [`AddressMapping::release`], and what mremap(2) answers.
    pub fn mremap(&self, cpu: &mut CpuMapping, length: usize) -> Result<(), Error> {
        let before = self.let_go(span(cpu, 0..cpu.length()))?;
        let moved = cpu.remap(length);
        self.renew_all(before)?;
        self.renew(span(cpu, 0..cpu.length()))?;
        moved.map_err(|source| self.failed("move", source))
    }

    /// mprotect(2) of a part of `cpu` (offsets in it, whole pages). The device's side ends first where it could do more
    /// than the processor may from now on, and is taken up again where the processor may again.
    ///
    /// # Errors
    /// As [`AddressMapping::release`], and what mprotect(2) answers.
    pub fn mprotect(&self, cpu: &mut CpuMapping, range: Range<usize>, to: Protection) -> Result<(), Error> {
        let enough = match self.view.flags.writes() {
            true => to == Protection::ReadWrite,
            false => to != Protection::None,
        };
        let addresses = span(cpu, range.clone());
        let before = match enough {
            true => Vec::new(),
            false => self.let_go(addresses.clone())?,
        };
        let protected = cpu.protect(range, to).map_err(|source| self.failed("protect", source));
        self.renew_all(before)?;
        // What was closed to the processor, and so to the device, may be open now.
        if enough && !matches!(self.view.table.find(addresses.start), Ok((Known::File(_), _))) {
            self.renew(addresses)?;
        }
        protected
    }

    /// Ends stretches and answers where they were.
    fn let_go(&self, addresses: Range<u64>) -> Result<Vec<Range<u64>>, Error> {
        self.session.owner.core.check()?;
        self.view.table.release(&addresses)
    }

    fn renew_all(&self, places: Vec<Range<u64>>) -> Result<(), Error> {
        places.into_iter().try_for_each(|addresses| self.renew(addresses))
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::system(operation, "a mapping of the processor", source)
    }
}

fn span(cpu: &CpuMapping, range: Range<usize>) -> Range<u64> {
    let start = cpu.address() as u64;
    start + range.start as u64..start + range.end as u64
}
