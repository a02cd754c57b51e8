//! Physical Region Pages (section 4.3): where the data of a command is.

use peerfs_nvme_spec::{Command, PAGE_BYTES, Status};

use crate::state::State;

/// Generic: an entry has an offset that its place does not allow.
const PRP_OFFSET_INVALID: Status = Status(0x13);

/// Data Transfer Error, do not retry: what a list that cannot be read gives.
pub(crate) const LIST_UNREADABLE: Status = Status(0x4004);

impl State {
    /// Pieces of memory, (address, length) each, for `length` bytes.
    pub(crate) fn pieces(&mut self, command: &Command, length: u64) -> Result<Vec<(u64, u64)>, Status> {
        let (first, second) = (command.prp1.get(), command.prp2.get());
        let first_length = length.min(PAGE_BYTES - first % PAGE_BYTES);
        let mut pieces = vec![(first, first_length)];
        let rest = length - first_length;
        if rest > PAGE_BYTES {
            self.walk_list(second, rest, &mut pieces)?;
        } else if rest > 0 {
            push_page(&mut pieces, second, rest)?;
        }
        Ok(pieces)
    }

    fn walk_list(&mut self, mut list: u64, mut rest: u64, pieces: &mut Vec<(u64, u64)>) -> Result<(), Status> {
        if !list.is_multiple_of(8) {
            return Err(PRP_OFFSET_INVALID);
        }
        while rest > 0 {
            let mut entry = [0; 8];
            self.dma_read(list, &mut entry).ok_or(LIST_UNREADABLE)?;
            let entry = u64::from_le_bytes(entry);
            // The last entry of a page leads to the next one, if more than it can name is left.
            if list % PAGE_BYTES == PAGE_BYTES - 8 && rest > PAGE_BYTES {
                if !entry.is_multiple_of(PAGE_BYTES) {
                    return Err(PRP_OFFSET_INVALID);
                }
                list = entry;
                continue;
            }
            push_page(pieces, entry, rest.min(PAGE_BYTES))?;
            rest -= rest.min(PAGE_BYTES);
            list += 8;
        }
        Ok(())
    }
}

fn push_page(pieces: &mut Vec<(u64, u64)>, page: u64, length: u64) -> Result<(), Status> {
    if !page.is_multiple_of(PAGE_BYTES) {
        return Err(PRP_OFFSET_INVALID);
    }
    pieces.push((page, length));
    Ok(())
}
