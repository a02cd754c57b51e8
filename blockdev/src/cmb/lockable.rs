//! How much of an aperture may be lent: windows of main memory are locked, and of that a user has a limit.

use crate::BLOCK_BYTES;

/// What an io_uring engine locks besides windows: its rings and tables (measured: less than half of it), bytes.
const ENGINE_BYTES: u64 = 256 << 10;

/// The part of `bytes` that fits into what may be locked: a window beyond that would never be lent.
pub(super) fn lendable(bytes: u64, lockable_bytes: Option<u64>) -> u64 {
    let Some(lockable) = lockable_bytes else { return bytes };
    let left = lockable.saturating_sub(ENGINE_BYTES);
    bytes.min(left - left % BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_lent_than_may_be_locked() {
        assert_eq!(lendable(64 << 20, None), 64 << 20);
        assert_eq!(lendable(1 << 20, Some(8 << 20)), 1 << 20);
        assert_eq!(lendable(64 << 20, Some((8 << 20) + 5)), (8 << 20) - ENGINE_BYTES);
        assert_eq!(lendable(64 << 20, Some(64 << 10)), 0);
    }
}
