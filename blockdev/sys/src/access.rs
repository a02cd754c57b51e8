//! Why an access to memory that a device shares did not take place.

use thiserror::Error;

/// An access to device-visible memory or to a BAR that was refused or failed. Units: bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AccessError {
    /// The range is not inside the object.
    #[error("bytes {offset:#x} to {offset:#x}+{length:#x} are outside an object of {size:#x} bytes")]
    Outside {
        /// Where the access begins.
        offset: u64,
        /// How long it is.
        length: u64,
        /// Size of what was accessed.
        size: u64,
    },
    /// A word access has to be naturally aligned.
    #[error("offset {offset:#x} is not a multiple of {width}")]
    Misaligned {
        /// Where the access begins.
        offset: u64,
        /// Width of the word.
        width: u64,
    },
    /// A device's access to a piece of a buffer pool that no device was lent.
    #[error("no device was lent the buffer at offset {offset:#x}")]
    NotLent {
        /// Where the access begins.
        offset: u64,
    },
    /// Part of a BAR that the kernel lets nobody map, or that is not whole pages.
    #[error("bytes {offset:#x} to {offset:#x}+{length:#x} of the BAR are not whole pages that may be mapped")]
    NotMappable {
        /// Where the range begins.
        offset: u64,
        /// How long it is.
        length: u64,
    },
    /// The device was removed, or its memory space is switched off.
    #[error("the device does not answer: it was removed, or its memory space is disabled")]
    Gone,
}

/// Checks that `[offset, offset + length)` is inside `[0, size)`.
pub(crate) fn check_inside(offset: u64, length: usize, size: u64) -> Result<(), AccessError> {
    let length = length as u64;
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(AccessError::Outside { offset, length, size }),
    }
}

/// Checks that a word of `width` bytes at `offset` is inside `[0, size)` and naturally aligned.
pub(crate) fn check_word(offset: u64, width: usize, size: u64) -> Result<(), AccessError> {
    check_inside(offset, width, size)?;
    match offset % width as u64 {
        0 => Ok(()),
        _ => Err(AccessError::Misaligned { offset, width: width as u64 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_at_the_size_and_never_wrap() {
        assert_eq!(check_inside(4, 4, 8), Ok(()));
        assert_eq!(check_inside(8, 0, 8), Ok(()));
        assert_eq!(check_inside(5, 4, 8), Err(AccessError::Outside { offset: 5, length: 4, size: 8 }));
        assert!(check_inside(u64::MAX, 1, 8).is_err());
        assert_eq!(check_word(2, 4, 8), Err(AccessError::Misaligned { offset: 2, width: 4 }));
    }
}
