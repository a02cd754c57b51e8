//! What can go wrong on the client's side.

use std::io;

use nix::errno::Errno;
use peerfs_abi::Reason;

/// Why a call failed. A range that is not direct is no error: it falls back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object has no peerfs server behind it.
    #[error("{object} is not on a peerfs mount: name a file or directory of one")]
    NotPeerfs {
        /// What was asked.
        object: String,
    },
    /// The session belongs to another address space, or has ended.
    #[error("the session belongs to another process or has ended: open a new one")]
    StaleContext,
    /// The server ended; its memory must not be used any more.
    #[error("the peerfs server of this mount has gone: mount the volume again and open a new session")]
    ServerGone,
    /// The direct mapping was taken back.
    #[error("the direct mapping at file offset {file_offset} was revoked: use read_at or write_at, or map again")]
    Revoked {
        /// Offset in the file, bytes.
        file_offset: u64,
    },
    /// The range was never direct, so there is no address.
    #[error("file offset {file_offset} is not mapped directly: {} ({})", reason.text(), reason.remedy())]
    Fallback {
        /// Offset in the file, bytes.
        file_offset: u64,
        /// Why.
        reason: Reason,
    },
    /// An atomic operation where none can be done.
    #[error("no atomic operation at file offset {file_offset}: {} ({})", reason.text(), reason.remedy())]
    AtomicUnsupported {
        /// Offset in the file, bytes.
        file_offset: u64,
        /// Why: [`Reason::AtomicUnsupported`], or why this range falls back, where nothing is atomic.
        reason: Reason,
    },
    /// An atomic operation on a word that is not naturally aligned.
    #[error("file offset {file_offset} is no multiple of {word_bytes}, the size of the word")]
    Misaligned {
        /// Offset in the file, bytes.
        file_offset: u64,
        /// Size of the word, bytes.
        word_bytes: usize,
    },
    /// The range is direct, but not in one piece.
    #[error("only {available} bytes from file offset {file_offset} on are in one piece: ask for each piece of Mapping::segments")]
    Split {
        /// Offset in the file, bytes.
        file_offset: u64,
        /// Length of the piece from there, bytes.
        available: u64,
    },
    /// The range is empty or leaves the mapping, the region or what the importer can address.
    #[error("the range {start}..{end} is empty or leaves {limit_start}..{limit_end}")]
    Range {
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// First byte allowed.
        limit_start: u64,
        /// One past the last byte allowed.
        limit_end: u64,
    },
    /// The mapping or region was not made for writing.
    #[error("the mapping is read-only: map with MapFlags::WRITE")]
    ReadOnly,
    /// The name of the importer does not fit.
    #[error("importer name {name:?} is longer than 31 bytes or contains NUL")]
    ImporterName {
        /// The name.
        name: String,
    },
    /// The importer's PCI address does not fit.
    #[error("PCI address {address:?}: write DOMAIN:BUS:DEVICE.FUNCTION, for example 0000:01:00.0")]
    PciAddress {
        /// The address.
        address: String,
    },
    /// The server's answer breaks the protocol.
    #[error("the server's answer is invalid: {what}; client and server may be of different versions")]
    Protocol {
        /// What is wrong.
        what: &'static str,
    },
    /// An address that cannot be accessed as a mapping for a device.
    #[error("address {address:#x}: {what}")]
    Address {
        /// Address in this process.
        address: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The processor's mapping at an address is no longer what was mapped for the device, which has lost it.
    #[error("the mapping at address {address:#x} was changed or removed: call map_address again for what is there now")]
    AddressChanged {
        /// Address in this process.
        address: u64,
    },
    /// The processor's mapping may not be changed while a device accesses it.
    #[error("an access guard is held at address {address:#x}: drop it before the mapping is changed")]
    AddressInUse {
        /// Start of the addresses, in this process.
        address: u64,
    },
    /// No free addresses inside the limits.
    #[error("no {length} free bytes are left between the addresses {low:#x} and {high:#x}: widen the limits or unmap something")]
    AddressSpaceFull {
        /// What was asked for, bytes.
        length: u64,
        /// First address allowed.
        low: u64,
        /// One past the last address allowed.
        high: u64,
    },
    /// A device address that is misaligned, taken, or not bound to a file.
    #[error("device address {address:#x}: {what}")]
    DeviceAddress {
        /// Device virtual address.
        address: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Any other failure of a system call.
    #[error("cannot {operation} {object}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// A failed plain system call.
    pub(crate) fn system(operation: &'static str, object: &str, source: io::Error) -> Error {
        match errno(&source) {
            Some(Errno::ENOTCONN | Errno::ECONNABORTED) => Error::ServerGone,
            _ => Error::System { operation, object: object.to_owned(), source },
        }
    }

    /// A failed peerfs ioctl.
    pub(crate) fn command(operation: &'static str, object: &str, source: io::Error) -> Error {
        match errno(&source) {
            Some(Errno::ESTALE) => Error::StaleContext,
            Some(Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::ENOSYS) => Error::NotPeerfs { object: object.to_owned() },
            _ => Error::system(operation, object, source),
        }
    }
}

/// The error number of a system call, if it came from one.
pub(crate) fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}
