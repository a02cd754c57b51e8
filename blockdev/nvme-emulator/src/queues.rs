//! Submission and completion queues as the controller sees them.

use std::collections::BTreeMap;
use std::time::Instant;

use peerfs_nvme_spec::Command;

use crate::faults::Fault;
use crate::memory::Place;

/// A ring of commands.
#[derive(Debug)]
pub(crate) struct SubmissionQueue {
    pub(crate) base: u64,
    pub(crate) entries: u32,
    /// Next entry to fetch.
    pub(crate) head: u32,
    /// The queue for its completions.
    pub(crate) completions: u16,
}

/// A ring of completions.
#[derive(Debug)]
pub(crate) struct CompletionQueue {
    pub(crate) base: u64,
    pub(crate) entries: u32,
    /// Next entry to write.
    pub(crate) tail: u32,
    /// Phase tag of the present pass.
    pub(crate) phase: bool,
    /// How far the host has read.
    pub(crate) head: u32,
    /// The interrupt to raise.
    pub(crate) vector: Option<u16>,
}

/// A command that was fetched and is not complete.
#[derive(Debug)]
pub(crate) struct Outstanding {
    pub(crate) queue: u16,
    pub(crate) command: Command,
    pub(crate) fault: Option<Fault>,
    /// Not processed before.
    pub(crate) due: Instant,
    /// Where its data goes, if that is settled: memory and length in bytes of each piece.
    pub(crate) translated: Option<Vec<(Place, u64)>>,
}

/// Everything that a reset forgets.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) submission: BTreeMap<u16, SubmissionQueue>,
    pub(crate) completion: BTreeMap<u16, CompletionQueue>,
    pub(crate) outstanding: Vec<Outstanding>,
}

impl SubmissionQueue {
    pub(crate) fn new(base: u64, entries: u32, completions: u16) -> Self {
        SubmissionQueue { base, entries, head: 0, completions }
    }
}

impl CompletionQueue {
    pub(crate) fn new(base: u64, entries: u32, vector: Option<u16>) -> Self {
        CompletionQueue { base, entries, tail: 0, phase: true, head: 0, vector }
    }

    pub(crate) fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }
}

impl Queues {
    /// There is room for a completion of this submission queue.
    pub(crate) fn has_room(&self, queue: u16) -> bool {
        let completions = self.submission.get(&queue).and_then(|submission| self.completion.get(&submission.completions));
        completions.is_some_and(|completions| !completions.is_full())
    }

    pub(crate) fn is_outstanding(&self, queue: u16, command_id: u16) -> bool {
        self.outstanding.iter().any(|other| other.queue == queue && other.command.command_id.get() == command_id)
    }
}
