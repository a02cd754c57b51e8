//! Addresses that are taken and hold nothing yet.

use std::fmt;
use std::io;
use std::ptr;

use crate::PAGE;
use crate::address_space::AddressSpace;

/// Addresses of this process that nobody else will be given. Freed on drop.
pub struct Reservation {
    address: usize,
    length: usize,
    home: AddressSpace,
}

impl Reservation {
    /// Takes exactly these addresses (whole pages), if they are free. Never replaces a mapping, also not one that another
    /// thread makes at this moment (MAP_FIXED_NOREPLACE).
    ///
    /// # Errors
    /// `AlreadyExists` when something is mapped there; `InvalidInput` for no whole pages; otherwise what mmap(2) answers.
    pub fn at(address: usize, length: usize) -> io::Result<Reservation> {
        if address == 0 || !address.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) || length == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let place = Reservation::map(address, length, libc::MAP_FIXED_NOREPLACE)?;
        // Kernels before 4.17 take the address as a hint.
        match place.address == address {
            true => Ok(place),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    /// Takes free addresses where the kernel likes.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn anywhere(length: usize) -> io::Result<Reservation> {
        Reservation::map(0, length, 0)
    }

    fn map(address: usize, length: usize, flags: i32) -> io::Result<Reservation> {
        let flags = flags | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let hint = ptr::with_exposed_provenance_mut(address);
        // SAFETY: without MAP_FIXED, and with NOREPLACE, a new mapping replaces nothing.
        let base = unsafe { libc::mmap(hint, length, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Reservation { address: base as usize, length: length.next_multiple_of(PAGE), home: AddressSpace::current() })
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.address
    }

    /// Keeps the addresses reserved for good: they are the caller's to map over and to unmap.
    pub fn into_address(self) -> usize {
        let address = self.address;
        std::mem::forget(self);
        address
    }

    /// Length, bytes.
    pub fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.home.is_current() {
            // SAFETY: the addresses are ours and hold nothing.
            unsafe { libc::munmap(self.address as *mut _, self.length) };
        }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({:#x}, {} bytes)", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_addresses_are_refused() {
        // Where the kernel places nothing of other threads by itself.
        let place = Reservation::at(0x10_0000_0000, 3 * PAGE).expect("room");
        let taken = Reservation::at(place.address() + PAGE, PAGE).expect_err("it is taken");
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        let address = place.address();
        drop(place);
        let again = Reservation::at(address, PAGE).expect("free again");
        assert_eq!((again.address(), again.length()), (address, PAGE));
        assert!(Reservation::at(address + 1, PAGE).is_err() && Reservation::at(0, PAGE).is_err());
    }
}
