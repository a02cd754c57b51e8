//! Commands that go wrong on command.

use std::ops::Range;
use std::time::Duration;

use peerfs_nvme_spec::{AdminOpcode, Command, IoOpcode, Status};

/// What happens to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is not executed and ends with this.
    Status(Status),
    /// It is executed, and its completion never comes.
    Lose,
    /// It is not executed, and its completion comes after the next reset, with the next command of its queue.
    Late,
    /// It is completed twice.
    Twice,
    /// Its completion has this in place of its id, by exclusive or.
    OtherId(u16),
    /// Its completion names this submission queue.
    OtherQueue(u16),
    /// Its completion has the phase tag of the last pass.
    OldPhase,
    /// It takes so much longer.
    Delay(Duration),
    /// It takes so much longer, after its addresses were translated: its transfer lands even if they are unmapped meanwhile.
    Slow(Duration),
    /// It is completed without an interrupt.
    Quiet,
    /// Its list of pages cannot be read.
    ListFault,
    /// The controller fails for good before it: CSTS.CFS.
    Fatal,
    /// Somebody else clears CC.EN before it.
    Disable,
    /// Power fails before it, and comes back: what was not flushed may be lost.
    PowerCut,
    /// The controller is pulled out before it.
    Remove,
    /// It is executed, and the command specific part of its completion is this.
    Result(u32),
    /// An Identify command succeeds with this.
    Answer(Answer),
}

/// What an Identify command answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The same byte all over.
    Filled(u8),
    /// Noise of this seed.
    Noise(u64),
    /// Only so many bytes arrive.
    Short(u16),
    /// The right page, but for these (byte offset, value).
    Patched(Vec<(u16, u8)>),
}

/// Which commands a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// Every admin command.
    AnyAdmin,
    /// Admin commands of this kind.
    Admin(AdminOpcode),
    /// Every I/O command.
    AnyIo,
    /// I/O commands of this kind.
    Io(IoOpcode),
    /// Reads, writes and write zeroes that touch these logical blocks.
    Blocks(Range<u64>),
}

/// A fault, and when it happens.
#[derive(Debug, Clone)]
pub struct FaultRule {
    which: Which,
    fault: Fault,
    skip: u64,
    times: u64,
}

impl FaultRule {
    /// To the first of these commands.
    pub fn once(which: Which, fault: Fault) -> Self {
        FaultRule { which, fault, skip: 0, times: 1 }
    }

    /// To all of these commands.
    pub fn always(which: Which, fault: Fault) -> Self {
        FaultRule { which, fault, skip: 0, times: u64::MAX }
    }

    /// Only after so many of these commands.
    #[must_use]
    pub fn after(self, skip: u64) -> Self {
        FaultRule { skip, ..self }
    }

    /// To so many of these commands.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        FaultRule { times, ..self }
    }

    fn matches(&self, command: &Command, admin: bool) -> bool {
        let opcode = command.opcode;
        match &self.which {
            Which::AnyAdmin => admin,
            Which::Admin(wanted) => admin && opcode == *wanted as u8,
            Which::AnyIo => !admin,
            Which::Io(wanted) => !admin && opcode == *wanted as u8,
            Which::Blocks(blocks) => {
                let (start, count) = command.range();
                let moves = [IoOpcode::Read, IoOpcode::Write, IoOpcode::WriteZeroes].iter().any(|known| opcode == *known as u8);
                !admin && moves && start < blocks.end && start.saturating_add(count.into()) > blocks.start
            }
        }
    }
}

/// What goes wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub(crate) Vec<FaultRule>);

impl Faults {
    /// What happens to this command, by the first rule that is about it.
    pub(crate) fn of(&mut self, command: &Command, admin: bool) -> Option<Fault> {
        for rule in &mut self.0 {
            if rule.times == 0 || !rule.matches(command, admin) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times -= 1;
            return Some(rule.fault.clone());
        }
        None
    }
}
