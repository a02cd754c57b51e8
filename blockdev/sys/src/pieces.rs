//! Which pieces of a buffer pool are free: three sizes, each a run of the pool's memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Piece sizes in bytes and how many there are of each, smallest first.
const CLASSES: [(usize, usize); 3] = [(16 << 10, 128), (128 << 10, 32), (1 << 20, 16)];

/// Largest piece, in bytes.
pub(crate) const LARGEST_PIECE_BYTES: usize = CLASSES[2].0;

/// Memory that all pieces need, in bytes.
pub(crate) const POOL_BYTES: usize = {
    let [(a, i), (b, j), (c, k)] = CLASSES;
    a * i + b * j + c * k
};

/// Number of pieces.
pub(crate) const PIECES: usize = CLASSES[0].1 + CLASSES[1].1 + CLASSES[2].1;

/// Place of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    class: usize,
    /// Number among the pieces of all classes.
    pub(crate) index: usize,
    /// Where it starts in the pool's memory, bytes.
    pub(crate) offset: usize,
}

impl Piece {
    /// Length, bytes.
    pub(crate) fn length(self) -> usize {
        CLASSES[self.class].0
    }

    /// The piece that holds the byte at `offset`.
    pub(crate) fn holding(offset: usize) -> Option<Piece> {
        let (mut start, mut first) = (0, 0);
        for (class, (bytes, count)) in CLASSES.into_iter().enumerate() {
            let end = start + bytes * count;
            if offset < end {
                let number = (offset - start) / bytes;
                return Some(Piece { class, index: first + number, offset: start + number * bytes });
            }
            (start, first) = (end, first + count);
        }
        None
    }
}

/// The free pieces, by class.
pub(crate) struct FreePieces([Mutex<Vec<Piece>>; CLASSES.len()]);

impl FreePieces {
    /// All of them.
    pub(crate) fn all() -> Self {
        let mut start = 0;
        FreePieces(CLASSES.map(|(bytes, count)| {
            let end = start + bytes * count;
            let pieces = (start..end).step_by(bytes).rev().filter_map(Piece::holding).collect();
            start = end;
            Mutex::new(pieces)
        }))
    }

    /// Takes one of at least `len` bytes, if there is one.
    pub(crate) fn take(&self, len: usize) -> Option<Piece> {
        let fitting = CLASSES.iter().position(|(bytes, _)| *bytes >= len)?;
        (fitting..CLASSES.len()).find_map(|class| self.class(class).pop())
    }

    pub(crate) fn give(&self, piece: Piece) {
        self.class(piece.class).push(piece);
    }

    fn class(&self, class: usize) -> MutexGuard<'_, Vec<Piece>> {
        self.0[class].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_pieces_are_the_whole_pool_once() {
        let free = FreePieces::all();
        let pieces: BTreeMap<usize, Piece> = std::iter::from_fn(|| free.take(1)).map(|piece| (piece.offset, piece)).collect();
        assert_eq!(pieces.len(), PIECES);
        let mut next = 0;
        for (number, piece) in pieces.into_values().enumerate() {
            assert_eq!((piece.offset, piece.index), (next, number));
            next += piece.length();
            assert_eq!(Piece::holding(next - 1), Some(piece));
        }
        assert_eq!(next, POOL_BYTES);
        assert_eq!(Piece::holding(POOL_BYTES), None);
    }

    #[test]
    fn a_piece_fits_and_a_larger_one_steps_in() {
        let free = FreePieces::all();
        assert_eq!(free.take(LARGEST_PIECE_BYTES + 1), None);
        assert_eq!(free.take((16 << 10) + 1).map(Piece::length), Some(128 << 10));
        let small: Vec<Piece> = (0..CLASSES[0].1).filter_map(|_| free.take(100)).collect();
        assert!(small.iter().all(|piece| piece.length() == 16 << 10));
        assert_eq!(free.take(100).map(Piece::length), Some(128 << 10));
        free.give(small[7]);
        assert_eq!(free.take(100), Some(small[7]));
    }
}
