//! A window onto blocks where they live: permission to reach them, and nothing more.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::peer_gate::PeerGate;
use crate::placed::HasRuns;
use crate::tail::{Disowned, Tail};
use crate::{BLOCK_BYTES, BlockMemory, DeviceError, Peer, PeerPart, Run, Window, WindowContent, WindowSpec};

use super::aperture::Shared;

/// The window itself; the index and the handle share it.
#[derive(Debug)]
pub(super) struct Core {
    id: u64,
    length: u64,
    runs: Vec<Run>,
    tail: Mutex<Tail>,
    disowned: Disowned,
    /// A peer may have stored something that we did not hear of.
    peer_writes: AtomicBool,
    /// It is no longer in the index. Changed with the index locked.
    retired: AtomicBool,
}

impl HasRuns for Core {
    fn runs(&self) -> &[Run] {
        &self.runs
    }
}

impl Core {
    pub(super) fn new(id: u64, spec: WindowSpec) -> Self {
        Core {
            id,
            length: spec.length,
            tail: Mutex::new(Tail::new(spec.valid_length.min(spec.length))),
            runs: spec.runs,
            disowned: Disowned::default(),
            peer_writes: AtomicBool::new(false),
            retired: AtomicBool::new(false),
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the device that it lends.
    pub(super) fn lent_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.length).sum()
    }

    /// Nothing is to be seen behind the end of the file in its last block.
    pub(super) fn clear_last_block(&self, memory: &dyn BlockMemory) -> Result<(), DeviceError> {
        let end = self.tail().valid_length();
        self.clear(memory, end..end.next_multiple_of(BLOCK_BYTES).min(self.length))
    }

    /// Zeros a range of window offsets, as far as it is the owner's.
    fn clear(&self, memory: &dyn BlockMemory, range: Range<u64>) -> Result<(), DeviceError> {
        for range in self.disowned.owned(range) {
            for (offset, length) in self.homes(range) {
                zero(memory, offset, length)?;
            }
        }
        Ok(())
    }

    /// Where a range of window offsets is in memory: (offset, length) each.
    fn homes(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().filter_map(move |run| {
            let start = range.start.max(run.window_offset);
            let end = range.end.min(run.window_offset + run.length);
            (start < end).then(|| (run.device_offset + (start - run.window_offset), end - start))
        })
    }

    /// What peers stored is durable.
    fn persist(&self, memory: &dyn BlockMemory) -> Result<(), DeviceError> {
        self.runs.iter().try_for_each(|run| memory.persist(run.device_offset, run.length))
    }
}

/// Zeros what is not zero already: most often nothing, and nothing is written to a volume that is mounted read-only.
fn zero(memory: &dyn BlockMemory, offset: u64, length: u64) -> Result<(), DeviceError> {
    let mut there = [0; BLOCK_BYTES as usize];
    for at in (0..length).step_by(there.len()) {
        let part = &mut there[..BLOCK_BYTES.min(length - at) as usize];
        memory.read(offset + at, part)?;
        if part.iter().any(|byte| *byte != 0) {
            part.fill(0);
            memory.write(offset + at, part)?;
        }
    }
    Ok(())
}

/// The handle that the mapping layer holds.
#[derive(Debug)]
pub(super) struct MappedWindow {
    core: Arc<Core>,
    shared: Arc<Shared>,
    peers: PeerGate,
}

impl MappedWindow {
    pub(super) fn new(core: Arc<Core>, shared: Arc<Shared>) -> Self {
        MappedWindow { core, shared, peers: PeerGate::default() }
    }

    /// The places in memory of a range of window offsets: (offset, length) each, in order, without a gap.
    fn places(&self, offset: u64, length: u64) -> Result<Vec<(u64, u64)>, DeviceError> {
        let end = offset.checked_add(length).ok_or_else(|| self.shared.refuse("a copy leaves its window"))?;
        let places: Vec<_> = self.core.homes(offset..end).collect();
        match places.iter().map(|(_, length)| length).sum::<u64>() == length {
            true => Ok(places),
            false => Err(self.shared.refuse("a copy leaves the blocks of its window")),
        }
    }
}

impl Window for MappedWindow {
    fn length(&self) -> u64 {
        self.core.length
    }

    fn runs(&self) -> &[Run] {
        &self.core.runs
    }

    fn grant_fd(&self, _writable: bool) -> Result<OwnedFd, DeviceError> {
        Err(self.shared.refuse("no process can be given this memory and have it taken back: mount with --cmb SIZE"))
    }

    fn custody_fd(&self) -> Result<Option<OwnedFd>, DeviceError> {
        // Only this process reaches it.
        Ok(None)
    }

    fn peer_read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let _copying = self.peers.enter().ok_or_else(|| self.shared.refuse("the window was revoked: map again"))?;
        let mut rest = out;
        for (place, length) in self.places(offset, rest.len() as u64)? {
            let (part, after) = rest.split_at_mut(length as usize);
            self.shared.memory().read(place, part)?;
            rest = after;
        }
        Ok(())
    }

    fn peer_write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let _copying = self.peers.enter().ok_or_else(|| self.shared.refuse("the window was revoked: map again"))?;
        let mut rest = data;
        for (place, length) in self.places(offset, rest.len() as u64)? {
            let (part, after) = rest.split_at(length as usize);
            self.shared.memory().write(place, part)?;
            rest = after;
        }
        Ok(())
    }

    fn peer_parts(&self) -> Option<Vec<PeerPart>> {
        let part = |run: &Run| {
            let memory = self.shared.memory().peer_memory(run.device_offset, run.length)?;
            Some(PeerPart { window_offset: run.window_offset, memory })
        };
        self.core.runs.iter().map(part).collect()
    }

    fn admit(&self, peer: &Arc<dyn Peer>) -> bool {
        self.peers.admit(peer)
    }

    fn content(&self) -> WindowContent {
        self.shared.memory().content()
    }

    fn has_engines(&self) -> bool {
        self.peers.has_engines()
    }

    fn has_kept(&self, content: WindowContent) -> bool {
        self.shared.memory().has_kept(content)
    }

    fn disown(&self, offsets: &[Range<u64>]) {
        self.core.disowned.add(offsets);
    }

    fn set_writable(&self) {
        self.core.peer_writes.store(true, Ordering::Release);
    }

    fn set_valid_length(&self, valid_length: u64) {
        let core = &self.core;
        let mut tail = core.tail();
        for range in tail.move_end(valid_length.min(core.length), core.length) {
            if let Err(error) = core.clear(self.shared.memory(), range) {
                tracing::error!(window = core.id, %error, "the end of a file could not be cleared");
            }
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        // What the filesystem wrote is the device's own flush to make durable.
        if self.core.peer_writes.load(Ordering::Acquire) { self.core.persist(self.shared.memory()) } else { Ok(()) }
    }

    fn cut(&self) {
        self.peers.close();
    }

    fn write_back(&self) -> Result<(), DeviceError> {
        self.cut();
        let core = &self.core;
        if core.retired.load(Ordering::Acquire) {
            return Ok(());
        }
        if core.peer_writes.load(Ordering::Acquire) {
            let tail = core.tail();
            for range in tail.leftovers(0..core.length) {
                core.clear(self.shared.memory(), range)?;
            }
            core.persist(self.shared.memory())?;
        }
        let mut index = self.shared.index_mut();
        if !core.retired.swap(true, Ordering::AcqRel) {
            index.remove(core);
            index.release(core.lent_bytes());
        }
        Ok(())
    }
}

impl Drop for MappedWindow {
    fn drop(&mut self) {
        if let Err(error) = self.write_back() {
            tracing::error!(window = self.core.id, %error, "what a peer left behind the end of a file could not be cleared");
        }
    }
}
