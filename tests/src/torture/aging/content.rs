//! What files are filled with: sectors that say which write they come from.

use anyhow::{Result, ensure};

/// What is written whole, in bytes.
pub const SECTOR: usize = 512;

/// The write that a sector comes from; [`HOLE`] for zeros.
pub type Stamp = u64;

/// Never written, or punched.
pub const HOLE: Stamp = 0;

const WORD: usize = size_of::<u64>();

/// The bytes of sectors, one a stamp.
pub fn bytes_of(stamps: &[Stamp]) -> Vec<u8> {
    stamps.iter().flat_map(|stamp| (0..(SECTOR / WORD) as u64).flat_map(|word| mixed(*stamp, word).to_le_bytes())).collect()
}

/// The stamps of whole sectors.
///
/// # Errors
/// A sector that no write has made.
pub fn stamps_of(bytes: &[u8]) -> Result<Vec<Stamp>> {
    ensure!(bytes.len().is_multiple_of(SECTOR), "{} bytes are no whole sectors", bytes.len());
    let sectors = bytes.chunks_exact(SECTOR).enumerate();
    sectors
        .map(|(number, sector)| {
            let stamp = sector.first_chunk::<WORD>().map_or(HOLE, |first| u64::from_le_bytes(*first));
            ensure!(sector == bytes_of(&[stamp]), "sector {number} is not as any write left it (it begins with {stamp:#x})");
            Ok(stamp)
        })
        .collect()
}

/// Word 0 of a sector is its stamp, and a hole has zeros only.
fn mixed(stamp: Stamp, word: u64) -> u64 {
    stamp.wrapping_mul(word.wrapping_mul(0x9E37_79B9_7F4A_7C16) + 1).rotate_left((word % 64) as u32)
}
