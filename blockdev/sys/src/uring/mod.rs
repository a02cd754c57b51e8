//! A safe io_uring engine: one ring, used by many threads at once.
//!
//! Whatever the kernel may still touch (buffer, file, window) is owned by the
//! table of requests under way until its completion has been seen, so a caller
//! may forget a [`Transfer`] without harm. There is no thread of our own:
//! of the threads that wait, one (the leader) sits in the kernel and hands
//! completions to the others, and appoints a successor when it leaves.

mod queue;
mod request;
mod ring;
mod table;
mod window;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::buffer::AlignedBuf;
use crate::pieces::LARGEST_PIECE_BYTES;
use crate::pool::BufferPool;

use request::{Keep, Request};
use ring::Ring;
use table::Table;

pub use queue::{Ended, IoQueue};
pub use request::{Direction, Outcome, Transfer};
pub use window::RegisteredWindow;

/// Slot of the registered-buffer table that holds the buffer pool.
const POOL_SLOT: u16 = 0;

/// Size of the registered-buffer table: the pool and this many windows less one.
const SLOTS: u16 = 8192;

/// What an engine has done, for `info` and for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineStats {
    /// Transfers to or from registered memory.
    pub registered: u64,
    /// Transfers to or from ordinary memory.
    pub plain: u64,
    /// Requests under way.
    pub running: u64,
    /// The buffer pool is registered with the kernel.
    pub pool_registered: bool,
}

/// One io_uring with a pool of buffers and a table of registered windows.
pub struct Engine {
    id: u64,
    ring: Ring,
    table: Table,
    pool: Arc<BufferPool>,
    pool_registered: bool,
    /// Keeps copies to and from windows possible when the pool is used up.
    spare: Mutex<Option<AlignedBuf>>,
    free_slots: Mutex<Vec<u16>>,
    /// Live windows by slot.
    windows: Mutex<HashMap<u16, Weak<RegisteredWindow>>>,
    registered: AtomicU64,
    plain: AtomicU64,
}

impl Engine {
    /// An engine of its own, with its own pool.
    ///
    /// # Errors
    /// What io_uring_setup(2) and memfd_create(2) answer. That the pool could not be
    /// registered (RLIMIT_MEMLOCK) is no error: see [`EngineStats::pool_registered`].
    pub fn new() -> io::Result<Arc<Self>> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let ring = Ring::new(u32::from(SLOTS))?;
        let pool = BufferPool::new()?;
        let mapping = pool.mapping();
        let pool_registered = ring.register(POOL_SLOT, mapping.ptr().as_ptr(), mapping.len()).is_ok();
        let spare = pool.take(LARGEST_PIECE_BYTES).map(|piece| AlignedBuf::pooled(piece, LARGEST_PIECE_BYTES));
        Ok(Arc::new(Engine {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            ring,
            table: Table::new(),
            pool,
            pool_registered,
            spare: Mutex::new(spare),
            free_slots: Mutex::new((POOL_SLOT + 1..SLOTS).rev().collect()),
            windows: Mutex::default(),
            registered: AtomicU64::new(0),
            plain: AtomicU64::new(0),
        }))
    }

    /// Tells engines of this process apart; never reused.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What it has done so far.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            registered: self.registered.load(Ordering::Relaxed),
            plain: self.plain.load(Ordering::Relaxed),
            running: self.table.running() as u64,
            pool_registered: self.pool_registered,
        }
    }

    /// The live window registered under `slot`.
    pub fn window(&self, slot: u32) -> Option<Arc<RegisteredWindow>> {
        let slot = u16::try_from(slot).ok()?;
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.get(&slot)?.upgrade()
    }

    /// A buffer of `length` bytes rounded up to 4096: a piece of the pool, or of the heap when
    /// the pool is used up or the buffer longer than 1 MiB. Contents are undefined but initialised.
    pub fn buffer(&self, length: usize) -> AlignedBuf {
        match self.pool.take(length) {
            Some(piece) => AlignedBuf::pooled(piece, length),
            None => AlignedBuf::zeroed(length),
        }
    }

    /// Starts a transfer between the whole of `buf` and `file` at `offset` (bytes).
    pub fn submit(self: &Arc<Self>, direction: Direction, file: &Arc<File>, offset: u64, buf: AlignedBuf) -> Transfer {
        let slot = buf.piece().filter(|piece| self.pool_registered && piece.is_of(&self.pool)).map(|_| POOL_SLOT);
        let (address, length) = (buf.as_ptr() as u64, buf.len());
        let keep = Keep { window: None, buffer: Some(buf) };
        self.start(Request::new(direction, file.clone(), offset, (address, length, slot), keep))
    }

    /// Starts a transfer between part of a window (`window_offset`, `length` in bytes) and `file`
    /// at `offset`.
    ///
    /// # Errors
    /// `InvalidInput` when the part is not inside the window or the window belongs to another engine.
    pub fn submit_window(
        self: &Arc<Self>,
        direction: Direction,
        file: &Arc<File>,
        offset: u64,
        window: &Arc<RegisteredWindow>,
        (window_offset, length): (u64, u64),
    ) -> io::Result<Transfer> {
        let memory = window.part(self, window_offset, length)?;
        let keep = Keep { window: Some(window.clone()), buffer: None };
        Ok(self.start(Request::new(direction, file.clone(), offset, memory, keep)))
    }

    /// Starts a copy between a window and a buffer of this engine's pool.
    fn submit_copy(
        self: &Arc<Self>,
        direction: Direction,
        buf: AlignedBuf,
        window: &Arc<RegisteredWindow>,
        memory: (u64, usize, Option<u16>),
    ) -> Transfer {
        let piece = buf.piece().expect("copies use pool buffers");
        let offset = piece.offset();
        let keep = Keep { window: Some(window.clone()), buffer: Some(buf) };
        let file = self.pool.file().clone();
        self.start(Request::new(direction, file, offset, memory, keep))
    }

    fn start(self: &Arc<Self>, request: Request) -> Transfer {
        let kind = if request.is_registered() { &self.registered } else { &self.plain };
        kind.fetch_add(1, Ordering::Relaxed);
        Transfer::new(self.clone(), self.table.start(&self.ring, request))
    }

    /// A pool buffer of up to 1 MiB, waiting for nothing but another copy under way.
    fn with_staging<T>(&self, length: usize, work: impl FnOnce(AlignedBuf) -> (AlignedBuf, T)) -> T {
        if let Some(piece) = self.pool.take(length) {
            return work(AlignedBuf::pooled(piece, length)).1;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let buf = spare.take().unwrap_or_else(|| AlignedBuf::zeroed(length));
        let (buf, result) = work(buf);
        *spare = Some(buf);
        result
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.table.drain(&self.ring);
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.id)
    }
}
