//! Submission queue entries (section 4.2) and what they say.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::ALL_NAMESPACES;

/// A submission queue entry (figure 104), with PRPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Command {
    /// Opcode.
    pub opcode: u8,
    /// Fused operation and PRP or SGL; 0 for a single command with PRPs.
    pub flags: u8,
    /// Command id, unique in its queue while the command is outstanding.
    pub command_id: U16,
    /// Namespace.
    pub namespace: U32,
    /// Reserved (dwords 2 and 3).
    pub reserved: U64,
    /// Metadata pointer.
    pub metadata: U64,
    /// Physical Region Page entry 1: the first page of the data.
    pub prp1: U64,
    /// Entry 2: the second page, or a list of all but the first.
    pub prp2: U64,
    /// Dwords 10 to 15, by opcode.
    pub arguments: [U32; 6],
}

const _: () = assert!(size_of::<Command>() == 64);

/// Opcodes of admin commands (section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AdminOpcode {
    /// Delete I/O Submission Queue (5.6).
    DeleteSubmissionQueue = 0x00,
    /// Create I/O Submission Queue (5.4).
    CreateSubmissionQueue = 0x01,
    /// Delete I/O Completion Queue (5.5).
    DeleteCompletionQueue = 0x04,
    /// Create I/O Completion Queue (5.3).
    CreateCompletionQueue = 0x05,
    /// Identify (5.15).
    Identify = 0x06,
    /// Set Features (5.21).
    SetFeatures = 0x09,
}

/// Opcodes of the NVM command set (section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum IoOpcode {
    /// Flush (6.8).
    Flush = 0x00,
    /// Write (6.15).
    Write = 0x01,
    /// Read (6.9).
    Read = 0x02,
    /// Write Zeroes (6.16).
    WriteZeroes = 0x08,
    /// Dataset Management (6.7).
    DatasetManagement = 0x09,
}

/// Features (section 5.21.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Feature {
    /// Number of Queues (5.21.1.7).
    Queues = 0x07,
}

/// What an Identify command asks for (CNS, figure 244).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum IdentifyPage {
    /// A namespace.
    Namespace = 0x00,
    /// The controller.
    Controller = 0x01,
}

/// One range of a Dataset Management command (figure 364).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DatasetRange {
    /// Context attributes, hints only.
    pub attributes: U32,
    /// Logical blocks.
    pub blocks: U32,
    /// First logical block.
    pub start: U64,
}

const _: () = assert!(size_of::<DatasetRange>() == 16);

/// Ranges in one Dataset Management command (6.7).
pub const MAX_DATASET_RANGES: usize = 256;

impl Command {
    fn new(opcode: u8, namespace: u32, arguments: [u32; 6]) -> Self {
        Command {
            opcode,
            flags: 0,
            command_id: U16::ZERO,
            namespace: U32::new(namespace),
            reserved: U64::ZERO,
            metadata: U64::ZERO,
            prp1: U64::ZERO,
            prp2: U64::ZERO,
            arguments: arguments.map(U32::new),
        }
    }

    /// The same command about the data that these entries describe.
    #[must_use]
    pub fn with_data(self, prp1: u64, prp2: u64) -> Self {
        Command { prp1: U64::new(prp1), prp2: U64::new(prp2), ..self }
    }

    /// The same command under this id.
    #[must_use]
    pub fn with_id(self, command_id: u16) -> Self {
        Command { command_id: U16::new(command_id), ..self }
    }

    /// Identify (5.15); the data is one page.
    pub fn identify(page: IdentifyPage, namespace: u32) -> Self {
        Command::new(AdminOpcode::Identify as u8, namespace, [page as u32, 0, 0, 0, 0, 0])
    }

    /// Asks for this many I/O submission and completion queues, at least 1 (5.21.1.7). The result has what is granted.
    pub fn request_queues(count: u16) -> Self {
        let wanted = u32::from(count.max(1) - 1);
        Command::new(AdminOpcode::SetFeatures as u8, 0, [Feature::Queues as u32, wanted << 16 | wanted, 0, 0, 0, 0])
    }

    /// Create I/O Completion Queue (5.3), physically contiguous at `prp1`; `vector` for interrupts, if wanted.
    pub fn create_completion_queue(queue: u16, entries: u16, vector: Option<u16>) -> Self {
        let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | 1 << 1);
        Command::new(AdminOpcode::CreateCompletionQueue as u8, 0, [size_and_id(queue, entries), interrupts | 1, 0, 0, 0, 0])
    }

    /// Create I/O Submission Queue (5.4), physically contiguous at `prp1`, completed to the queue of the same id.
    pub fn create_submission_queue(queue: u16, entries: u16) -> Self {
        let attributes = u32::from(queue) << 16 | 1;
        Command::new(AdminOpcode::CreateSubmissionQueue as u8, 0, [size_and_id(queue, entries), attributes, 0, 0, 0, 0])
    }

    /// Delete I/O Submission Queue (5.6): its commands are complete, or aborted, when this is.
    pub fn delete_submission_queue(queue: u16) -> Self {
        Command::new(AdminOpcode::DeleteSubmissionQueue as u8, 0, [queue.into(), 0, 0, 0, 0, 0])
    }

    /// Delete I/O Completion Queue (5.5), after its submission queues.
    pub fn delete_completion_queue(queue: u16) -> Self {
        Command::new(AdminOpcode::DeleteCompletionQueue as u8, 0, [queue.into(), 0, 0, 0, 0, 0])
    }

    /// Flush of one namespace, or of all (6.8).
    pub fn flush(namespace: Option<u32>) -> Self {
        Command::new(IoOpcode::Flush as u8, namespace.unwrap_or(ALL_NAMESPACES), [0; 6])
    }

    /// Read, Write or Write Zeroes (6.9, 6.15, 6.16) of `blocks` logical blocks, 1 to 65536, from `start` on.
    pub fn transfer(opcode: IoOpcode, namespace: u32, start: u64, blocks: u32) -> Self {
        let count = (blocks.max(1) - 1) & 0xFFFF;
        Command::new(opcode as u8, namespace, [start as u32, (start >> 32) as u32, count, 0, 0, 0])
    }

    /// Dataset Management, deallocate (6.7): the data is `ranges` entries of [`DatasetRange`], 1 to 256.
    pub fn deallocate(namespace: u32, ranges: u16) -> Self {
        Command::new(IoOpcode::DatasetManagement as u8, namespace, [u32::from(ranges.max(1) - 1), 1 << 2, 0, 0, 0, 0])
    }

    /// First logical block and number of blocks of a [`Command::transfer`].
    pub fn range(&self) -> (u64, u32) {
        let start = u64::from(self.arguments[0].get()) | u64::from(self.arguments[1].get()) << 32;
        (start, (self.arguments[2].get() & 0xFFFF) + 1)
    }
}

/// Dword 10 of the commands that create queues; QSIZE counts from 0.
fn size_and_id(queue: u16, entries: u16) -> u32 {
    u32::from(entries.max(1) - 1) << 16 | u32::from(queue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn a_read_on_the_wire() {
        let command = Command::transfer(IoOpcode::Read, 1, 0x1_0000_0002, 8).with_data(0x1000, 0x2000).with_id(0x0304);
        let wire = command.as_bytes();
        assert_eq!(&wire[..8], &[2, 0, 4, 3, 1, 0, 0, 0]);
        assert_eq!(&wire[24..40], &[0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&wire[40..52], &[2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(command.range(), (0x1_0000_0002, 8));
        assert_eq!(Command::transfer(IoOpcode::Write, 1, 0, 65536).range(), (0, 65536));
    }

    #[test]
    fn queues() {
        let completion = Command::create_completion_queue(2, 64, Some(3));
        assert_eq!(completion.arguments[0].get(), 63 << 16 | 2);
        assert_eq!(completion.arguments[1].get(), 3 << 16 | 0b11);
        assert_eq!(Command::create_completion_queue(2, 64, None).arguments[1].get(), 1);
        let submission = Command::create_submission_queue(2, 64);
        assert_eq!(submission.arguments[1].get(), 2 << 16 | 1);
        assert_eq!(Command::request_queues(4).arguments[1].get(), 3 << 16 | 3);
        assert_eq!(Command::flush(None).namespace.get(), u32::MAX);
        assert_eq!(Command::deallocate(1, 256).arguments[0].get(), 255);
    }
}
