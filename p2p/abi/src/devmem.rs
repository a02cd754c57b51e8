//! Device memory: memory of a device that a session is lent at run time.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ioctl::command;

/// On a session: allocates, grows, frees or looks at device memory ([`DeviceMemory`]). ENODEV: the mount has none.
pub const DEVICE_MEMORY: u32 = command(9, size_of::<DeviceMemory>());

/// Prefix of the file of an allocation in the control directory; its number follows in decimal. The file is read and
/// written directly and takes `QUERY`, `MAP`, `REVOKE` and `INFO` like any file.
pub const DEVICE_MEMORY_PREFIX: &str = "devmem-";

/// What is to be done.
pub mod device_memory_call {
    /// Allocates `bytes` of zeros, charged to the calling process. They end with the session.
    pub const ALLOCATE: u32 = 1;
    /// Ends an allocation; its mappings are revoked first.
    pub const FREE: u32 = 2;
    /// Grows an allocation to `bytes`; the new part is zero.
    pub const GROW: u32 = 3;
    /// Only answers.
    pub const LOOK: u32 = 4;
}

/// Argument of [`DEVICE_MEMORY`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceMemory {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: what is to be done ([`device_memory_call`]).
    pub call: u32,
    /// In: the allocation, 0 for `ALLOCATE`. Out: the allocation, as in the name of its file.
    pub id: u64,
    /// In: size to allocate or to grow to, bytes. Out: the size, a multiple of 4096; 0 after `FREE`.
    pub bytes: u64,
    /// In (`ALLOCATE`): permission bits of the file, for others to open it (0600: none but this user).
    pub mode: u32,
    /// Out: 1 while it is in main memory: the device had no room.
    pub migrated: u32,
}

const _: () = assert!(size_of::<DeviceMemory>() == 32);

/// File name of an allocation in the control directory.
pub fn device_memory_name(id: u64) -> String {
    format!("{DEVICE_MEMORY_PREFIX}{id}")
}

/// The inverse of [`device_memory_name`].
pub fn parse_device_memory_name(name: &str) -> Option<u64> {
    let id = name.strip_prefix(DEVICE_MEMORY_PREFIX)?.parse().ok()?;
    (device_memory_name(id) == name).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_refuse_others() {
        for id in [0, 1, 77, u64::MAX] {
            assert_eq!(parse_device_memory_name(&device_memory_name(id)), Some(id));
        }
        for bad in ["devmem-", "devmem-01", "devmem-+1", "devmem--1", "devmem-1 ", "devmem-18446744073709551616", "grant-1"] {
            assert_eq!(parse_device_memory_name(bad), None, "{bad}");
        }
    }
}
