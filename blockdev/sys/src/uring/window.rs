//! Windows as registered memory.
//!
//! The slot pins the window's pages. They stay readable and writable for the
//! engine after every other holder has lost them by truncation, which is what
//! carries a peer's last store to the device.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use crate::buffer::AlignedBuf;
use crate::mapping::{HUGE_PAGE_BYTES, Mapping};
use crate::memfd::WindowFile;
use crate::pieces::LARGEST_PIECE_BYTES;
use crate::udmabuf::DmaBuf;

use super::{Direction, Engine};

/// Most bytes the kernel registers in one slot.
const MAX_WINDOW_BYTES: u64 = 1 << 30;

/// A window whose pages an engine holds until this is dropped.
pub struct RegisteredWindow {
    engine: Arc<Engine>,
    file: WindowFile,
    slot: u16,
    /// Address at registration. Unmapped since: for the kernel it only names offsets.
    base: u64,
    dmabuf: Option<DmaBuf>,
}

impl RegisteredWindow {
    /// A zeroed window of `length` bytes (at most 1 GiB).
    ///
    /// # Errors
    /// `InvalidInput` for a bad length; ENOSPC when the engine has no slot left; ENOMEM when
    /// memory or RLIMIT_MEMLOCK does not suffice; what memfd_create(2) and mmap(2) answer.
    pub fn create(engine: &Arc<Engine>, length: u64) -> io::Result<Arc<Self>> {
        check_length(length)?;
        RegisteredWindow::register(engine, WindowFile::create(length)?, None)
    }

    /// As [`RegisteredWindow::create`], as a dma-buf, whose pages nobody can take away from its holders.
    ///
    /// # Errors
    /// As [`RegisteredWindow::create`] and [`DmaBuf::over`].
    pub fn create_dmabuf(engine: &Arc<Engine>, length: u64) -> io::Result<Arc<Self>> {
        check_length(length)?;
        let file = WindowFile::create_fixed(length)?;
        let dmabuf = DmaBuf::over(&file)?;
        RegisteredWindow::register(engine, file, Some(dmabuf))
    }

    fn register(engine: &Arc<Engine>, file: WindowFile, dmabuf: Option<DmaBuf>) -> io::Result<Arc<Self>> {
        let length = file.length();
        let mapping = map(file.file(), length as usize)?;
        let slot = take_slot(engine)?;
        let start = mapping.ptr().as_ptr();
        if let Err(err) = engine.ring.register(slot, start, mapping.len()) {
            give_slot(engine, slot);
            return Err(err);
        }
        let window = Arc::new(RegisteredWindow { engine: engine.clone(), file, slot, base: start as u64, dmabuf });
        live(engine).insert(slot, Arc::downgrade(&window));
        Ok(window)
    }

    /// Size in bytes.
    pub fn length(&self) -> u64 {
        self.file.length()
    }

    /// Slot in the engine's registered-buffer table.
    pub fn slot(&self) -> u32 {
        u32::from(self.slot)
    }

    /// The engine that holds the pages.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// A descriptor for a peer: see [`WindowFile::reopen`]. Of a dma-buf, which is always writable, the dma-buf.
    ///
    /// # Errors
    /// What open(2) or dup(2) answers.
    pub fn reopen(&self, writable: bool) -> io::Result<OwnedFd> {
        match &self.dmabuf {
            Some(dmabuf) => dmabuf.duplicate(),
            None => self.file.reopen(writable),
        }
    }

    /// A descriptor for whoever keeps the window on our behalf: see [`WindowFile::duplicate`].
    ///
    /// # Errors
    /// What dup(2) answers.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.duplicate()
    }

    /// It is a dma-buf.
    pub fn is_dmabuf(&self) -> bool {
        self.dmabuf.is_some()
    }

    /// A peer has it open, mapped or imported.
    ///
    /// # Errors
    /// As [`WindowFile::is_held`] and [`DmaBuf::is_held`].
    pub fn is_held(&self) -> io::Result<bool> {
        match &self.dmabuf {
            Some(dmabuf) => dmabuf.is_held(),
            None => self.file.is_held(),
        }
    }

    /// Takes the pages away from everybody but the engine: see [`WindowFile::truncate_to_zero`].
    ///
    /// # Errors
    /// What ftruncate(2) answers.
    pub fn truncate_to_zero(&self) -> io::Result<()> {
        self.file.truncate_to_zero()
    }

    /// Copies `out.len()` bytes from the window at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` outside the window; else what the kernel answers.
    pub fn read(self: &Arc<Self>, offset: u64, out: &mut [u8]) -> io::Result<()> {
        for (index, piece) in out.chunks_mut(LARGEST_PIECE_BYTES).enumerate() {
            let at = offset + (index * LARGEST_PIECE_BYTES) as u64;
            self.engine.with_staging(piece.len(), |buf| {
                // Memory to file: the file is the pool.
                let (buf, done) = self.copy(Direction::Write, at, buf, piece.len());
                if done.is_ok() {
                    piece.copy_from_slice(&buf[..piece.len()]);
                }
                (buf, done)
            })?;
        }
        Ok(())
    }

    /// Copies `data` into the window at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` outside the window; else what the kernel answers.
    pub fn write(self: &Arc<Self>, offset: u64, data: &[u8]) -> io::Result<()> {
        for (index, piece) in data.chunks(LARGEST_PIECE_BYTES).enumerate() {
            let at = offset + (index * LARGEST_PIECE_BYTES) as u64;
            self.engine.with_staging(piece.len(), |mut buf| {
                buf[..piece.len()].copy_from_slice(piece);
                self.copy(Direction::Read, at, buf, piece.len())
            })?;
        }
        Ok(())
    }

    /// Fills the whole of `buf` from the window at `offset`: without a second copy where `buf`
    /// is of the engine's pool.
    ///
    /// # Errors
    /// As [`RegisteredWindow::read`].
    pub fn read_buf(self: &Arc<Self>, offset: u64, mut buf: AlignedBuf) -> io::Result<AlignedBuf> {
        if !self.is_pooled(&buf) {
            self.read(offset, &mut buf)?;
            return Ok(buf);
        }
        let length = buf.len();
        let (buf, done) = self.copy(Direction::Write, offset, buf, length);
        done.map(|()| buf)
    }

    /// Copies the whole of `buf` into the window at `offset`; gives the buffer back.
    ///
    /// # Errors
    /// As [`RegisteredWindow::write`].
    pub fn write_buf(self: &Arc<Self>, offset: u64, buf: AlignedBuf) -> io::Result<AlignedBuf> {
        if !self.is_pooled(&buf) {
            self.write(offset, &buf)?;
            return Ok(buf);
        }
        let length = buf.len();
        let (buf, done) = self.copy(Direction::Read, offset, buf, length);
        done.map(|()| buf)
    }

    fn is_pooled(&self, buf: &AlignedBuf) -> bool {
        buf.piece().is_some_and(|piece| piece.is_of(&self.engine.pool))
    }

    fn copy(self: &Arc<Self>, direction: Direction, offset: u64, buf: AlignedBuf, length: usize) -> (AlignedBuf, io::Result<()>) {
        let memory = match self.part(&self.engine, offset, length as u64) {
            Ok(memory) => memory,
            Err(err) => return (buf, Err(err)),
        };
        let transfer = self.engine.submit_copy(direction, buf, self, memory);
        let (outcome, buf) = transfer.wait();
        let done = outcome.check(length as u64).map_err(io::Error::from_raw_os_error);
        (buf.expect("a copy gives its buffer back"), done)
    }

    /// Address, length and slot of a part, if it is inside the window.
    pub(super) fn part(&self, engine: &Arc<Engine>, offset: u64, length: u64) -> io::Result<(u64, usize, Option<u16>)> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length());
        if !inside || length == 0 || !Arc::ptr_eq(engine, &self.engine) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok((self.base + offset, length as usize, Some(self.slot)))
    }
}

impl Drop for RegisteredWindow {
    fn drop(&mut self) {
        live(&self.engine).remove(&self.slot);
        // A slot that could not be emptied still names old pages: it is never used again.
        if self.engine.ring.unregister(self.slot).is_ok() {
            give_slot(&self.engine, self.slot);
        }
    }
}

impl std::fmt::Debug for RegisteredWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegisteredWindow(slot {}, {} bytes)", self.slot, self.length())
    }
}

fn check_length(length: u64) -> io::Result<()> {
    if length == 0 || length > MAX_WINDOW_BYTES { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
}

fn map(file: &File, length: usize) -> io::Result<Mapping> {
    if length >= HUGE_PAGE_BYTES { Mapping::shared_huge(file, length) } else { Mapping::shared(file, length) }
}

fn live(engine: &Engine) -> MutexGuard<'_, HashMap<u16, Weak<RegisteredWindow>>> {
    engine.windows.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take_slot(engine: &Engine) -> io::Result<u16> {
    let mut free = engine.free_slots.lock().unwrap_or_else(PoisonError::into_inner);
    free.pop().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))
}

fn give_slot(engine: &Engine, slot: u16) {
    let mut free = engine.free_slots.lock().unwrap_or_else(PoisonError::into_inner);
    free.push(slot);
}
