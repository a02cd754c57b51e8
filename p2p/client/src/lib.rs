//! What programs link to let a device reach the blocks of a file.
//!
//! ```no_run
//! use peerfs_client::{File, ImporterSpec, MapFlags, Session};
//!
//! # fn main() -> Result<(), peerfs_client::Error> {
//! let file = File::open("/mnt/peer/model.bin")?;
//! let session = Session::open("/mnt/peer", ImporterSpec::cpu())?;
//! let mapping = session.map(&file, .., MapFlags::empty())?;
//! let mut buffer = vec![0; 4096];
//! let moved = mapping.read_at(0, &mut buffer)?;
//! println!("{} bytes directly, {} by fallback", moved.direct(), moved.fallback);
//! # Ok(())
//! # }
//! ```
//!
//! A direct mapping may be revoked at any moment. The copying calls of
//! [`Mapping`] notice and serve the same bytes through the filesystem, so a
//! program needs no second code path. A program that hands addresses to a device
//! takes an [`AccessGuard`] and has itself told by [`Mapping::on_revoke`].
//!
//! Each [`Session`] has a service thread that answers revocations, so that a
//! single-threaded program's own truncate(2) is acknowledged too. A session
//! belongs to the process that opened it: in a fork child every call on it
//! answers [`Error::StaleContext`], while a [`File`] keeps working.

mod access;
mod atomics;
mod attestation;
mod backend;
mod by_address;
mod callbacks;
pub mod cpu;
mod device_copy;
mod device_memory;
mod error;
mod file;
mod grant;
mod importer;
mod kernel;
mod mapping;
mod range;
mod registry;
mod segment;
mod server_reading;
mod service;
mod session;
pub mod svm;
mod waiting;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use access::AccessGuard;
pub use attestation::Attestation;
pub use by_address::{AddressGuard, AddressMapping, Backing, Stretch};
pub use device_copy::{Copied, CopyDirection, CopyRequest};
pub use device_memory::DeviceMemory;
pub use error::Error;
pub use file::{File, Revoked};
pub use grant::Revocation;
pub use importer::ImporterSpec;
pub use mapping::{Mapping, Pinned};
pub use peerfs_abi::{ImporterFlags, MapFlags, Path, REVOKED, Reason, ReasonSet, Stage, Trigger, TriggerSet, ioctl::Info};
pub use peerfs_sys::{AtomicWord, CpuMapping, Protection, Sharing};
pub use segment::{DecisionTable, PinKind, Segment};
pub use server_reading::ServerReading;
pub use session::{Session, SessionOptions};
