//! A namespace as a block device.

use std::sync::Arc;

use peerfs_nvme_spec::{Command, DatasetRange, IoOpcode, MAX_DATASET_RANGES};
use peerfs_sys::DmaBufferPool;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::controller::{Controller, Sent};
use super::error::NvmeError;
use super::port::DmaBlock;
use crate::bounce::{self, steps};
use crate::{BLOCK_BYTES, BlockDevice, DeviceError, DeviceEvent, DeviceInfo, EventSink, Io, IoBuf, Ticket};

/// Logical blocks in one Write Zeroes command.
const MAX_ZEROED_BLOCKS: u64 = 1 << 16;

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
    pool: Arc<DmaBufferPool>,
    pool_block: DmaBlock,
    id: u32,
    /// Size of a logical block, bytes, as a power of two.
    block_power: u8,
    info: DeviceInfo,
    read_only: bool,
    /// Largest transfer of one command, bytes.
    step_bytes: u64,
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
        let pool_block = controller
            .port()
            .allocate(DmaBufferPool::BYTES)
            .map_err(|err| NvmeError::system("no memory for I/O buffers", &err))?;
        let pool = DmaBufferPool::new(pool_block.memory.clone());
        let step_bytes = controller.max_transfer_bytes().min(DmaBufferPool::LARGEST_BYTES as u64) / BLOCK_BYTES * BLOCK_BYTES;
        let info = DeviceInfo { name, backend: "nvme", size_bytes, direct_io: true };
        let shared = Shared { controller, pool, pool_block, id, block_power: power, info, read_only, step_bytes };
        Ok(Namespace { shared: Arc::new(shared) })
    }

    /// Its controller.
    pub fn controller(&self) -> &Arc<Controller> {
        &self.shared.controller
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
        let Some(offset) = buf.dma_offset(&self.shared.pool) else {
            return self.shared.copied(opcode, span, buf).map(|buf| Ticket::ready(Ok(Some(buf))));
        };
        let flight = Flight::start(self.shared.clone(), opcode, span, self.shared.pool_block.address + offset, Some(buf));
        Ok(Ticket::new(move || flight.land()))
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
    buf: Option<IoBuf>,
}

impl Flight {
    fn start(shared: Arc<Shared>, opcode: IoOpcode, span: Span, address: u64, buf: Option<IoBuf>) -> Self {
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

    fn land(mut self) -> Result<Option<IoBuf>, DeviceError> {
        for sent in std::mem::take(&mut self.sent) {
            if let Err(error) = self.shared.controller.finish(sent) {
                self.failed.get_or_insert(error);
            }
        }
        match &self.failed {
            None => Ok(self.buf),
            Some(error) => Err(self.shared.failed(self.span, error)),
        }
    }
}

impl Shared {
    fn check_writable(&self, span: Span) -> Result<(), DeviceError> {
        match self.read_only {
            true => Err(self.error(span, libc::EROFS)),
            false => Ok(()),
        }
    }

    fn command(&self, opcode: IoOpcode, offset: u64, length: u64) -> Command {
        Command::transfer(opcode, self.id, offset >> self.block_power, (length >> self.block_power) as u32)
    }

    /// A request whose buffer the controller does not reach: by way of one that it does.
    fn copied(self: &Arc<Self>, opcode: IoOpcode, span: Span, mut buf: IoBuf) -> Result<IoBuf, DeviceError> {
        for (at, length) in steps(span.length) {
            let mut piece = self.pool.wait_for(length as usize);
            let place = at as usize..(at + length) as usize;
            if opcode == IoOpcode::Write {
                piece[..length as usize].copy_from_slice(&buf[place.clone()]);
            }
            let offset = piece.dma_offset(&self.pool).ok_or_else(|| self.error(span, libc::ENOMEM))?;
            let part = Span { offset: span.offset + at, length, ..span };
            let flight = Flight::start(self.clone(), opcode, part, self.pool_block.address + offset, Some(piece));
            if let (IoOpcode::Read, Some(piece)) = (opcode, flight.land()?) {
                buf[place].copy_from_slice(&piece[..length as usize]);
            }
        }
        Ok(buf)
    }

    fn failed(&self, span: Span, error: &NvmeError) -> DeviceError {
        tracing::warn!(device = self.info.name, op = span.op, offset = span.offset, length = span.length, %error);
        if error.is_media_error() {
            self.controller.report(&DeviceEvent::MediaError { offset: span.offset, length: span.length });
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
            let mut piece = self.pool.wait_for(size_of_val(ranges));
            piece[..size_of_val(ranges)].copy_from_slice(ranges.as_bytes());
            let offset = piece.dma_offset(&self.pool).ok_or_else(|| self.error(span, libc::ENOMEM))?;
            let data = Some((self.pool_block.address + offset, size_of_val(ranges) as u64));
            let command = Command::deallocate(self.id, ranges.len() as u16);
            let done = self.controller.perform("deallocate", command, data);
            drop(piece);
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
        self.shared.pool.take(length).unwrap_or_else(|| IoBuf::zeroed(length))
    }

    fn submit(&self, io: Io) -> Ticket {
        self.start(io).unwrap_or_else(|err| Ticket::ready(Err(err)))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let shared = &self.shared;
        if shared.read_only || !shared.controller.identity().has_write_cache() {
            return Ok(());
        }
        let span = Span { op: "flush", offset: 0, length: shared.info.size_bytes };
        let done = shared.controller.perform("flush", Command::flush(Some(shared.id)), None);
        done.map(drop).map_err(|error| shared.failed(span, &error))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let shared = &self.shared;
        let span = Span { op: "discard", offset, length };
        shared.info.check_range(offset, length)?;
        shared.check_writable(span)?;
        match shared.controller.identity().has_dataset_management() && length > 0 {
            true => shared.deallocate(span),
            false => Ok(()),
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
        self.shared.controller.subscribe(sink);
    }
}
