//! The client library for programs that are not written in Rust: what `peerfs_client.h` declares.
//!
//! Nothing is decided here: arguments are checked, and the calls of `peerfs-client` are made. No
//! panic leaves the library, and every failure has a code and a message. Nullable references
//! and boxes have the representation of C pointers, so most functions need no unsafe code; what is left is
//! turning a C string, or a pointer and a length, into a slice, and the calls that change the caller's own memory map.

mod address;
mod failure;
mod file;
mod guard;
mod mapping;
mod raw;
mod session;
mod values;
