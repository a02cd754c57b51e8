//! The child that sends garbage to ioctls.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use peerfs_abi::devmem::{self, DeviceMemory};
use peerfs_abi::ioctl::{self as abi, Ack, Info, Map, Reflink, Revoke, Unmap};
use peerfs_abi::{ABI_VERSION, MapFlags, names};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Random;
use crate::torture::raw::{RawSession, fresh_context, open_direct, request};
use crate::torture::worker::{die_with_parent, say};

const INTERESTING: &[u64] = &[
    0,
    1,
    7,
    511,
    4095,
    4096,
    4097,
    1 << 21,
    (1 << 21) + 1,
    3 << 20,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    u32::MAX as u64,
    1 << 44,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 4096,
    u64::MAX - 1,
    u64::MAX,
];

/// Counts what the server answers.
struct Fuzzer {
    random: Random,
    answers: BTreeMap<i32, u64>,
}

/// Sends `count` ioctls to every kind of file.
///
/// # Errors
/// When the files cannot be opened, or an answer is EIO, which is for failing devices and caught panics.
pub fn fuzz(path: &Path, seed: u64, count: u64) -> Result<()> {
    die_with_parent()?;
    let directory = path.parent().context("a file is in a directory")?;
    let control = directory.join(names::CONTROL_DIR);
    let session = RawSession::open(directory)?;
    let read_write = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let targets = [
        ("file", File::open(path)?),
        ("writable file", read_write(path)?),
        ("direct file", open_direct(path, true)?),
        ("directory", File::open(directory)?),
        ("control directory", File::open(&control)?),
        ("info.json", File::open(control.join(names::INFO_JSON))?),
        ("unbound session", read_write(&control.join(names::SESSION))?),
        ("bound session", session.session.try_clone()?),
    ];
    let mut fuzzer = Fuzzer { random: Random::new(seed), answers: BTreeMap::new() };
    for _ in 0..count {
        let (name, target) = fuzzer.random.pick(&targets);
        fuzzer.one(target, &session).with_context(|| format!("on the {name}"))?;
    }
    let answers: Vec<String> = fuzzer.answers.iter().map(|(code, times)| format!("{}: {times}", answer_name(*code))).collect();
    say(format!("done {count} calls, {}", answers.join(", ")))
}

fn answer_name(code: i32) -> String {
    if code == 0 { "success".to_owned() } else { format!("{:?}", nix::errno::Errno::from_raw(code)) }
}

impl Fuzzer {
    fn one(&mut self, target: &File, session: &RawSession) -> Result<()> {
        let known = [
            abi::INFO,
            abi::QUERY,
            abi::MAP,
            abi::UNMAP,
            abi::REVOKE,
            abi::CONTEXT,
            abi::ACK,
            abi::REFLINK,
            devmem::DEVICE_MEMORY,
        ];
        let command = *self.random.pick(&known);
        match self.random.below(8) {
            0 => self.noise(target, command),
            1 => self.wrong_size(target, command),
            _ => self.nearly_right(target, command, session),
        }
    }

    /// A valid argument with some fields replaced.
    fn nearly_right(&mut self, target: &File, command: u32, session: &RawSession) -> Result<()> {
        match command {
            abi::QUERY | abi::MAP => {
                let offset = *self.random.pick(INTERESTING);
                let mut map = request(target, offset, *self.random.pick(INTERESTING), MapFlags::empty());
                map.flags = self.random.below(16) as u32;
                map.context_id = if self.random.one_in(4) { self.random.bits() } else { session.context.context_id };
                self.send_changed(target, command, &mut *map)
            }
            abi::CONTEXT => {
                let memory = File::open("/proc/self/mem")?;
                let mut context = fresh_context();
                context.mem_fd = *self.random.pick(&[-1, 0, 1, memory.as_raw_fd(), target.as_raw_fd(), i32::MAX, i32::MIN]);
                self.send_changed(target, command, &mut context)
            }
            abi::REVOKE => self.versioned::<Revoke>(target, command),
            abi::UNMAP => self.versioned::<Unmap>(target, command),
            abi::ACK => self.versioned::<Ack>(target, command),
            abi::REFLINK => self.versioned::<Reflink>(target, command),
            devmem::DEVICE_MEMORY => self.versioned::<DeviceMemory>(target, command),
            _ => self.versioned::<Info>(target, command),
        }
    }

    /// All of these begin with the version.
    fn versioned<T: FromBytes + IntoBytes + Immutable + KnownLayout>(&mut self, target: &File, command: u32) -> Result<()> {
        let mut argument = T::new_zeroed();
        argument.as_mut_bytes()[..4].copy_from_slice(&ABI_VERSION.to_ne_bytes());
        self.send_changed(target, command, &mut argument)
    }

    fn send_changed<T: FromBytes + IntoBytes>(&mut self, target: &File, command: u32, argument: &mut T) -> Result<()> {
        let bytes = argument.as_mut_bytes();
        // The head holds what is read; what follows is mostly output.
        let head = bytes.len().min(128) as u64;
        for _ in 0..self.random.below(3) {
            let at = (self.random.below(head) & !7) as usize;
            let width = if self.random.one_in(2) { 8 } else { 4 };
            let value = if self.random.one_in(3) { self.random.bits() } else { *self.random.pick(INTERESTING) };
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&value.to_ne_bytes()[..end - at]);
        }
        self.send(target, command, argument)
    }

    /// The right number and size, random bytes.
    fn noise(&mut self, target: &File, command: u32) -> Result<()> {
        match command {
            abi::QUERY | abi::MAP => self.random_bytes::<{ size_of::<Map>() }>(target, command),
            abi::UNMAP => self.random_bytes::<{ size_of::<Unmap>() }>(target, command),
            abi::REVOKE => self.random_bytes::<{ size_of::<Revoke>() }>(target, command),
            abi::CONTEXT => self.random_bytes::<{ size_of::<abi::Context>() }>(target, command),
            abi::ACK => self.random_bytes::<{ size_of::<Ack>() }>(target, command),
            abi::REFLINK => self.random_bytes::<{ size_of::<Reflink>() }>(target, command),
            devmem::DEVICE_MEMORY => self.random_bytes::<{ size_of::<DeviceMemory>() }>(target, command),
            _ => self.random_bytes::<{ size_of::<Info>() }>(target, command),
        }
    }

    /// A size that is not the command's, any number, any direction.
    fn wrong_size(&mut self, target: &File, command: u32) -> Result<()> {
        let number = if self.random.one_in(3) { self.random.below(256) as u32 } else { command & 0xFF };
        let number = number | (abi::IOCTL_TYPE as u32) << 8 | (self.random.below(4) as u32) << 30;
        match self.random.below(8) {
            0 => self.random_bytes::<0>(target, number),
            1 => self.random_bytes::<1>(target, number | 1 << 16),
            2 => self.random_bytes::<4>(target, number | 4 << 16),
            3 => self.random_bytes::<15>(target, number | 15 << 16),
            4 => self.random_bytes::<97>(target, number | 97 << 16),
            5 => self.random_bytes::<199>(target, number | 199 << 16),
            6 => self.random_bytes::<4096>(target, number | 4096 << 16),
            _ => self.random_bytes::<16383>(target, number | 16383 << 16),
        }
    }

    fn random_bytes<const N: usize>(&mut self, target: &File, command: u32) -> Result<()> {
        let mut argument = Box::new([0_u8; N]);
        self.random.fill(&mut argument[..]);
        if N >= 4 && self.random.one_in(2) {
            argument[..4].copy_from_slice(&ABI_VERSION.to_ne_bytes());
        }
        self.send(target, command, &mut *argument)
    }

    fn send<T: FromBytes + IntoBytes>(&mut self, target: &File, command: u32, argument: &mut T) -> Result<()> {
        let answer = peerfs_sys::ioctl(target, command, argument);
        let code = answer.err().map_or(0, |error: io::Error| error.raw_os_error().unwrap_or(-1));
        *self.answers.entry(code).or_default() += 1;
        ensure!(code != libc::EIO && code != libc::ENOTCONN && code != -1, "command {command:#x} answers {}", answer_name(code));
        Ok(())
    }
}
