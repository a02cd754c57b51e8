//! Ioctls: any number, any bytes, any order.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, ensure};
use peerfs_abi::ioctl::{self as abi, Ack, Context, Info, Map, Revoke, Unmap};
use peerfs_abi::{ABI_VERSION, names};
use peerfs_fs::control::ControlOpened;
use peerfs_fs::types::{Caller, Handle, Ino, OpenFlags};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Tally;
use super::stage::{Stage, caller};
use crate::Random;
use crate::torture::raw::fresh_context;

const KNOWN: [u32; 7] = [abi::INFO, abi::QUERY, abi::MAP, abi::UNMAP, abi::REVOKE, abi::CONTEXT, abi::ACK];
const NUMBERS: [u64; 14] =
    [0, 1, 511, 4095, 4096, 4097, 2 << 20, (2 << 20) + 1, 5 << 20, 1 << 32, 1 << 44, 1 << 63, u64::MAX - 4095, u64::MAX];
const SESSIONS: usize = 3;
const REMEMBERED: usize = 64;

/// One life: sessions that open, are used in any order, and close.
pub(super) struct Fuzzer<'s> {
    pub(super) stage: &'s Stage,
    pub(super) random: Random,
    memory: File,
    session_ino: Ino,
    sessions: Vec<Handle>,
    /// Contexts, mappings and grants that answers named.
    contexts: Vec<u64>,
    mappings: Vec<u64>,
    pub(super) grants: Vec<u64>,
}

impl<'s> Fuzzer<'s> {
    pub(super) fn new(stage: &'s Stage, random: Random) -> Result<Fuzzer<'s>> {
        let find = |parent, name: &str| {
            stage.control.lookup(caller(), parent, name.as_bytes()).context("a virtual name")?.context("look-up")
        };
        let directory = find(1, names::CONTROL_DIR)?.ino;
        let session_ino = find(directory, names::SESSION)?.ino;
        let memory = File::open("/proc/self/mem")?;
        let (contexts, mappings, grants) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Fuzzer { stage, random, memory, session_ino, sessions: Vec::new(), contexts, mappings, grants })
    }

    /// One step: mostly a call, now and then a session comes or goes.
    pub(super) fn one(&mut self, tally: &mut Tally) -> Result<()> {
        if self.sessions.len() < SESSIONS && (self.sessions.is_empty() || self.random.one_in(20)) {
            return self.open();
        }
        if self.random.one_in(100) {
            let at = self.random.below(self.sessions.len() as u64) as usize;
            self.stage.control.release(self.sessions.swap_remove(at));
            return Ok(());
        }
        let command = *self.random.pick(&KNOWN);
        match self.random.below(8) {
            0 => self.noise(command, tally),
            1 => {
                let number = self.random.bits() as u32;
                self.noise(number, tally)
            }
            _ => self.nearly_right(command, tally),
        }
    }

    fn open(&mut self) -> Result<()> {
        let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
        if let ControlOpened::Plain(handle) = self.stage.control.open(caller(), self.session_ino, flags)? {
            self.sessions.push(handle);
        }
        Ok(())
    }

    /// Random bytes of any length, any room for the answer.
    fn noise(&mut self, command: u32, tally: &mut Tally) -> Result<()> {
        let right = (command >> 16 & 0x3FFF) as usize;
        let length = if self.random.one_in(2) { right } else { self.random.below(16_384) as usize };
        let mut bytes = vec![0; length];
        self.random.fill(&mut bytes);
        if length >= 4 && self.random.one_in(2) {
            bytes[..4].copy_from_slice(&ABI_VERSION.to_ne_bytes());
        }
        let room = if self.random.one_in(2) { right } else { self.random.below(16_384) as usize };
        self.send(command, &bytes, room, tally).map(drop)
    }

    fn nearly_right(&mut self, command: u32, tally: &mut Tally) -> Result<()> {
        let mut bytes = match command {
            abi::QUERY | abi::MAP => self.map().as_bytes().to_vec(),
            abi::CONTEXT => {
                let mut context: Context = fresh_context();
                context.mem_fd = *self.random.pick(&[self.memory.as_raw_fd(), self.memory.as_raw_fd(), -1, 0, i32::MAX]);
                context.as_bytes().to_vec()
            }
            abi::UNMAP => {
                let mut unmap = Unmap::new_zeroed();
                unmap.mapping_id = some(&mut self.random, &self.mappings);
                unmap.as_bytes().to_vec()
            }
            abi::ACK => {
                let mut ack = Ack::new_zeroed();
                ack.count = 1 + self.random.below(3) as u32;
                ack.grant_ids[0] = some(&mut self.random, &self.grants);
                ack.as_bytes().to_vec()
            }
            abi::REVOKE => {
                let mut revoke = Revoke::new_zeroed();
                (revoke.offset, revoke.length) = (*self.random.pick(&NUMBERS), *self.random.pick(&NUMBERS));
                revoke.flags = self.random.below(4) as u32;
                revoke.as_bytes().to_vec()
            }
            _ => Info::new_zeroed().as_bytes().to_vec(),
        };
        bytes[..4].copy_from_slice(&ABI_VERSION.to_ne_bytes());
        if self.random.one_in(2) {
            self.mutate(&mut bytes);
        }
        let room = bytes.len();
        let answer = self.send(command, &bytes, room, tally)?;
        self.remember(command, &answer);
        Ok(())
    }

    fn map(&mut self) -> Box<Map> {
        let mut map = Box::new(Map::new_zeroed());
        map.flags = self.random.below(4) as u32 & 2 | if self.random.one_in(8) { self.random.bits() as u32 } else { 0 };
        map.context_id = some(&mut self.random, &self.contexts);
        map.mapping_id = if self.random.one_in(4) { some(&mut self.random, &self.mappings) } else { 0 };
        (map.offset, map.length) = (*self.random.pick(&NUMBERS), *self.random.pick(&NUMBERS));
        map.file_fd = self.memory.as_raw_fd();
        map
    }

    fn mutate(&mut self, bytes: &mut [u8]) {
        // The head holds what is read; what follows is mostly output.
        let head = bytes.len().min(160) as u64;
        for _ in 0..=self.random.below(3) {
            let at = (self.random.below(head) & !3) as usize;
            let value = if self.random.one_in(2) { self.random.bits() } else { *self.random.pick(&NUMBERS) };
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&value.to_ne_bytes()[..end - at]);
        }
    }

    /// Any target, and now and then somebody else as the caller.
    fn send(&mut self, command: u32, bytes: &[u8], room: usize, tally: &mut Tally) -> Result<Vec<u8>> {
        let (file, handles) = &self.stage.file;
        let mut targets = vec![(*file, handles[0]), (*file, handles[1]), (1, 0), (self.session_ino, 0)];
        // Where a valid command belongs.
        let for_sessions = matches!(command, abi::CONTEXT | abi::UNMAP | abi::ACK);
        let likely = match self.sessions.is_empty() || !for_sessions {
            true => targets[0],
            false => (self.session_ino, *self.random.pick(&self.sessions)),
        };
        targets.extend(self.sessions.iter().map(|handle| (self.session_ino, *handle)));
        let (ino, handle) = if self.random.one_in(8) { *self.random.pick(&targets) } else { likely };
        let mut from = caller();
        if self.random.one_in(30) {
            from = Caller { uid: self.random.below(3) as u32, tid: *self.random.pick(&[0, 1, u32::MAX]), ..from };
        }
        let answer = self.stage.control.ioctl(from, ino, handle, command, bytes, room);
        let code = answer.as_ref().err().map_or(0, |error| error.code());
        ensure!(code != libc::EIO, "command {command:#x} answers EIO to {bytes:x?}");
        tally.count(code);
        Ok(answer.unwrap_or_default())
    }

    fn remember(&mut self, command: u32, answer: &[u8]) {
        match command {
            abi::CONTEXT => {
                if let Ok(context) = Context::read_from_bytes(answer) {
                    keep(&mut self.contexts, context.context_id);
                    keep(&mut self.grants, context.sequence_grant_id);
                }
            }
            abi::MAP => {
                if let Ok(map) = Map::read_from_bytes(answer) {
                    keep(&mut self.mappings, map.mapping_id);
                    let count = (map.segment_count as usize).min(map.segments.len());
                    map.segments[..count].iter().for_each(|segment| keep(&mut self.grants, segment.grant_id));
                }
            }
            _ => {}
        }
    }
}

impl Drop for Fuzzer<'_> {
    fn drop(&mut self) {
        self.sessions.drain(..).for_each(|handle| self.stage.control.release(handle));
    }
}

fn keep(list: &mut Vec<u64>, id: u64) {
    if list.len() == REMEMBERED {
        list.remove(0);
    }
    list.push(id);
}

/// Mostly an id that exists or existed.
pub(super) fn some(random: &mut Random, list: &[u64]) -> u64 {
    match list {
        [] => random.bits(),
        // The latest are the likeliest to live.
        list if random.one_in(2) => list[list.len() - 1],
        list if random.one_in(8) => random.bits() ^ list[0],
        list => *random.pick(list),
    }
}
