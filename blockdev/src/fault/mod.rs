//! A device for tests that fails, stalls and loses power on demand.
//!
//! Writes stay in a volatile cache until a flush. A crash keeps or loses each
//! 512-byte sector written since on its own, as disks may; the choice follows
//! from the seed alone. A device that writes through has no such cache.

mod cache;
mod rules;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bounce;
use crate::{BlockDevice, DeviceError, DeviceEvent, DeviceEvents, DeviceInfo, EventSink, Io, IoBuf, Ticket};

use cache::WriteCache;
use rules::{Plan, Rules};

pub use rules::{Effect, FaultRule, Hold, OpKind, Trigger};

/// Operations seen so far, refused ones included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Reads and window fills.
    pub reads: u64,
    /// Writes, window drains and write-zeroes.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes asked for by reads.
    pub read_bytes: u64,
    /// Bytes given to writes.
    pub written_bytes: u64,
}

/// A fault-injecting decorator. Cheap to clone: clones share their state.
#[derive(Clone)]
pub struct FaultDevice {
    state: Arc<State>,
}

struct State {
    inner: Arc<dyn BlockDevice>,
    cache: Mutex<WriteCache>,
    rules: Mutex<Rules>,
    counts: Mutex<OpCounts>,
    events: DeviceEvents,
    crashed: AtomicBool,
    crashes: AtomicU64,
    seed: u64,
    write_through: bool,
}

impl FaultDevice {
    /// Decorates `inner`. Everything random follows from `seed`.
    pub fn new(inner: Arc<dyn BlockDevice>, seed: u64) -> Self {
        FaultDevice::make(inner, seed, false)
    }

    /// Decorates `inner` without a cache of its own: nothing is lost by a crash, and memory does not grow with what is
    /// written. For mounts whose users want faults to happen.
    pub fn write_through(inner: Arc<dyn BlockDevice>, seed: u64) -> Self {
        FaultDevice::make(inner, seed, true)
    }

    fn make(inner: Arc<dyn BlockDevice>, seed: u64, write_through: bool) -> Self {
        FaultDevice {
            state: Arc::new(State {
                inner,
                cache: Mutex::default(),
                rules: Mutex::new(Rules::new(seed)),
                counts: Mutex::default(),
                events: DeviceEvents::default(),
                crashed: AtomicBool::new(false),
                crashes: AtomicU64::new(0),
                seed,
                write_through,
            }),
        }
    }

    /// Adds a rule; rules apply in the order they were added, the first that matches wins.
    pub fn add_rule(&self, rule: FaultRule) {
        lock(&self.state.rules).add(rule);
    }

    /// Removes all rules; what is held stays held.
    pub fn clear_rules(&self) {
        lock(&self.state.rules).clear();
    }

    /// Operations of this kind that start from now on wait until the hold is released or dropped.
    pub fn hold(&self, kind: OpKind) -> Hold {
        lock(&self.state.rules).hold(kind)
    }

    /// Tells subscribers that something happened to the device.
    pub fn emit(&self, event: DeviceEvent) {
        self.state.events.report(&event);
    }

    /// Power fails: each sector written since the last flush is kept (any of its versions) or
    /// lost, and all I/O answers EIO until [`FaultDevice::reopen`].
    ///
    /// # Errors
    /// What the device below answers when the kept sectors are written.
    pub fn crash(&self) -> Result<(), DeviceError> {
        let state = &self.state;
        let mut cache = lock(&state.cache);
        state.crashed.store(true, Ordering::SeqCst);
        let crash = state.crashes.fetch_add(1, Ordering::SeqCst);
        cache.settle(&*state.inner, state.seed ^ (crash << 32))
    }

    /// Power is back.
    pub fn reopen(&self) {
        self.state.crashed.store(false, Ordering::SeqCst);
    }

    /// 512-byte sectors written but not flushed.
    pub fn unflushed_sectors(&self) -> usize {
        lock(&self.state.cache).sectors()
    }

    /// Operations seen so far.
    pub fn counts(&self) -> OpCounts {
        *lock(&self.state.counts)
    }

    fn run(&self, plan: Plan, io: Io) -> Result<Option<IoBuf>, DeviceError> {
        self.pass(plan, kind_of(&io), io.offset(), io.length())?;
        if self.state.write_through {
            return self.state.inner.submit(io).wait();
        }
        let mut cache = lock(&self.state.cache);
        self.check_power(kind_of(&io), io.offset(), io.length())?;
        match io {
            Io::Read { offset, buf } => {
                let mut buf = self.state.inner.submit(Io::Read { offset, buf }).wait()?;
                if let Some(buf) = &mut buf {
                    cache.patch(offset, buf);
                }
                Ok(buf)
            }
            Io::Write { offset, buf } => {
                cache.write(offset, &buf);
                Ok(Some(buf))
            }
            Io::FillWindow { .. } | Io::DrainWindow { .. } => Ok(None),
        }
    }

    /// What the rules say, then whether there is power.
    fn pass(&self, plan: Plan, kind: OpKind, offset: u64, length: u64) -> Result<(), DeviceError> {
        plan.wait();
        match plan.errno {
            Some(errno) => Err(self.error(kind, offset, length, errno)),
            None => self.check_power(kind, offset, length),
        }
    }

    fn check_power(&self, kind: OpKind, offset: u64, length: u64) -> Result<(), DeviceError> {
        if self.state.crashed.load(Ordering::SeqCst) {
            return Err(self.error(kind, offset, length, libc::EIO));
        }
        Ok(())
    }

    fn plan(&self, kind: OpKind, offset: u64, length: u64) -> Plan {
        let mut counts = lock(&self.state.counts);
        match kind {
            OpKind::Write => {
                counts.writes += 1;
                counts.written_bytes += length;
            }
            OpKind::Flush => counts.flushes += 1,
            OpKind::Discard => counts.discards += 1,
            OpKind::Read | OpKind::Any => {
                counts.reads += 1;
                counts.read_bytes += length;
            }
        }
        drop(counts);
        lock(&self.state.rules).plan(kind, offset, length)
    }

    fn error(&self, kind: OpKind, offset: u64, length: u64, errno: i32) -> DeviceError {
        DeviceError::Io { device: self.info().name, op: kind.name(), offset, length, errno }
    }
}

impl BlockDevice for FaultDevice {
    fn info(&self) -> DeviceInfo {
        self.state.inner.info()
    }

    fn buffer(&self, length: usize) -> IoBuf {
        self.state.inner.buffer(length)
    }

    fn submit(&self, io: Io) -> Ticket {
        if let Err(err) = self.info().check_range(io.offset(), io.length()) {
            return Ticket::ready(Err(err));
        }
        let device = self.clone();
        match io {
            Io::FillWindow { offset, window } => {
                Ticket::new(move || bounce::fill_window(&device, offset, &window).map(|()| None))
            }
            Io::DrainWindow { offset, window } => {
                Ticket::new(move || bounce::drain_window(&device, offset, &window).map(|()| None))
            }
            io => {
                let plan = self.plan(kind_of(&io), io.offset(), io.length());
                if plan.is_immediate() {
                    return Ticket::ready(self.run(plan, io));
                }
                Ticket::new(move || device.run(plan, io))
            }
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let length = self.info().size_bytes;
        let plan = self.plan(OpKind::Flush, 0, length);
        self.pass(plan, OpKind::Flush, 0, length)?;
        let mut cache = lock(&self.state.cache);
        self.check_power(OpKind::Flush, 0, length)?;
        cache.persist(&*self.state.inner)?;
        self.state.inner.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.info().check_range(offset, length)?;
        let plan = self.plan(OpKind::Discard, offset, length);
        self.pass(plan, OpKind::Discard, offset, length)?;
        if self.state.write_through {
            return self.state.inner.discard(offset, length);
        }
        // Undefined content: whatever was there before the last flush.
        lock(&self.state.cache).forget(offset, length);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.info().check_range(offset, length)?;
        for (at, length) in bounce::steps(length) {
            let mut buf = self.buffer(length as usize);
            buf.fill(0);
            let offset = offset + at;
            self.submit(Io::Write { offset, buf }).wait()?;
        }
        Ok(())
    }

    fn subscribe(&self, sink: EventSink) {
        self.state.events.subscribe(sink.clone());
        self.state.inner.subscribe(sink);
    }
}

impl std::fmt::Debug for FaultDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultDevice({:?}, seed {})", self.state.inner, self.state.seed)
    }
}

fn kind_of(io: &Io) -> OpKind {
    if io.is_write() { OpKind::Write } else { OpKind::Read }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
