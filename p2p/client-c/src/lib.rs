//! The client library for programs that are not written in Rust: what `peerfs_client.h` declares.
//!
//! Nothing is decided here: arguments are checked, and the calls of `peerfs-client` are made. No
//! panic leaves the library, and every failure has a code and a message. Nullable references
//! and boxes have the representation of C pointers, so most functions need no unsafe code; what is left is
//! turning a C string, or a pointer and a length, into a slice, the calls that change the caller's own memory map, and giving
//! back what callbacks may use until then.

mod address;
mod callback;
mod devmem;
mod failure;
mod file;
mod guard;
mod mapping;
mod raw;
mod session;
mod values;

const fn may_be_shared<T: Send + Sync>() {}

/// What the header says of threads.
const _: () = {
    may_be_shared::<file::PeerfsFile>();
    may_be_shared::<session::PeerfsSession>();
    may_be_shared::<mapping::PeerfsMapping>();
    may_be_shared::<guard::PeerfsGuard>();
    may_be_shared::<address::PeerfsAddresses>();
    may_be_shared::<devmem::PeerfsDevmem>();
};
