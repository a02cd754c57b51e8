//! Physical Region Pages: how a command names its data (section 4.3).

use peerfs_nvme_spec::PAGE_BYTES;
use peerfs_sys::DmaMemory;

/// Longest transfer that one page of list entries can name, bytes.
pub(super) const MAX_BYTES: u64 = (PAGE_BYTES / 8) * PAGE_BYTES;

/// A page for list entries.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListPage<'a> {
    /// The memory it lies in.
    pub(super) memory: &'a DmaMemory,
    /// Byte offset in the memory.
    pub(super) offset: u64,
    /// Address for the controller.
    pub(super) address: u64,
}

/// PRP entries 1 and 2 for `length` bytes (at most [`MAX_BYTES`]) at `address`, which is aligned to 4096.
pub(super) fn entries(address: u64, length: u64, list: ListPage<'_>) -> (u64, u64) {
    match length.div_ceil(PAGE_BYTES) {
        0 | 1 => (address, 0),
        2 => (address, address + PAGE_BYTES),
        pages => {
            let rest: Vec<u8> = (1..pages).flat_map(|page| (address + page * PAGE_BYTES).to_le_bytes()).collect();
            list.memory.write(list.offset, &rest).expect("the list page is inside its memory");
            (address, list.address)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_two_and_many_pages() {
        let memory = DmaMemory::zeroed(8192).expect("memory");
        let list = ListPage { memory: &memory, offset: 4096, address: 0x9000 };
        assert_eq!(entries(0x10_0000, 4096, list), (0x10_0000, 0));
        assert_eq!(entries(0x10_0000, 8192, list), (0x10_0000, 0x10_1000));
        assert_eq!(entries(0x10_0000, MAX_BYTES, list), (0x10_0000, 0x9000));
        let mut last = [0; 16];
        memory.read(4096 + 510 * 8, &mut last).expect("read");
        assert_eq!(u64::from_le_bytes(last[..8].try_into().expect("8 bytes")), 0x10_0000 + 511 * 4096);
        assert_eq!(last[8..], [0; 8], "the list has one entry less than there are pages");
    }
}
