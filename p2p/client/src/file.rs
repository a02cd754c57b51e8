//! A file of a mount, opened so that the page cache stays out of the way.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use peerfs_abi::ioctl::{Info, Map, READ_BY_SERVER_MAX, ReadByServer, Reflink, Revoke, reflink, revoke_flags};
use peerfs_abi::{ABI_VERSION, MapFlags, Reason};
use zerocopy::FromZeros;

use crate::Error;
use crate::backend::FileCalls;
use crate::importer::packed_name;
use crate::kernel::KernelFile;
use crate::range::Span;
use crate::segment::{DecisionTable, collect, retry_after};
use crate::server_reading::ServerReading;

/// An open file. Clones share the handle. Plain reads and writes go past the page cache.
#[derive(Clone)]
pub struct File {
    pub(crate) calls: Arc<dyn FileCalls>,
    pub(crate) name: Arc<str>,
}

/// What an administrator's revocation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked {
    /// Grants that were revoked.
    pub grants: u64,
    /// How many of them were cut without an acknowledgement.
    pub enforced: u64,
    /// Pins that were cut.
    pub pins_cut: u64,
    /// Dma-bufs that lost the file's blocks, while their holders keep the memory.
    pub pins_detached: u64,
    /// Time to the cut.
    pub latency: Duration,
}

impl File {
    /// Opens an existing file for reading.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<File, Error> {
        File::open_with(path, OpenOptions::new().read(true))
    }

    /// Opens or creates a file. Custom flags of `options` are replaced by our own.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn open_with(path: impl AsRef<std::path::Path>, options: &OpenOptions) -> Result<File, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let kernel = KernelFile::open(path, options).map_err(|source| Error::system("open", &name, source))?;
        Ok(File::from_calls(Arc::new(kernel), &name))
    }

    pub(crate) fn from_calls(calls: Arc<dyn FileCalls>, name: &str) -> File {
        File { calls, name: name.into() }
    }

    /// The decision table of a range for an importer known to the server by name (empty means `cpu`).
    /// Nothing changes. A range without an end ends with the file.
    ///
    /// # Errors
    /// [`Error::NotPeerfs`], [`Error::ServerGone`], or what the ioctl answers.
    pub fn query(&self, range: impl RangeBounds<u64>, flags: MapFlags, importer: &str) -> Result<DecisionTable, Error> {
        let mut argument = request(Span::new(range)?, flags | MapFlags::QUERY);
        argument.importer = packed_name(importer)?;
        self.table(argument)
    }

    /// Collects a whole decision table.
    pub(crate) fn table(&self, argument: Box<Map>) -> Result<DecisionTable, Error> {
        let mut table = DecisionTable { segments: Vec::new(), end: 0, retry_after: None };
        let call = |argument: &mut Map| {
            let answer = self.calls.query(argument);
            answer.map_err(|source| Error::command("query", &self.name, source))
        };
        collect(argument, call, |answer, granted| {
            table.end = answer.end_offset;
            table.retry_after = table.retry_after.max(retry_after(answer));
            let segments = granted.into_iter().map(|granted| granted.segment);
            table.segments.extend(segments);
            Ok(())
        })?;
        Ok(table)
    }

    /// State of the server and of this file.
    ///
    /// # Errors
    /// As [`File::query`].
    pub fn info(&self) -> Result<Info, Error> {
        let mut info = Info::new_zeroed();
        info.abi_version = ABI_VERSION;
        self.calls.info(&mut info).map_err(|source| Error::command("get the state of", &self.name, source))?;
        Ok(info)
    }

    /// Revokes every direct mapping of a range, of all processes.
    ///
    /// # Errors
    /// As [`File::query`]; EPERM for those who may not.
    pub fn revoke(&self, range: impl RangeBounds<u64>) -> Result<Revoked, Error> {
        let span = Span::new(range)?;
        self.revoke_span(span, 0)
    }

    /// As [`File::revoke`], and takes pins of the range back by force. For the owner of the mount only.
    ///
    /// # Errors
    /// As [`File::revoke`].
    pub fn revoke_pins(&self, range: impl RangeBounds<u64>) -> Result<Revoked, Error> {
        let span = Span::new(range)?;
        self.revoke_span(span, revoke_flags::PINS)
    }

    /// As [`File::revoke_mount`], and takes every pin of the mount back by force.
    ///
    /// # Errors
    /// As [`File::revoke`].
    pub fn revoke_mount_pins(&self) -> Result<Revoked, Error> {
        self.revoke_span(Span { offset: 0, length: 0 }, revoke_flags::WHOLE_MOUNT | revoke_flags::PINS)
    }

    /// Revokes every direct mapping of the mount this file is on.
    ///
    /// # Errors
    /// As [`File::revoke`].
    pub fn revoke_mount(&self) -> Result<Revoked, Error> {
        let everything = Span { offset: 0, length: 0 };
        self.revoke_span(everything, revoke_flags::WHOLE_MOUNT)
    }

    /// Revokes one mapping of the mount this file is on, by its number in the ledger. For the owner of the mount only.
    ///
    /// # Errors
    /// ENOENT: there is no such mapping; EPERM.
    pub fn revoke_mapping(&self, mapping: u64) -> Result<Revoked, Error> {
        let mut argument = Revoke::new_zeroed();
        argument.flags = revoke_flags::MAPPING;
        argument.mapping_id = mapping;
        self.revoke_as(argument)
    }

    fn revoke_span(&self, span: Span, flags: u32) -> Result<Revoked, Error> {
        let mut argument = Revoke::new_zeroed();
        argument.flags = flags;
        argument.offset = span.offset;
        argument.length = span.length;
        self.revoke_as(argument)
    }

    fn revoke_as(&self, mut argument: Revoke) -> Result<Revoked, Error> {
        argument.abi_version = ABI_VERSION;
        self.calls.revoke(&mut argument).map_err(|source| Error::command("revoke mappings of", &self.name, source))?;
        Ok(Revoked {
            grants: argument.revoked,
            enforced: argument.enforced,
            pins_cut: argument.pins_cut,
            pins_detached: argument.pins_detached,
            latency: Duration::from_micros(argument.latency_us),
        })
    }

    /// Size of the file, bytes.
    ///
    /// # Errors
    /// What fstat(2) answers.
    pub fn size(&self) -> Result<u64, Error> {
        self.calls.size().map_err(|source| Error::system("get the size of", &self.name, source))
    }

    /// Makes a range of this file, open for writing, share the blocks of `source`, open for reading: nothing is
    /// copied until one of the two is written. `length` 0 means to the end of the source; everything in multiples of
    /// 4096, but for a range that ends where both files end. Returns the bytes shared. Mappings for writing of the
    /// source's range and all mappings of this file's range end.
    ///
    /// # Errors
    /// EXDEV: the files are not on one mount. EINVAL: misaligned, beyond the source, or overlapping. EISDIR, EBADF,
    /// ETXTBSY, EFBIG, ENOSPC.
    pub fn reflink_from(&self, source: &File, source_offset: u64, offset: u64, length: u64) -> Result<u64, Error> {
        let mut argument = Reflink::new_zeroed();
        argument.abi_version = ABI_VERSION;
        argument.operation = reflink::NAME_SOURCE;
        source.calls.reflink(&mut argument).map_err(|error| Error::command("clone", &source.name, error))?;
        argument.operation = reflink::CLONE;
        argument.source_offset = source_offset;
        argument.destination_offset = offset;
        argument.length = length;
        self.calls.reflink(&mut argument).map_err(|error| Error::command("clone into", &self.name, error))?;
        Ok(argument.length)
    }

    /// Has the importer inside the server map and read a range (to the end of the file at most), in pieces: the memory of
    /// a BAR, which no process can be given, is reached there. Answers what it saw, and the ways the bytes went.
    ///
    /// # Errors
    /// EACCES: not open for reading. EMFILE: the user has as many sessions as one may. ENOTTY: not a file. EIO.
    pub fn read_by_server(&self, offset: u64, length: u64) -> Result<ServerReading, Error> {
        let mut reading = ServerReading::default();
        let end = offset.saturating_add(length).min(self.size()?);
        while offset + reading.bytes() < end {
            let mut argument = ReadByServer::new_zeroed();
            argument.abi_version = ABI_VERSION;
            argument.offset = offset + reading.bytes();
            argument.length = (end - argument.offset).min(READ_BY_SERVER_MAX);
            argument.crc32c = reading.crc32c;
            self.calls
                .read_by_server(&mut argument)
                .map_err(|error| Error::command("have the server read", &self.name, error))?;
            if argument.length == 0 {
                // It became shorter meanwhile.
                break;
            }
            reading.crc32c = argument.crc32c;
            reading.reason = reading.reason.or(Reason::from_code(argument.reason));
            reading.direct_window += argument.bytes_direct_window;
            reading.direct_bar += argument.bytes_direct_bar;
            reading.fallback += argument.bytes_fallback;
        }
        Ok(reading)
    }

    /// Reads through the filesystem until the buffer is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// What pread(2) answers.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<usize, Error> {
        let mut done = 0;
        while done < target.len() {
            match self.calls.read_at(offset.saturating_add(done as u64), &mut target[done..]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system("read", &self.name, error)),
            }
        }
        Ok(done)
    }

    /// Writes all of `source` through the filesystem.
    ///
    /// # Errors
    /// What pwrite(2) answers; part of the bytes may have been written.
    pub fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < source.len() {
            let result = match self.calls.write_at(offset.saturating_add(done as u64), &source[done..]) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            };
            match result {
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system("write", &self.name, error)),
            }
        }
        Ok(())
    }
}

/// The argument of a query or map.
pub(crate) fn request(span: Span, flags: MapFlags) -> Box<Map> {
    let mut argument = Box::new(Map::new_zeroed());
    argument.abi_version = ABI_VERSION;
    argument.flags = flags.bits();
    argument.offset = span.offset;
    argument.length = span.length;
    argument
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({})", self.name)
    }
}
