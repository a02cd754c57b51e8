//! Recognises what must not be overwritten unasked: by mkfs, or by taking a device from the kernel.

use std::fmt;

use crate::{BLOCK_BYTES, BlockDevice, BlockDeviceExt, DeviceError};

/// First bytes of each of the two superblock copies of a peerfs volume, in blocks 0 and 1.
pub const VOLUME_MAGIC: [u8; 8] = *b"PEERFS\x0d\x0a";

/// What the first bytes of a device say it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// A peerfs volume.
    Volume,
    /// Something else that is known, for people: "an ext2, ext3 or ext4 filesystem".
    Foreign(&'static str),
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Content::Volume => "a peerfs volume",
            Content::Foreign(what) => what,
        })
    }
}

struct Signature {
    content: Content,
    offset: u64,
    bytes: &'static [u8],
}

const fn foreign(what: &'static str, offset: u64, bytes: &'static [u8]) -> Signature {
    Signature { content: Content::Foreign(what), offset, bytes }
}

/// Offsets and bytes from the formats' documentation, as collected by libblkid.
/// Specific ones first: many of them also carry the MBR's two bytes.
const SIGNATURES: &[Signature] = &[
    Signature { content: Content::Volume, offset: 0, bytes: &VOLUME_MAGIC },
    Signature { content: Content::Volume, offset: BLOCK_BYTES, bytes: &VOLUME_MAGIC },
    foreign("an xfs filesystem", 0, b"XFSB"),
    foreign("an ext2, ext3 or ext4 filesystem", 1024 + 56, &[0x53, 0xef]),
    foreign("a btrfs filesystem", 65536 + 64, b"_BHRfS_M"),
    foreign("an f2fs filesystem", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    foreign("a squashfs filesystem", 0, b"hsqs"),
    foreign("an NTFS filesystem", 3, b"NTFS    "),
    foreign("an exFAT filesystem", 3, b"EXFAT   "),
    foreign("a LUKS volume", 0, b"LUKS\xba\xbe"),
    foreign("an LVM volume", 512, b"LABELONE"),
    foreign("a member of an md RAID", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    foreign("a member of an md RAID", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    foreign("swap space", BLOCK_BYTES - 10, b"SWAPSPACE2"),
    foreign("an ISO 9660 filesystem", 32769, b"CD001"),
    foreign("a GPT partition table", 512, b"EFI PART"),
    foreign("a GPT partition table", 4096, b"EFI PART"),
    foreign("an MBR partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// How many bytes from the start of a device [`recognise`] looks at: whole blocks.
pub fn head_bytes() -> u64 {
    SIGNATURES.iter().map(|s| s.offset + s.bytes.len() as u64).max().unwrap_or(0).next_multiple_of(BLOCK_BYTES)
}

/// What these first bytes of a device belong to, if it is something known. Shorter ones than [`head_bytes`] say less.
pub fn recognise(head: &[u8]) -> Option<Content> {
    SIGNATURES.iter().find(|s| matches(s, head)).map(|s| s.content)
}

/// What is on the device, if it is something known.
///
/// # Errors
/// What reading the device answers.
pub fn existing_content(device: &dyn BlockDevice) -> Result<Option<Content>, DeviceError> {
    let mut head = vec![0; head_bytes().min(device.info().size_bytes) as usize];
    device.read_at(0, &mut head)?;
    Ok(recognise(&head))
}

fn matches(signature: &Signature, head: &[u8]) -> bool {
    let start = signature.offset as usize;
    head.get(start..start + signature.bytes.len()) == Some(signature.bytes)
}
