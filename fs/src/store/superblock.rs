//! The superblock: what has to be known before the metadata can be opened.
//!
//! It lies in block 0 and again in block 1. An update writes and flushes one
//! copy, then the other, with the next generation number: a torn write leaves
//! an intact copy, and the newer intact one counts. Everything else about the volume is in the metadata database.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use peerfs_blockdev::{BLOCK_BYTES, VOLUME_MAGIC};

use super::BlockRange;
use super::chain::Chain;

/// Format written by this code.
pub const FORMAT_VERSION: u32 = 1;
/// Its name, for messages of older programs.
pub const FORMAT_NAME: &str = "peerfs-1";
/// Blocks taken by the two superblock copies.
pub const SUPERBLOCK_BLOCKS: u64 = 2;
/// Extents and gaps the metadata area may consist of.
pub const CHAIN_CAPACITY: usize = 220;
/// Longest label in bytes.
pub const LABEL_BYTES: usize = 64;

const FLAG_CLEAN: u32 = 1;
const FLAG_FORMATTING: u32 = 2;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct RawRange {
    start: U64,
    count: U64,
}

/// The bytes on disk, all little endian.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: U32,
    flags: U32,
    format_name: [u8; 16],
    generation: U64,
    uuid: [u8; 16],
    label: [u8; LABEL_BYTES],
    device_blocks: U64,
    meta_length: U64,
    host_id: U64,
    next_context_id: U64,
    mount_count: U64,
    chain_count: U32,
    reserved: [u8; 408],
    chain: [RawRange; CHAIN_CAPACITY],
    /// CRC-32C of everything before it; at this place in every format.
    checksum: U32,
}

const _: () = assert!(size_of::<RawSuperblock>() == BLOCK_BYTES as usize);
const CHECKED_BYTES: usize = BLOCK_BYTES as usize - 4;

/// A decoded superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Increases with every update.
    pub generation: u64,
    /// Identity of the volume.
    pub uuid: [u8; 16],
    /// Name given at mkfs.
    pub label: String,
    /// Size of the volume in blocks of 4096 bytes.
    pub device_blocks: u64,
    /// Where the metadata area lies.
    pub chain: Chain,
    /// Logical length of the metadata area in bytes; may exceed what the chain backs.
    pub meta_length: u64,
    /// The last mount ended in order.
    pub clean: bool,
    /// mkfs is not done.
    pub formatting: bool,
    /// Who mounted it last (see [`super::host_id`]).
    pub host_id: u64,
    /// Context ids below this may have been given out.
    pub next_context_id: u64,
    /// Read-write mounts so far.
    pub mount_count: u64,
}

/// Why a block is no superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParseError {
    /// Something else is there.
    NoMagic,
    /// Ours, but damaged.
    Corrupt(&'static str),
    /// Ours and intact, but from a newer program; its format's name.
    Newer(String),
}

impl Superblock {
    /// The 4096 bytes to write.
    pub fn encode(&self) -> Vec<u8> {
        let mut chain = [RawRange { start: U64::ZERO, count: U64::ZERO }; CHAIN_CAPACITY];
        for (raw, range) in chain.iter_mut().zip(self.chain.pieces()) {
            *raw = RawRange { start: range.start.into(), count: range.count.into() };
        }
        let mut flags = 0;
        if self.clean {
            flags |= FLAG_CLEAN;
        }
        if self.formatting {
            flags |= FLAG_FORMATTING;
        }
        let raw = RawSuperblock {
            magic: VOLUME_MAGIC,
            version: FORMAT_VERSION.into(),
            flags: flags.into(),
            format_name: padded(FORMAT_NAME),
            generation: self.generation.into(),
            uuid: self.uuid,
            label: padded(&self.label),
            device_blocks: self.device_blocks.into(),
            meta_length: self.meta_length.into(),
            host_id: self.host_id.into(),
            next_context_id: self.next_context_id.into(),
            mount_count: self.mount_count.into(),
            chain_count: (self.chain.pieces().len().min(CHAIN_CAPACITY) as u32).into(),
            reserved: [0; 408],
            chain,
            checksum: U32::ZERO,
        };
        let mut bytes = raw.as_bytes().to_vec();
        let checksum = crc32c::crc32c(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes and checks one copy.
    pub fn parse(bytes: &[u8]) -> Result<Superblock, ParseError> {
        let raw = RawSuperblock::read_from_bytes(bytes).map_err(|_| ParseError::Corrupt("not one block long"))?;
        if raw.magic != VOLUME_MAGIC {
            return Err(ParseError::NoMagic);
        }
        if crc32c::crc32c(&bytes[..CHECKED_BYTES]) != raw.checksum.get() {
            return Err(ParseError::Corrupt("the checksum does not match"));
        }
        if raw.version.get() > FORMAT_VERSION {
            return Err(ParseError::Newer(text(&raw.format_name)));
        }
        let superblock = raw.decode()?;
        superblock.validate().map_err(ParseError::Corrupt)?;
        Ok(superblock)
    }

    fn validate(&self) -> Result<(), &'static str> {
        if self.device_blocks > u64::MAX / BLOCK_BYTES {
            return Err("the size is impossible");
        }
        let mut sorted = self.chain.extents();
        sorted.sort();
        let mut free_from = SUPERBLOCK_BLOCKS;
        for range in sorted {
            if !range.is_within(free_from, self.device_blocks) {
                return Err("the metadata area overlaps itself or leaves the device");
            }
            free_from = range.end();
        }
        // The logical length runs ahead of what is backed by at most one doubling
        // or one region of the database (4 GiB), so anything far above is damage.
        let limit = (self.device_blocks * BLOCK_BYTES).saturating_mul(4).saturating_add(1 << 34);
        let covered = self.chain.pieces().iter().try_fold(0_u64, |sum, piece| sum.checked_add(piece.count));
        if !self.meta_length.is_multiple_of(BLOCK_BYTES) {
            return Err("the metadata area ends within a block");
        }
        if self.meta_length > limit || covered.is_none_or(|blocks| blocks > limit / BLOCK_BYTES) {
            return Err("the metadata area is impossibly long");
        }
        Ok(())
    }
}

impl RawSuperblock {
    fn decode(&self) -> Result<Superblock, ParseError> {
        let chain_count = self.chain_count.get() as usize;
        let chain = self.chain.get(..chain_count).ok_or(ParseError::Corrupt("the metadata chain is too long"))?;
        Ok(Superblock {
            generation: self.generation.get(),
            uuid: self.uuid,
            label: text(&self.label),
            device_blocks: self.device_blocks.get(),
            chain: Chain::new(chain.iter().map(|r| BlockRange::new(r.start.get(), r.count.get())).collect()),
            meta_length: self.meta_length.get(),
            clean: self.flags.get() & FLAG_CLEAN != 0,
            formatting: self.flags.get() & FLAG_FORMATTING != 0,
            host_id: self.host_id.get(),
            next_context_id: self.next_context_id.get(),
            mount_count: self.mount_count.get(),
        })
    }
}

/// `text` cut and padded with zeros to `N` bytes.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    let length = text.len().min(N);
    bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
    bytes
}

/// The text before the first zero.
fn text(bytes: &[u8]) -> String {
    let length = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            generation: 7,
            uuid: [3; 16],
            label: "vol".into(),
            device_blocks: 4096,
            chain: Chain::new(vec![BlockRange::new(2, 10), BlockRange::new(0, 7), BlockRange::new(100, 5)]),
            meta_length: 1 << 20,
            clean: true,
            formatting: false,
            host_id: 9,
            next_context_id: 11,
            mount_count: 2,
        }
    }

    #[test]
    fn survives_the_round_trip() {
        assert_eq!(Superblock::parse(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample().encode();
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            assert!(Superblock::parse(&bad).is_err(), "byte {byte}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let mut bytes = sample().encode();
        bytes[8..12].copy_from_slice(&2u32.to_le_bytes());
        bytes[16..24].copy_from_slice(b"peerfs-2");
        let checksum = crc32c::crc32c(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Superblock::parse(&bytes), Err(ParseError::Newer("peerfs-2".into())));
    }

    #[test]
    fn a_chain_outside_the_device_is_refused() {
        for chain in [
            vec![BlockRange::new(1, 2)],
            vec![BlockRange::new(4000, 97)],
            vec![BlockRange::new(u64::MAX, u64::MAX)],
            vec![BlockRange::new(10, 10), BlockRange::new(5, 6)],
            vec![BlockRange::new(10, 0)],
            vec![BlockRange::new(0, u64::MAX / 2), BlockRange::new(10, 1)],
        ] {
            let bad = Superblock { chain: Chain::new(chain), ..sample() };
            assert!(matches!(Superblock::parse(&bad.encode()), Err(ParseError::Corrupt(_))));
        }
    }
}
