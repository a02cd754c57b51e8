//! Recognises what mkfs must not overwrite unasked.

use peerfs_blockdev::{BLOCK_BYTES, BlockDevice, BlockDeviceExt};

use super::StoreError;
use super::superblock::MAGIC;

struct Signature {
    what: &'static str,
    offset: u64,
    bytes: &'static [u8],
}

const fn signature(what: &'static str, offset: u64, bytes: &'static [u8]) -> Signature {
    Signature { what, offset, bytes }
}

/// Offsets and bytes from the formats' documentation, as collected by libblkid.
/// Specific ones first: many of them also carry the MBR's two bytes.
const SIGNATURES: &[Signature] = &[
    signature("a peerfs volume", 0, &MAGIC),
    signature("a peerfs volume", BLOCK_BYTES, &MAGIC),
    signature("an xfs filesystem", 0, b"XFSB"),
    signature("an ext2, ext3 or ext4 filesystem", 1024 + 56, &[0x53, 0xef]),
    signature("a btrfs filesystem", 65536 + 64, b"_BHRfS_M"),
    signature("an f2fs filesystem", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    signature("a squashfs filesystem", 0, b"hsqs"),
    signature("an NTFS filesystem", 3, b"NTFS    "),
    signature("an exFAT filesystem", 3, b"EXFAT   "),
    signature("a LUKS volume", 0, b"LUKS\xba\xbe"),
    signature("an LVM volume", 512, b"LABELONE"),
    signature("swap space", BLOCK_BYTES - 10, b"SWAPSPACE2"),
    signature("an ISO 9660 filesystem", 32769, b"CD001"),
    signature("a GPT partition table", 512, b"EFI PART"),
    signature("a GPT partition table", 4096, b"EFI PART"),
    signature("an MBR partition table or boot sector", 510, &[0x55, 0xaa]),
];

/// Names what is on the device, if it is something known.
pub fn existing_content(device: &dyn BlockDevice) -> Result<Option<&'static str>, StoreError> {
    let last = SIGNATURES.iter().map(|s| s.offset + s.bytes.len() as u64).max().unwrap_or(0);
    let length = last.next_multiple_of(BLOCK_BYTES).min(device.info().size_bytes);
    let mut head = vec![0; length as usize];
    device.read_at(0, &mut head)?;
    Ok(SIGNATURES.iter().find(|s| matches(s, &head)).map(|s| s.what))
}

fn matches(signature: &Signature, head: &[u8]) -> bool {
    let start = signature.offset as usize;
    head.get(start..start + signature.bytes.len()) == Some(signature.bytes)
}
