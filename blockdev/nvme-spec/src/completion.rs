//! Completion queue entries (section 4.6).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Status;

/// Phase tag in [`Completion::status_and_phase`]: changes with every pass through the queue (4.6.1).
pub const PHASE: u16 = 1;

/// A completion queue entry (figure 123).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Completion {
    /// Command specific (dword 0).
    pub result: U32,
    /// Reserved (dword 1).
    pub reserved: U32,
    /// How far the controller has read the submission queue.
    pub submission_head: U16,
    /// Submission queue id.
    pub submission_queue: U16,
    /// Command id, as submitted.
    pub command_id: U16,
    /// Bit 0 is the phase tag, the rest the status field.
    pub status_and_phase: U16,
}

const _: () = assert!(size_of::<Completion>() == 16);

impl Completion {
    /// The phase tag.
    pub fn phase(&self) -> bool {
        self.status_and_phase.get() & PHASE != 0
    }

    /// The status field.
    pub fn status(&self) -> Status {
        Status(self.status_and_phase.get() >> 1)
    }
}
