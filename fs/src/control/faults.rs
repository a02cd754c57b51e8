//! Faults on command: a mount whose storage device resets, goes away or fails when its owner says so, so that
//! programs can be tried against what real devices do once in years.

use std::sync::{Mutex, PoisonError};

use std::sync::Arc;

use peerfs_blockdev::{BlockDevice, DeviceEvent, Effect, FaultDevice, FaultRule, OpKind, Trigger, parse_size};
use peerfs_p2p::{Engine, ExportId};

use crate::error::{FsError, Result};

/// Most bytes of one write.
const COMMANDS_BYTES_MAX: usize = 4096;
/// Most rules in force.
const RULES_MAX: usize = 256;

/// The storage device of a mount with `-o faults`.
pub struct Faults {
    device: FaultDevice,
    engine: Arc<Engine>,
    /// Commands since the last `recover`, oldest first.
    in_force: Mutex<Vec<Command>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// The device reports a reset: mappings end, and none are made.
    Reset,
    /// The device reports that it is gone. Blocks can still be read and written, so that the volume can be unmounted.
    Removed,
    /// These bytes of the device can neither be read nor written, and the device reports it.
    MediaError { offset: u64, length: u64 },
    /// Writes of these bytes fail; nothing is reported.
    WriteError { offset: u64, length: u64 },
    /// All is well again.
    Recover,
}

impl Faults {
    /// Makes `device` fail, whose mappings `engine` keeps.
    pub fn new(device: FaultDevice, engine: Arc<Engine>) -> Self {
        Faults { device, engine, in_force: Mutex::default() }
    }

    /// Carries out commands, one in each line: all of them, or, when one is wrong, none.
    ///
    /// # Errors
    /// EINVAL: a command is not known, its range is empty or leaves the device, or there are too many.
    pub fn run(&self, text: &[u8]) -> Result<()> {
        let invalid = || FsError::errno(libc::EINVAL);
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= COMMANDS_BYTES_MAX).ok_or_else(invalid)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let commands = lines.map(|line| self.parse(line)).collect::<Option<Vec<_>>>().ok_or_else(invalid)?;
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        if commands.is_empty() || in_force.len() + commands.len() > RULES_MAX {
            return Err(invalid());
        }
        for command in commands {
            self.carry_out(command);
            match command {
                Command::Recover => in_force.clear(),
                other => in_force.push(other),
            }
        }
        Ok(())
    }

    /// The commands since the last `recover`, one in each line.
    pub fn text(&self) -> Vec<u8> {
        let in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        in_force.iter().map(|command| format!("{command}\n")).collect::<String>().into_bytes()
    }

    fn parse(&self, line: &str) -> Option<Command> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let numbers = words.map(|word| parse_size(word).ok()).collect::<Option<Vec<_>>>()?;
        match (name, numbers.as_slice()) {
            ("reset", []) => Some(Command::Reset),
            ("removed", []) => Some(Command::Removed),
            ("recover", []) => Some(Command::Recover),
            ("media-error", &[offset, length]) if self.is_inside(offset, length) => Some(Command::MediaError { offset, length }),
            ("write-error", &[offset, length]) if self.is_inside(offset, length) => Some(Command::WriteError { offset, length }),
            _ => None,
        }
    }

    fn is_inside(&self, offset: u64, length: u64) -> bool {
        length > 0 && offset.checked_add(length).is_some_and(|end| end <= self.device.info().size_bytes)
    }

    /// Returns at once; what the device reports takes its effect as it would from any device.
    fn carry_out(&self, command: Command) {
        tracing::warn!("fault on command: {command}");
        let fail = |kind, offset, length| {
            self.device.add_rule(FaultRule {
                kind,
                trigger: Trigger::Range { offset, length },
                effect: Effect::Error(libc::EIO),
            });
        };
        match command {
            Command::Reset => self.device.emit(DeviceEvent::Reset),
            Command::Removed => self.device.emit(DeviceEvent::Removed),
            Command::WriteError { offset, length } => fail(OpKind::Write, offset, length),
            Command::MediaError { offset, length } => {
                fail(OpKind::Read, offset, length);
                fail(OpKind::Write, offset, length);
                self.device.emit(DeviceEvent::MediaError { offset, length });
            }
            Command::Recover => {
                self.device.clear_rules();
                self.engine.clear_device_events(ExportId::Files);
            }
        }
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Command::Reset => f.write_str("reset"),
            Command::Removed => f.write_str("removed"),
            Command::MediaError { offset, length } => write!(f, "media-error {offset} {length}"),
            Command::WriteError { offset, length } => write!(f, "write-error {offset} {length}"),
            Command::Recover => f.write_str("recover"),
        }
    }
}
