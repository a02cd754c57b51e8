//! What `verify=crc32c` puts at the start of each block.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Tells our blocks from others: "peerfsvb", little endian.
const MAGIC: u64 = u64::from_le_bytes(*b"peerfsvb");

/// Length of the header, and so of the smallest block that has one, bytes.
pub const SMALLEST_BLOCK: u64 = size_of::<Header>() as u64;

/// The first bytes of a block; all fields in the machine's byte order.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    magic: u64,
    /// Of the block in the file, bytes.
    offset: u64,
    /// Which write it was.
    seed: u64,
    /// Of the block, header included, bytes.
    length: u32,
    /// CRC-32C of what is behind the header.
    crc32c: u32,
}

const _: () = assert!(size_of::<Header>() == 32);

impl Header {
    /// The header of a block with this payload.
    pub fn new(offset: u64, seed: u64, payload: &[u8]) -> Header {
        let length = (payload.len() as u64 + SMALLEST_BLOCK) as u32;
        Header { magic: MAGIC, offset, seed, length, crc32c: crc32c::crc32c(payload) }
    }

    /// Puts it at the start of a block.
    pub fn store(&self, head: &mut [u8]) {
        head.copy_from_slice(self.as_bytes());
    }

    /// Looks at a whole block; `seed` says which write it has to be.
    pub fn check(offset: u64, seed: Option<u64>, block: &[u8]) -> Result<(), String> {
        let (header, payload) = Header::read_from_prefix(block).map_err(|_| "it is too short for a header".to_owned())?;
        if header.magic != MAGIC {
            return Err(format!("it has no header (magic number {:#x})", header.magic));
        }
        if header.offset != offset {
            return Err(format!("it was written to offset {}", header.offset));
        }
        if u64::from(header.length) != block.len() as u64 {
            return Err(format!("it was written with {} bytes", header.length));
        }
        let found = crc32c::crc32c(payload);
        if header.crc32c != found {
            return Err(format!("its CRC-32C is {found:08x} instead of {:08x}", header.crc32c));
        }
        match seed {
            Some(seed) if seed != header.seed => Err("it is of another write: an older one, or another job's".to_owned()),
            _ => Ok(()),
        }
    }
}
