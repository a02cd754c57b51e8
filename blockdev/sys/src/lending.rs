//! Buffers in the hands of a device: who may touch a piece of a pool, its owner or a device.

use std::fmt;
use std::hint;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::buffer::AlignedBuf;
use crate::pool::BufferPool;

/// The owner has it.
const OWNED: u32 = 0;
/// A device has it; above that, each emulated access under way counts one.
const LENT: u32 = 1;

/// State of one piece.
pub(crate) struct Lending(AtomicU32);

impl Lending {
    pub(crate) const fn new() -> Self {
        Lending(AtomicU32::new(OWNED))
    }

    fn lend(&self) {
        self.0.store(LENT, Ordering::Release);
    }

    /// Waits for accesses under way, each of which is one copy.
    fn reclaim(&self) {
        while self.0.compare_exchange(LENT, OWNED, Ordering::Acquire, Ordering::Relaxed).is_err() {
            hint::spin_loop();
        }
    }

    /// Does the work while the piece is certainly lent; `None` if it is not.
    pub(crate) fn during<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        let enter = |state| (state != OWNED).then_some(state + 1);
        self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).ok()?;
        let result = work();
        self.0.fetch_sub(1, Ordering::Release);
        Some(result)
    }
}

/// A pool buffer that a device may read and write: nobody has a reference to its memory.
///
/// Only [`LentBuf::reclaim`] ends that, when the device has certainly let go (its
/// command completed, or it was reset). Dropping it instead gives the memory up for
/// good: what a device may still write is never used again.
#[must_use = "dropping it loses the memory: reclaim it once the device has let go"]
pub struct LentBuf(ManuallyDrop<AlignedBuf>);

impl LentBuf {
    /// Length, bytes.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Where it starts in the pool, bytes: add it to the address at which the device sees the pool.
    pub fn dma_offset(&self) -> u64 {
        self.0.piece().expect("only pool buffers are lent").offset()
    }

    /// Takes the buffer back. The device must have let go.
    pub fn reclaim(self) -> AlignedBuf {
        let buf = ManuallyDrop::into_inner(self.0);
        buf.piece().expect("only pool buffers are lent").lending().reclaim();
        buf
    }
}

impl fmt::Debug for LentBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LentBuf({} bytes at {:#x})", self.length(), self.dma_offset())
    }
}

impl AlignedBuf {
    /// Where it starts in `pool`, bytes; `None` unless it is a buffer of that pool.
    pub fn dma_offset(&self, pool: &Arc<BufferPool>) -> Option<u64> {
        self.piece().filter(|piece| piece.is_of(pool)).map(|piece| piece.offset())
    }

    /// Hands it over to a device that sees `pool`.
    ///
    /// # Errors
    /// Gives the buffer back when it is not of that pool.
    pub fn lend(self, pool: &Arc<BufferPool>) -> Result<LentBuf, AlignedBuf> {
        match self.piece() {
            Some(piece) if piece.is_of(pool) => piece.lending().lend(),
            _ => return Err(self),
        }
        Ok(LentBuf(ManuallyDrop::new(self)))
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::AccessError;

    #[test]
    fn a_device_reaches_a_buffer_only_while_it_is_lent() {
        let pool = BufferPool::new().expect("pool");
        let mut buf = pool.buffer(8192).expect("free");
        buf.fill(3);
        let offset = buf.dma_offset(&pool).expect("of this pool");
        let not_lent = Err(AccessError::NotLent { offset });
        assert_eq!(pool.device_write(offset, &[9; 4]), not_lent);

        let lent = buf.lend(&pool).expect("of this pool");
        assert_eq!((lent.dma_offset(), lent.length()), (offset, 8192));
        let mut seen = [0; 8];
        pool.device_read(offset + 4, &mut seen).expect("lent");
        assert_eq!(seen, [3; 8]);
        pool.device_write(offset + 4096, &[9; 4]).expect("lent");
        assert_eq!(
            pool.device_read(offset + (16 << 10) - 4, &mut seen),
            Err(AccessError::NotLent { offset: offset + (16 << 10) - 4 }),
            "into the neighbour"
        );

        let buf = lent.reclaim();
        assert_eq!((buf[4095], &buf[4096..4101]), (3, &[9, 9, 9, 9, 3][..]));
        assert_eq!(pool.device_read(offset, &mut seen), not_lent);
        assert!(matches!(pool.device_read(pool.length(), &mut seen), Err(AccessError::Outside { .. })));
    }

    #[test]
    fn only_buffers_of_the_pool_are_lent() {
        let pool = BufferPool::new().expect("pool");
        let other = BufferPool::new().expect("pool");
        let foreign = other.buffer(4096).expect("free");
        assert_eq!(foreign.dma_offset(&pool), None);
        assert!(foreign.lend(&pool).is_err());
        assert!(AlignedBuf::zeroed(4096).lend(&pool).is_err());
    }

    #[test]
    fn memory_dropped_while_lent_is_never_used_again() {
        let pool = BufferPool::new().expect("pool");
        let lent = pool.buffer(4096).expect("free").lend(&pool).expect("of this pool");
        let offset = lent.dma_offset();
        drop(lent);
        let rest: Vec<AlignedBuf> = std::iter::from_fn(|| pool.buffer(4096)).collect();
        assert!(rest.iter().all(|buf| buf.dma_offset(&pool) != Some(offset)));
        pool.device_write(offset, &[1]).expect("the device may still write there");
    }

    #[test]
    fn a_buffer_comes_back_between_a_devices_accesses() {
        const LENGTH: usize = 16 << 10;
        let pool = BufferPool::new().expect("pool");
        let mut buf = pool.buffer(LENGTH).expect("free");
        let offset = buf.dma_offset(&pool).expect("of this pool");
        thread::scope(|scope| {
            let device = scope.spawn(|| {
                let mut written = 0;
                while written < 5000 {
                    written += u32::from(pool.device_write(offset, &[7; LENGTH]).is_ok());
                }
            });
            while !device.is_finished() {
                let lent = buf.lend(&pool).expect("of this pool");
                thread::yield_now();
                buf = lent.reclaim();
                assert!(buf.iter().all(|byte| *byte == buf[0]), "an access was under way");
                buf.fill(1);
                assert!(buf.iter().all(|byte| *byte == 1), "a device wrote to an owned buffer");
            }
        });
    }
}
