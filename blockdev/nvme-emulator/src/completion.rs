//! Completions, right and wrong.

use peerfs_nvme_spec::{Completion, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use crate::faults::Fault;
use crate::queues::Outstanding;
use crate::state::State;

/// How a command ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    pub(crate) status: Status,
    pub(crate) result: u32,
}

/// A completion that comes in the next life of the controller.
#[derive(Debug)]
pub(crate) struct Late {
    queue: u16,
    command_id: u16,
    after_reset: bool,
}

impl Ending {
    pub(crate) fn success() -> Self {
        Ending { status: Status::SUCCESS, result: 0 }
    }

    pub(crate) fn failure(status: Status) -> Self {
        Ending { status, result: 0 }
    }
}

impl Late {
    pub(crate) fn new(command: &Outstanding) -> Self {
        Late { queue: command.queue, command_id: command.command.command_id.get(), after_reset: false }
    }

    pub(crate) fn reset(&mut self) {
        self.after_reset = true;
    }
}

impl State {
    /// Completes a command as its fault wants it.
    pub(crate) fn complete(&mut self, command: &Outstanding, ending: Ending) {
        let id = command.command.command_id.get();
        let fault = command.fault.as_ref();
        self.post_late(command.queue);
        match fault {
            Some(Fault::Lose) => {}
            Some(Fault::OtherId(bits)) => self.post(command.queue, command.queue, id ^ bits, ending, fault),
            Some(Fault::OtherQueue(other)) => self.post(command.queue, *other, id, ending, fault),
            Some(Fault::Twice) => {
                self.post(command.queue, command.queue, id, ending, fault);
                self.post(command.queue, command.queue, id, ending, fault);
            }
            _ => self.post(command.queue, command.queue, id, ending, fault),
        }
    }

    fn post_late(&mut self, queue: u16) {
        let Some(at) = self.late.iter().position(|late| late.after_reset && late.queue == queue) else { return };
        let late = self.late.remove(at);
        self.post(queue, queue, late.command_id, Ending::success(), None);
    }

    /// Writes an entry for a command of `queue`, and raises the interrupt.
    fn post(&mut self, queue: u16, said_queue: u16, id: u16, ending: Ending, fault: Option<&Fault>) {
        let Some(submission) = self.queues.submission.get(&queue) else { return };
        let (head, number) = (submission.head, submission.completions);
        let Some(completions) = self.queues.completion.get_mut(&number) else { return };
        if completions.is_full() {
            return;
        }
        let phase = completions.phase != (fault == Some(&Fault::OldPhase));
        let entry = Completion {
            result: U32::new(ending.result),
            reserved: U32::ZERO,
            submission_head: U16::new(head as u16),
            submission_queue: U16::new(said_queue),
            command_id: U16::new(id),
            status_and_phase: U16::new(ending.status.0 << 1 | u16::from(phase)),
        };
        let (address, vector) =
            (completions.base + u64::from(completions.tail) * size_of::<Completion>() as u64, completions.vector);
        completions.tail = (completions.tail + 1) % completions.entries;
        completions.phase ^= completions.tail == 0;
        let bytes = entry.as_bytes();
        let last = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        // The host takes the entry as soon as it sees the phase tag.
        let written = self.space.write(address, &bytes[..12]).and_then(|()| self.space.store(address + 12, last));
        let quiet = self.profile.mute || fault == Some(&Fault::Quiet);
        let interrupt = vector.and_then(|vector| self.interrupts.get(usize::from(vector)));
        if let (Some(()), Some(interrupt), false) = (written, interrupt, quiet) {
            interrupt.notify().expect("an eventfd can be written");
        }
    }
}
