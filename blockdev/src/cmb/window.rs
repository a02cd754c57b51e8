//! One window: filling, serving, cutting and writing back.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::bounce::steps;
use crate::peer_gate::PeerGate;
use crate::placed::HasRuns;
use crate::tail::{Disowned, Tail};
use crate::{ApertureKind, BLOCK_BYTES, DeviceError, Io, IoBuf, Peer, PeerPart, Run, Ticket, Window, WindowContent, WindowSpec};

use super::Shared;
use super::memory::{Memory, Unmoved, window_error};

/// Writes to the device under way at one time while a window is copied.
const COPIES_IN_FLIGHT: usize = 4;

/// There is nothing left to try again with.
const LOST_STORES: &str = "the controller was reset, and what peers stored in its memory since the last flush is lost";

/// Whoever revokes a window can only log that stores are lost; so whoever flushes next hears of it as well.
const TELLS: u8 = 2;

/// The window itself; the index and the handle share it.
#[derive(Debug)]
pub(super) struct Core {
    id: u64,
    length: u64,
    runs: Vec<Run>,
    kind: ApertureKind,
    phase: RwLock<Phase>,
    /// The end of the file. Its lock also orders all writes by the CPU, so that window and device see them in the same
    /// sequence.
    order: Mutex<Tail>,
    /// The device may lack bytes that the window has: a peer may store, a write-through failed, or it is the blocks' home.
    must_copy: AtomicBool,
    /// The memory lost its content while `must_copy` was set: how many are still to be told, [`TELLS`] at first.
    lost_stores: AtomicU8,
    cut: AtomicBool,
    disowned: Disowned,
    is_dmabuf: bool,
}

#[derive(Debug)]
enum Phase {
    /// Not (or no longer) the authority for its blocks.
    Absent,
    /// The authoritative copy.
    Live(Memory),
    /// It was. The memory lost its content, and is not used again before peers' access has ended.
    Lost(Memory),
}

/// Keeps new users of the window waiting while it is filled.
pub(super) struct Filling<'a>(RwLockWriteGuard<'a, Phase>);

impl Core {
    pub(super) fn new(id: u64, spec: WindowSpec, kind: ApertureKind, is_dmabuf: bool) -> Self {
        Core {
            id,
            length: spec.length,
            runs: spec.runs,
            kind,
            phase: RwLock::new(Phase::Absent),
            order: Mutex::new(Tail::new(spec.valid_length)),
            must_copy: AtomicBool::new(kind == ApertureKind::Identity),
            lost_stores: AtomicU8::new(0),
            cut: AtomicBool::new(false),
            disowned: Disowned::default(),
            is_dmabuf,
        }
    }

    pub(super) fn begin_fill(&self) -> Filling<'_> {
        Filling(self.phase.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Copies the blocks in and makes the window the authority.
    pub(super) fn fill(
        &self,
        filling: &mut Filling<'_>,
        shared: &Shared,
        memory: Memory,
        valid_length: u64,
    ) -> Result<(), DeviceError> {
        let end = valid_length.next_multiple_of(BLOCK_BYTES);
        let mut tickets = Vec::new();
        for run in self.runs.iter().filter(|run| run.window_offset < end) {
            let length = run.length.min(end - run.window_offset);
            let window = memory.slice(run.window_offset, length);
            tickets.push(shared.inner.submit(Io::FillWindow { offset: run.device_offset, window }));
        }
        for ticket in tickets {
            ticket.wait()?;
        }
        self.zero(&memory, valid_length..end.min(self.length))?;
        if memory.is_lost() {
            return Err(shared.refuse("the controller was reset while a window in its memory was filled"));
        }
        *filling.0 = Phase::Live(memory);
        if self.kind == ApertureKind::Identity {
            self.give_up_home(shared);
        }
        Ok(())
    }

    /// The window is the home of its blocks now: the memory they had is not kept twice.
    fn give_up_home(&self, shared: &Shared) {
        for run in &self.runs {
            if let Err(error) = shared.inner.discard(run.device_offset, run.length) {
                tracing::warn!(window = self.id, %error, "the old memory of mapped blocks stays in use");
            }
        }
    }

    /// Runs `work` on the window's memory; `None` when the window is no longer the authority.
    fn with_memory<T>(&self, work: impl FnOnce(&Memory) -> T) -> Option<T> {
        match &*self.phase() {
            Phase::Live(memory) => Some(work(memory)),
            Phase::Lost(_) | Phase::Absent => None,
        }
    }

    /// Serves a read of the whole of `buf`. The buffer comes back as `Err` when the window is gone.
    pub(super) fn read(self: &Arc<Self>, shared: &Shared, offset: u64, buf: IoBuf) -> Result<Result<IoBuf, DeviceError>, IoBuf> {
        let phase = self.phase();
        let Phase::Live(memory) = &*phase else {
            return Err(buf);
        };
        let length = buf.len() as u64;
        match memory.read_buf(offset, buf) {
            Ok(buf) => Ok(Ok(buf)),
            Err(Unmoved::Failed(err)) => Ok(Err(window_error("read", offset, length, &err))),
            Err(Unmoved::Lost(buf)) => {
                drop(phase);
                self.give_up_lost(shared);
                Err(buf)
            }
        }
    }

    /// Writes the whole of `buf` through: to the window, then to the device at `device_offset` unless the window is the
    /// blocks' home.
    /// The buffer comes back as `Err` when the window is gone.
    pub(super) fn write(
        self: &Arc<Self>,
        shared: &Shared,
        offset: u64,
        device_offset: u64,
        buf: IoBuf,
    ) -> Result<Result<Option<IoBuf>, DeviceError>, IoBuf> {
        let mut tail = self.order();
        let phase = self.phase();
        let Phase::Live(memory) = &*phase else {
            return Err(buf);
        };
        let end = offset + buf.len() as u64;
        tail.note_write(offset..end);
        let done = match memory.write_buf(offset, buf) {
            Ok(buf) if self.kind == ApertureKind::Identity => Ok(Some(buf)),
            Ok(buf) => shared.inner.submit(Io::Write { offset: device_offset, buf }).wait(),
            Err(Unmoved::Failed(err)) => Err(window_error("write", offset, end - offset, &err)),
            Err(Unmoved::Lost(buf)) => {
                drop(phase);
                drop(tail);
                self.give_up_lost(shared);
                return Err(buf);
            }
        };
        if done.is_err() {
            self.must_copy.store(true, Ordering::Release);
        }
        Ok(done)
    }

    /// The memory lost its content: the device is the authority again, and has all but what peers stored.
    fn give_up_lost(self: &Arc<Self>, shared: &Shared) {
        let _in_order = self.order();
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        let memory = match &*phase {
            Phase::Live(memory) if memory.is_lost() => memory.clone(),
            _ => return,
        };
        if self.must_copy.swap(false, Ordering::AcqRel) {
            self.lost_stores.store(TELLS, Ordering::Release);
        }
        tracing::warn!(window = self.id, "the controller lost the content of its memory: the blocks are read from the device");
        *phase = Phase::Lost(memory);
        shared.index_mut().remove(self);
    }

    /// Ends the window's authority: later requests go to the device.
    fn retire(self: &Arc<Self>, mut phase: RwLockWriteGuard<'_, Phase>, shared: &Shared) {
        // The blocks of one that was lost may be in another window by now.
        let listed = matches!(&*phase, Phase::Live(_));
        if let Phase::Live(memory) | Phase::Lost(memory) = std::mem::replace(&mut *phase, Phase::Absent) {
            let mut index = shared.index_mut();
            if listed {
                index.remove(self);
            }
            index.release(shared.charge(self.length, &self.runs));
            drop(index);
            drop(phase);
            drop(memory);
        }
    }

    /// Copies to the device what it may lack.
    fn copy_missing(&self, shared: &Shared, tail: &Tail) -> Result<(), DeviceError> {
        match self.must_copy.load(Ordering::Acquire) {
            true => self.copy_out(shared, tail),
            false => Ok(()),
        }
    }

    /// Copies everything to the device, zeros for what a peer left beyond the end of the file.
    fn copy_out(&self, shared: &Shared, tail: &Tail) -> Result<(), DeviceError> {
        let Some(memory) = self.with_memory(Memory::clone) else {
            return Ok(());
        };
        let mut tickets: VecDeque<Ticket> = VecDeque::new();
        for (run, owned) in self.runs_to_copy() {
            for (at, length) in steps(run.length) {
                let offset = run.window_offset + at;
                let buf = shared.buffer(length as usize);
                let mut buf = memory.read_buf(offset, buf).map_err(|unmoved| match unmoved {
                    Unmoved::Failed(err) => window_error("read", offset, length, &err),
                    Unmoved::Lost(_) => shared.refuse(LOST_STORES),
                })?;
                if owned {
                    clear_leftovers(tail, offset, &mut buf);
                }
                if tickets.len() >= COPIES_IN_FLIGHT
                    && let Some(oldest) = tickets.pop_front()
                {
                    oldest.wait()?;
                }
                let offset = run.device_offset + at;
                tickets.push_back(shared.inner.submit(Io::Write { offset, buf }));
            }
        }
        tickets.into_iter().try_for_each(|ticket| ticket.wait().map(drop))
    }

    /// What the device is to get, and whether the owner's end of the file counts in it. Blocks that the owner gave up
    /// may be another file's too: where the window is their home, nobody else has them.
    fn runs_to_copy(&self) -> Vec<(Run, bool)> {
        let disowned = self.disowned.lock();
        let of_run = |run: &Run| {
            let whole = run.window_offset..run.window_offset + run.length;
            let owned = disowned.gaps(&whole).map(|part| (part, true));
            let mut parts: Vec<(Range<u64>, bool)> = owned.collect();
            if self.kind == ApertureKind::Identity {
                let given_up = disowned.overlapping(&whole);
                parts.extend(given_up.map(|part| (part.start.max(whole.start)..part.end.min(whole.end), false)));
            }
            let run = *run;
            parts.into_iter().map(move |(part, owned)| {
                let device_offset = run.device_offset + (part.start - run.window_offset);
                (Run { window_offset: part.start, device_offset, length: part.end - part.start }, owned)
            })
        };
        self.runs.iter().flat_map(of_run).collect()
    }

    fn zero(&self, memory: &Memory, range: std::ops::Range<u64>) -> Result<(), DeviceError> {
        let zeros = vec![0; range.end.saturating_sub(range.start).min(1 << 20) as usize];
        let mut at = range.start;
        while at < range.end {
            let length = (range.end - at).min(zeros.len() as u64);
            memory.write(at, &zeros[..length as usize]).map_err(|err| window_error("write", at, length, &err))?;
            at += length;
        }
        Ok(())
    }

    fn order(&self) -> MutexGuard<'_, Tail> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self) -> RwLockReadGuard<'_, Phase> {
        self.phase.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HasRuns for Core {
    fn runs(&self) -> &[Run] {
        &self.runs
    }
}

/// Zeros what a peer may have left behind the end of the file, in a copy of the window from `offset` on.
fn clear_leftovers(tail: &Tail, offset: u64, copy: &mut [u8]) {
    for left in tail.leftovers(offset..offset + copy.len() as u64) {
        copy[(left.start - offset) as usize..(left.end - offset) as usize].fill(0);
    }
}

/// The handle that the mapping layer holds.
#[derive(Debug)]
pub(super) struct CmbWindow {
    core: Arc<Core>,
    shared: Arc<Shared>,
    peers: PeerGate,
    /// The memory of a dma-buf that is no longer the authority.
    kept: Mutex<Option<Memory>>,
}

impl CmbWindow {
    pub(super) fn new(core: Arc<Core>, shared: Arc<Shared>) -> Self {
        CmbWindow { core, shared, peers: PeerGate::default(), kept: Mutex::default() }
    }

    /// A copy by a peer inside this process, which the cut waits for.
    fn as_peer(
        &self,
        op: &'static str,
        place: (u64, usize),
        copy: impl FnOnce(&Memory) -> io::Result<()>,
    ) -> Result<(), DeviceError> {
        let copying = self.peers.enter();
        match copying.as_ref().and_then(|_| self.core.with_memory(copy)) {
            Some(done) => done.map_err(|err| window_error(op, place.0, place.1 as u64, &err)),
            None => Err(self.shared.refuse("the window was revoked: map again")),
        }
    }

    /// Ends the window's authority: later requests go to the device.
    fn retire(&self) {
        let core = &self.core;
        let mut phase = core.phase.write().unwrap_or_else(PoisonError::into_inner);
        if !core.is_dmabuf {
            return core.retire(phase, &self.shared);
        }
        if let Phase::Live(memory) = std::mem::replace(&mut *phase, Phase::Absent) {
            self.shared.index_mut().remove(core);
            // Its holders keep the pages, and so the capacity, until this handle is dropped.
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
        }
    }

    /// What a copy to the device came to, once its locks are gone.
    fn conclude(&self, copied: Result<(), DeviceError>) -> Result<(), DeviceError> {
        if copied.is_err() {
            self.core.give_up_lost(&self.shared);
        }
        let tell = |left: u8| left.checked_sub(1);
        match self.core.lost_stores.fetch_update(Ordering::AcqRel, Ordering::Acquire, tell) {
            Ok(_) => Err(self.shared.refuse(LOST_STORES)),
            Err(_) => copied,
        }
    }
}

impl Window for CmbWindow {
    fn length(&self) -> u64 {
        self.core.length
    }

    fn runs(&self) -> &[Run] {
        &self.core.runs
    }

    fn grant_fd(&self, writable: bool) -> Result<OwnedFd, DeviceError> {
        if self.core.cut.load(Ordering::Acquire) {
            return Err(self.shared.refuse("the window was revoked: map again"));
        }
        let opened = self.core.with_memory(|memory| memory.reopen(writable));
        match opened {
            Some(Ok(fd)) => Ok(fd),
            Some(Err(err)) => Err(window_error("open", 0, self.core.length, &err)),
            None => Err(self.shared.refuse("the window was revoked: map again")),
        }
    }

    fn custody_fd(&self) -> Result<Option<OwnedFd>, DeviceError> {
        match self.core.with_memory(Memory::duplicate) {
            Some(Ok(fd)) => Ok(fd),
            Some(Err(err)) => Err(window_error("open", 0, self.core.length, &err)),
            None => Err(self.shared.refuse("the window was revoked: map again")),
        }
    }

    fn peer_read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        self.as_peer("read", (offset, out.len()), |memory| memory.read(offset, out))
    }

    fn peer_write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.as_peer("write", (offset, data.len()), |memory| memory.write(offset, data))
    }

    fn peer_parts(&self) -> Option<Vec<PeerPart>> {
        // Only blocks: between them lies what other windows have left there.
        let part = |memory: &Memory, run: &Run| {
            let memory = memory.peer_memory(run.window_offset, run.length)?;
            Some(PeerPart { window_offset: run.window_offset, memory })
        };
        self.core.with_memory(|memory| self.core.runs.iter().map(|run| part(memory, run)).collect()).flatten()
    }

    fn admit(&self, peer: &Arc<dyn Peer>) -> bool {
        self.peers.admit(peer)
    }

    fn has_engines(&self) -> bool {
        self.peers.has_engines()
    }

    fn has_kept(&self, _content: WindowContent) -> bool {
        // A window has one content in all its life: without that it is no longer the authority.
        self.core.with_memory(|memory| !memory.is_lost()).unwrap_or(false)
    }

    fn is_held(&self) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let memory = kept.or_else(|| self.core.with_memory(Memory::clone));
        memory.is_some_and(|memory| {
            memory.is_held().unwrap_or_else(|error| {
                tracing::warn!(window = self.core.id, %error, "whether a window is still held cannot be told");
                true
            })
        })
    }

    fn is_dmabuf(&self) -> bool {
        self.core.is_dmabuf
    }

    fn disown(&self, offsets: &[Range<u64>]) {
        self.core.disowned.add(offsets);
    }

    fn set_writable(&self) {
        self.core.must_copy.store(true, Ordering::Release);
    }

    fn set_valid_length(&self, valid_length: u64) {
        let core = &self.core;
        let valid_length = valid_length.min(core.length);
        let mut tail = core.order();
        if valid_length < tail.valid_length() {
            // The device has the old bytes until write-back.
            core.must_copy.store(true, Ordering::Release);
        }
        for range in tail.move_end(valid_length, core.length).into_iter().flat_map(|range| core.disowned.owned(range)) {
            if let Some(Err(error)) = core.with_memory(|memory| core.zero(memory, range)) {
                tracing::error!(window = core.id, %error, "the end of a file could not be cleared");
            }
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.core.kind == ApertureKind::Identity {
            // What peers stored is where it belongs.
            return Ok(());
        }
        let tail = self.core.order();
        let copied = self.core.copy_missing(&self.shared, &tail);
        drop(tail);
        self.conclude(copied)
    }

    fn cut(&self) {
        if self.core.is_dmabuf {
            return;
        }
        // Each time: the first may not be through with it.
        self.peers.close();
        if self.core.cut.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(Err(error)) = self.core.with_memory(Memory::cut) {
            tracing::error!(window = self.core.id, %error, "a window cannot be cut");
            process::abort();
        }
    }

    fn write_back(&self) -> Result<(), DeviceError> {
        self.cut();
        let tail = self.core.order();
        let copied = self.core.copy_missing(&self.shared, &tail);
        if copied.is_ok() {
            self.retire();
        }
        drop(tail);
        self.conclude(copied)
    }
}

impl Drop for CmbWindow {
    fn drop(&mut self) {
        if let Err(error) = self.write_back() {
            tracing::error!(
                window = self.core.id, %error,
                "a window could not be written back: it stays in memory and keeps its capacity"
            );
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        if kept.is_some() {
            self.shared.index_mut().release(self.shared.charge(self.core.length, &self.core.runs));
        }
    }
}
