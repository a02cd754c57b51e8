//! The model test through a real mount: client processes do one thing at a time
//! as a test tells them over pipes, so that the model stays exact.
//!
//! A command is a line of words. The answer is `ok`, words, the length of a
//! payload and that payload; or `no` and an error number. Data to write is named
//! by a seed, so that commands stay lines.

mod field;
mod moves;
mod puppet;
mod servant;

pub use field::{Field, FieldPlan};
pub use puppet::{Answer, Puppet, Refused, Stretch};
pub use servant::serve;

use crate::Random;

/// The bytes that a seed names.
pub fn data_of(seed: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    Random::new(seed).fill(&mut data);
    data
}
