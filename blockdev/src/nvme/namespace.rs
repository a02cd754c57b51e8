//! A namespace as a block device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use peerfs_nvme_spec::{Command, DatasetRange, IoOpcode, MAX_DATASET_RANGES};
use peerfs_sys::{BufferPool, LentBuf};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::controller::{Controller, Sent};
use super::error::NvmeError;
use super::port::Reach;
use crate::bounce::{self, steps};
use crate::{BLOCK_BYTES, BlockDevice, DeviceError, DeviceEvent, DeviceEvents, DeviceInfo, EventSink, Io, IoBuf, Ticket};

/// Logical blocks in one Write Zeroes command.
const MAX_ZEROED_BLOCKS: u64 = 1 << 16;

/// Largest piece of a request that is copied, bytes.
const STAGING_BYTES: u64 = 1 << 20;

/// Logical blocks in one range of Dataset Management.
const MAX_RANGE_BLOCKS: u64 = u32::MAX as u64;

/// A namespace of a controller that this process drives. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Namespace {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // First: the controller is shut down before its buffers go.
    controller: Arc<Controller>,
    pool_reach: Reach,
    pool: Arc<BufferPool>,
    /// Keeps transfers possible when the pool is used up.
    spare: Mutex<Option<IoBuf>>,
    id: u32,
    /// Size of a logical block, bytes, as a power of two.
    block_power: u8,
    info: DeviceInfo,
    read_only: bool,
    /// Largest transfer of one command, bytes.
    step_bytes: u64,
    events: DeviceEvents,
    /// Losses of the controller's write cache that a flush has told of.
    told_losses: AtomicU64,
}

/// What a request is about, for errors.
#[derive(Debug, Clone, Copy)]
struct Span {
    op: &'static str,
    offset: u64,
    length: u64,
}

impl Namespace {
    /// Namespace `id` of a controller, as `name` for people.
    ///
    /// # Errors
    /// There is no such namespace, or it has a format that this driver cannot use; memory is short.
    pub fn open(controller: Arc<Controller>, id: u32, name: String, read_only: bool) -> Result<Self, NvmeError> {
        let count = controller.identity().namespaces.get();
        if id == 0 || id > count {
            return Err(NvmeError::Unsupported(format!("there is no namespace {id}; the highest is {count}")));
        }
        let page = controller.identify_namespace(id)?;
        let format = page.current_format();
        let power = format.size_power;
        let size_bytes = page.size.get().checked_shl(power.into()).filter(|bytes| bytes >> power == page.size.get());
        let size_bytes = match size_bytes {
            _ if page.size.get() == 0 => return Err(NvmeError::Unsupported(format!("namespace {id} is not active"))),
            Some(bytes) if (9..=12).contains(&power) => bytes / BLOCK_BYTES * BLOCK_BYTES,
            _ => {
                return Err(NvmeError::Unsupported(format!(
                    "namespace {id} has {} logical blocks of 2^{power} bytes; 512 to 4096 bytes are possible: format it so",
                    page.size.get()
                )));
            }
        };
        if format.metadata_bytes.get() != 0 || page.protection & 0b111 != 0 {
            return Err(NvmeError::Unsupported(format!(
                "namespace {id} keeps metadata or protection beside its blocks: format it without"
            )));
        }
        if size_bytes == 0 {
            return Err(NvmeError::Unsupported(format!("namespace {id} is smaller than a block of {BLOCK_BYTES} bytes")));
        }
        let no_memory = |err| NvmeError::system("no memory for I/O buffers", &err);
        let pool = BufferPool::new().map_err(no_memory)?;
        let pool_reach = controller.port().attach(&pool).map_err(no_memory)?;
        let spare = Mutex::new(pool.buffer(STAGING_BYTES as usize));
        let step_bytes = controller.max_transfer_bytes();
        let info = DeviceInfo { name, backend: "nvme", size_bytes, direct_io: true };
        let shared = Shared {
            told_losses: AtomicU64::new(controller.cache_losses()),
            controller,
            pool_reach,
            pool,
            spare,
            id,
            block_power: power,
            info,
            read_only,
            step_bytes,
            events: DeviceEvents::default(),
        };
        Ok(Namespace { shared: Arc::new(shared) })
    }

    /// Its controller.
    pub fn controller(&self) -> &Arc<Controller> {
        &self.shared.controller
    }

    /// Size of a logical block, bytes.
    pub(super) fn block_bytes(&self) -> u64 {
        1 << self.shared.block_power
    }

    /// Reads whole logical blocks, as many as `out` takes.
    pub(super) fn read_blocks(&self, first_block: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let span = self.span_of("read", first_block, out.len() as u64)?;
        let buf = self.shared.copied(IoOpcode::Read, span, IoBuf::zeroed(out.len()))?;
        out.copy_from_slice(&buf[..out.len()]);
        Ok(())
    }

    /// Writes whole logical blocks.
    pub(super) fn write_blocks(&self, first_block: u64, data: &[u8]) -> Result<(), DeviceError> {
        let span = self.span_of("write", first_block, data.len() as u64)?;
        self.shared.check_writable(span)?;
        let mut buf = IoBuf::zeroed(data.len());
        buf[..data.len()].copy_from_slice(data);
        self.shared.copied(IoOpcode::Write, span, buf).map(drop)
    }

    /// As a flush, for one of several who write: nobody's loss is told to another.
    pub(super) fn flush_since(&self, cache_losses: u64) -> Result<(), DeviceError> {
        self.shared.flush(|losses| losses != cache_losses)
    }

    fn span_of(&self, op: &'static str, first_block: u64, length: u64) -> Result<Span, DeviceError> {
        let shared = &self.shared;
        let blocks = shared.info.size_bytes >> shared.block_power;
        let count = length >> shared.block_power;
        let inside = first_block.checked_add(count).is_some_and(|end| end <= blocks);
        // Of a block that does not exist there is no offset that could be told.
        let span = Span { op, offset: first_block.min(blocks) << shared.block_power, length };
        match inside && length.is_multiple_of(self.block_bytes()) {
            true => Ok(span),
            false => Err(shared.error(span, libc::EINVAL)),
        }
    }

    /// A command that moves `length` bytes, rounded up to logical blocks.
    pub(super) fn command_for(&self, opcode: IoOpcode, first_block: u64, length: u64) -> Command {
        let blocks = length.div_ceil(self.block_bytes());
        Command::transfer(opcode, self.shared.id, first_block, blocks as u32)
    }

    fn start(&self, io: Io) -> Result<Ticket, DeviceError> {
        let shared = &self.shared;
        let write = io.is_write();
        let span = Span { op: if write { "write" } else { "read" }, offset: io.offset(), length: io.length() };
        shared.info.check_range(span.offset, span.length)?;
        if write {
            shared.check_writable(span)?;
        }
        match io {
            Io::Read { buf, .. } => self.transfer(IoOpcode::Read, span, buf),
            Io::Write { buf, .. } => self.transfer(IoOpcode::Write, span, buf),
            Io::FillWindow { offset, window } => match shared.controller.lent_address(&window) {
                Some(address) => self.reach(IoOpcode::Read, span, address),
                None => bounce::fill_window(self, offset, &window).map(|()| Ticket::ready(Ok(None))),
            },
            Io::DrainWindow { offset, window } => match shared.controller.lent_address(&window) {
                Some(address) => self.reach(IoOpcode::Write, span, address),
                None => bounce::drain_window(self, offset, &window).map(|()| Ticket::ready(Ok(None))),
            },
        }
    }

    fn transfer(&self, opcode: IoOpcode, span: Span, buf: IoBuf) -> Result<Ticket, DeviceError> {
        match buf.lend(&self.shared.pool) {
            Ok(buf) => {
                let flight = Flight::of_buffer(self.shared.clone(), opcode, span, buf);
                Ok(Ticket::new(move || flight.land()))
            }
            Err(buf) => self.shared.copied(opcode, span, buf).map(|buf| Ticket::ready(Ok(Some(buf)))),
        }
    }

    /// Between the namespace and memory of the controller itself.
    fn reach(&self, opcode: IoOpcode, span: Span, address: u64) -> Result<Ticket, DeviceError> {
        let flight = Flight::start(self.shared.clone(), opcode, span, address, None);
        Ok(Ticket::new(move || flight.land()))
    }
}

/// The commands of one request, and the buffer they are about: it goes back only when all of them have ended.
struct Flight {
    shared: Arc<Shared>,
    span: Span,
    sent: Vec<Sent>,
    failed: Option<NvmeError>,
    buf: Option<LentBuf>,
}

impl Flight {
    fn of_buffer(shared: Arc<Shared>, opcode: IoOpcode, span: Span, buf: LentBuf) -> Self {
        let address = shared.pool_reach.address + buf.dma_offset();
        Flight::start(shared, opcode, span, address, Some(buf))
    }

    fn start(shared: Arc<Shared>, opcode: IoOpcode, span: Span, address: u64, buf: Option<LentBuf>) -> Self {
        let mut flight = Flight { shared, span, sent: Vec::new(), failed: None, buf };
        let step = flight.shared.step_bytes;
        for at in (0..span.length).step_by(step as usize) {
            let length = step.min(span.length - at);
            let command = flight.shared.command(opcode, span.offset + at, length);
            match flight.shared.controller.send(span.op, command, Some((address + at, length))) {
                Ok(sent) => flight.sent.push(sent),
                Err(error) => {
                    flight.failed = Some(error);
                    break;
                }
            }
        }
        flight
    }

    /// Waits for all commands. The buffer comes back in any case: nobody reaches it any more.
    fn settle(mut self) -> (Option<IoBuf>, Result<(), DeviceError>) {
        for sent in std::mem::take(&mut self.sent) {
            if let Err(error) = self.shared.controller.finish(sent) {
                self.failed.get_or_insert(error);
            }
        }
        let result = self.failed.take().map_or(Ok(()), |error| Err(self.shared.failed(self.span, &error)));
        // The controller has completed its commands, was reset, or was cut off from all memory.
        (self.buf.take().map(LentBuf::reclaim), result)
    }

    fn land(self) -> Result<Option<IoBuf>, DeviceError> {
        let (buf, result) = self.settle();
        result.map(|()| buf)
    }
}

impl Shared {
    fn check_writable(&self, span: Span) -> Result<(), DeviceError> {
        match self.read_only {
            true => Err(self.error(span, libc::EROFS)),
            false => Ok(()),
        }
    }

    /// Flushes. `is_news`: the cache has been lost so often, and whoever asks was not told.
    fn flush(&self, is_news: impl FnOnce(u64) -> bool) -> Result<(), DeviceError> {
        let span = Span { op: "flush", offset: 0, length: self.info.size_bytes };
        let done = match self.controller.identity().has_write_cache() {
            true => self.controller.perform("flush", Command::flush(Some(self.id)), None).map(drop),
            false => Ok(()),
        };
        // Asked afterwards: a loss while it was under way counts.
        let lost = is_news(self.controller.cache_losses());
        done.and(if lost { Err(NvmeError::CacheLost) } else { Ok(()) }).map_err(|error| self.failed(span, &error))
    }

    fn command(&self, opcode: IoOpcode, offset: u64, length: u64) -> Command {
        Command::transfer(opcode, self.id, offset >> self.block_power, (length >> self.block_power) as u32)
    }

    /// A request whose buffer the controller does not reach: by way of one that it does.
    fn copied(self: &Arc<Self>, opcode: IoOpcode, span: Span, mut buf: IoBuf) -> Result<IoBuf, DeviceError> {
        for (at, length) in steps(span.length) {
            let part = Span { offset: span.offset + at, length, ..span };
            let place = at as usize..(at + length) as usize;
            self.with_staging(length as usize, |mut staging| {
                if opcode == IoOpcode::Write {
                    staging[..length as usize].copy_from_slice(&buf[place.clone()]);
                }
                let staging = staging.lend(&self.pool).expect("staging is of the pool");
                let (staging, result) = Flight::of_buffer(self.clone(), opcode, part, staging).settle();
                let staging = staging.expect("a flight gives its buffer back");
                if opcode == IoOpcode::Read && result.is_ok() {
                    buf[place.clone()].copy_from_slice(&staging[..length as usize]);
                }
                (staging, result)
            })?;
        }
        Ok(buf)
    }

    /// Runs `work` with a buffer of the pool, waiting for nothing but others who do the same.
    fn with_staging<T>(&self, length: usize, work: impl FnOnce(IoBuf) -> (IoBuf, T)) -> T {
        if let Some(staging) = self.pool.buffer(length) {
            return work(staging).1;
        }
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let (staging, result) = work(spare.take().expect("the spare buffer comes back"));
        *spare = Some(staging);
        result
    }

    fn failed(&self, span: Span, error: &NvmeError) -> DeviceError {
        tracing::warn!(device = self.info.name, op = span.op, offset = span.offset, length = span.length, %error);
        if error.is_media_error() {
            self.events.report(&DeviceEvent::MediaError { offset: span.offset, length: span.length });
        }
        self.error(span, error.errno())
    }

    fn error(&self, span: Span, errno: i32) -> DeviceError {
        DeviceError::Io { device: self.info.name.clone(), op: span.op, offset: span.offset, length: span.length, errno }
    }

    fn write_zeroes(&self, span: Span) -> Result<(), DeviceError> {
        let most = MAX_ZEROED_BLOCKS << self.block_power;
        for at in (0..span.length).step_by(most as usize) {
            let command = self.command(IoOpcode::WriteZeroes, span.offset + at, most.min(span.length - at));
            self.controller.perform("write zeroes", command, None).map_err(|error| self.failed(span, &error))?;
        }
        Ok(())
    }

    fn deallocate(&self, span: Span) -> Result<(), DeviceError> {
        let start = span.offset >> self.block_power;
        let blocks = span.length >> self.block_power;
        let ranges: Vec<DatasetRange> = (0..blocks)
            .step_by(MAX_RANGE_BLOCKS as usize)
            .map(|at| DatasetRange {
                attributes: U32::ZERO,
                blocks: U32::new((blocks - at).min(MAX_RANGE_BLOCKS) as u32),
                start: U64::new(start + at),
            })
            .collect();
        for ranges in ranges.chunks(MAX_DATASET_RANGES) {
            let bytes = ranges.as_bytes();
            let done = self.with_staging(bytes.len(), |mut staging| {
                staging[..bytes.len()].copy_from_slice(bytes);
                let staging = staging.lend(&self.pool).expect("staging is of the pool");
                let data = Some((self.pool_reach.address + staging.dma_offset(), bytes.len() as u64));
                let done = self.controller.perform("deallocate", Command::deallocate(self.id, ranges.len() as u16), data);
                (staging.reclaim(), done)
            });
            done.map_err(|error| self.failed(span, &error))?;
        }
        Ok(())
    }
}

impl BlockDevice for Namespace {
    fn info(&self) -> DeviceInfo {
        self.shared.info.clone()
    }

    fn buffer(&self, length: usize) -> IoBuf {
        self.shared.pool.buffer(length).unwrap_or_else(|| IoBuf::zeroed(length))
    }

    fn submit(&self, io: Io) -> Ticket {
        self.start(io).unwrap_or_else(|err| Ticket::ready(Err(err)))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let shared = &self.shared;
        if shared.read_only || !shared.controller.identity().has_write_cache() {
            return Ok(());
        }
        shared.flush(|losses| shared.told_losses.swap(losses, Ordering::Relaxed) != losses)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let shared = &self.shared;
        let span = Span { op: "discard", offset, length };
        shared.info.check_range(offset, length)?;
        shared.check_writable(span)?;
        match shared.controller.identity().has_dataset_management() {
            true if length > 0 => shared.deallocate(span),
            true => Ok(()),
            false => Err(shared.error(span, libc::EOPNOTSUPP)),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let shared = &self.shared;
        let span = Span { op: "write", offset, length };
        shared.info.check_range(offset, length)?;
        shared.check_writable(span)?;
        if shared.controller.identity().has_write_zeroes() {
            return shared.write_zeroes(span);
        }
        for (at, length) in steps(length) {
            let mut buf = self.buffer(length as usize);
            buf.fill(0);
            self.submit(Io::Write { offset: offset + at, buf }).wait()?;
        }
        Ok(())
    }

    fn subscribe(&self, sink: EventSink) {
        self.shared.events.subscribe(sink.clone());
        self.shared.controller.subscribe(sink);
    }
}
