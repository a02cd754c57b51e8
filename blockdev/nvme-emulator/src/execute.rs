//! Fetching commands and choosing the next one to execute.

use std::time::Instant;

use peerfs_nvme_spec::register::Csts;
use peerfs_nvme_spec::{ADMIN_QUEUE, Command};
use zerocopy::FromBytes;

use crate::completion::{Ending, Late};
use crate::faults::Fault;
use crate::profile::Processing;
use crate::queues::Outstanding;
use crate::state::State;

/// What there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Something was done; there may be more.
    Done,
    /// Nothing before this moment; `None`: nothing at all.
    Nothing(Option<Instant>),
}

impl State {
    /// Takes the commands up to `tail` out of a submission ring.
    pub(crate) fn fetch(&mut self, queue: u16, tail: u32) {
        loop {
            let Some(submission) = self.queues.submission.get_mut(&queue) else { return };
            if submission.head == tail {
                return;
            }
            let address = submission.base + u64::from(submission.head) * size_of::<Command>() as u64;
            submission.head = (submission.head + 1) % submission.entries;
            let mut bytes = [0; size_of::<Command>()];
            if self.space.read(address, &mut bytes).is_none() {
                self.registers.csts |= Csts::FATAL;
                return;
            }
            let command = Command::read_from_bytes(&bytes).expect("64 bytes are a command");
            self.accept(queue, command);
        }
    }

    fn accept(&mut self, queue: u16, command: Command) {
        let admin = queue == ADMIN_QUEUE;
        let id = command.command_id.get();
        if self.queues.is_outstanding(queue, id) {
            self.violation(format!("command id {id} of queue {queue} is in use"));
        }
        let counts = if admin { &mut self.counts.admin } else { &mut self.counts.io };
        *counts.entry(command.opcode).or_default() += 1;
        let fault = self.faults.of(&command, admin);
        let delay = match fault {
            Some(Fault::Delay(delay) | Fault::Slow(delay)) => delay,
            _ => std::time::Duration::ZERO,
        };
        let translated = matches!(fault, Some(Fault::Slow(_))).then(|| self.translate(&command)).flatten();
        self.queues.outstanding.push(Outstanding { queue, command, fault, due: Instant::now() + delay, translated });
    }

    /// Executes one command, if there is one to execute.
    pub(crate) fn step(&mut self) -> Next {
        if !self.is_running() {
            return Next::Nothing(None);
        }
        let now = Instant::now();
        let outstanding = &self.queues.outstanding;
        let ready: Vec<usize> = (0..outstanding.len())
            .filter(|at| outstanding[*at].due <= now && self.queues.has_room(outstanding[*at].queue))
            .collect();
        if ready.is_empty() {
            return Next::Nothing(outstanding.iter().map(|command| command.due).filter(|due| *due > now).min());
        }
        let chosen = match self.profile.processing {
            Processing::Inline => ready[0],
            Processing::Thread => ready[self.random.below(ready.len() as u64) as usize],
        };
        let command = self.queues.outstanding.remove(chosen);
        self.process(&command);
        Next::Done
    }

    fn process(&mut self, command: &Outstanding) {
        let ending = match &command.fault {
            Some(Fault::Status(status)) => Ending::failure(*status),
            Some(Fault::Fatal) => return self.registers.csts |= Csts::FATAL,
            Some(Fault::Disable) => return self.stop(),
            Some(Fault::PowerCut) => return self.cut_power(),
            Some(Fault::Remove) => return self.gone = true,
            Some(Fault::Late) => return self.late.push(Late::new(command)),
            _ if command.queue == ADMIN_QUEUE => self.execute_admin(command),
            _ => self.execute_io(command),
        };
        let ending = match command.fault {
            Some(Fault::Result(result)) => Ending { result, ..ending },
            _ => ending,
        };
        self.complete(command, ending);
    }

    /// Power fails and comes back.
    pub(crate) fn cut_power(&mut self) {
        self.media.cut_power(&mut self.random);
        self.reset_function();
    }
}
