//! Values of options: every function takes the text and answers the value, or what was expected.

mod blocks;
mod expression;
mod lists;
mod numbers;
mod patterns;
mod times;

pub use blocks::{BlockSizes, block_range, block_size, block_split};
pub use lists::per_direction;
pub use numbers::{Extent, boolean, extent, integer, offset, size};
pub use patterns::{PatternPiece, pattern};
pub use times::{milliseconds, seconds, time_range};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// File to memory.
    Read,
    /// Memory to file.
    Write,
}

impl Direction {
    /// Both, in the order in which values of options give them.
    pub const ALL: [Direction; 2] = [Direction::Read, Direction::Write];

    /// The name in fio's output.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Read => "read",
            Direction::Write => "write",
        }
    }
}

/// A value for each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerDirection<T> {
    /// For reads.
    pub read: T,
    /// For writes.
    pub write: T,
}

impl<T> PerDirection<T> {
    /// The value of a direction.
    pub fn get(&self, direction: Direction) -> &T {
        match direction {
            Direction::Read => &self.read,
            Direction::Write => &self.write,
        }
    }

    /// The value of a direction, to be changed.
    pub fn get_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }
}
