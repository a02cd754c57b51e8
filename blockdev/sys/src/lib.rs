//! The only crate of peerfs that contains `unsafe`: safe wrappers around the
//! kernel interfaces the rest is built on.
//!
//! Memory that another process or a device can change is never handed out as a
//! Rust reference; it is reached by copying calls only.

mod access;
mod address_space;
mod allocator;
mod atomics;
mod bar;
mod buffer;
mod capability;
mod cpu_mapping;
mod dma_memory;
mod dma_range;
mod file_view;
mod flush;
mod guarded;
mod interrupt;
mod ioctl;
mod kin;
mod lease;
mod lending;
mod locked_memory;
mod mapping;
mod memfd;
mod mmio;
mod passing;
mod persistent;
mod pidfd;
mod pieces;
mod plain_memory;
mod pool;
mod process;
mod protect;
mod random;
mod reservation;
#[cfg(target_arch = "x86_64")]
mod routine;
mod sequence;
mod shared_memory;
mod sigbus;
mod udmabuf;
mod uring;
mod vfio;
mod vma;
mod window;
mod xattr;

pub use access::AccessError;
pub use address_space::AddressSpace;
pub use allocator::give_back_free_memory;
pub use atomics::{ATOMICS, AtomicWord};
pub use bar::Bar;
pub use buffer::{AlignedBuf, BUFFER_ALIGN};
pub use capability::{Capability, in_initial_user_namespace};
pub use cpu_mapping::{CpuMapping, Protection, read_own_memory};
pub use dma_memory::DmaMemory;
pub use dma_range::DmaRange;
pub use file_view::{FileView, Sharing};
pub use guarded::Fault;
pub use interrupt::Interrupt;
pub use ioctl::ioctl;
pub use kin::{Kinship, ParkedSibling, run_in_child};
pub use lending::LentBuf;
pub use locked_memory::lockable_bytes;
pub use memfd::{WindowFile, private_memfd};
pub use passing::receive_with_fd;
pub use persistent::PersistentMapping;
pub use pidfd::ProcessHandle;
pub use plain_memory::PlainMemory;
pub use pool::BufferPool;
pub use process::{
    CacheState, cachestat, duplicate_descriptor, identity, name_descriptor, open_named, same_address_space, supplementary_groups,
    thread_group,
};
pub use random::random_u64;
pub use reservation::Reservation;
pub use sequence::SequencePage;
pub use udmabuf::{DmaBuf, has_udmabuf};
pub use uring::{Direction, Ended, Engine, EngineStats, IoQueue, Outcome, RegisteredWindow, Transfer};
pub use vfio::{DmaAccess, DmaMapping, IommuInfo, RegionInfo, VfioContainer, VfioDevice, VfioError};
pub use vma::{AddressMap, Vma};
pub use window::Window;
pub use xattr::{XATTR_VALUE_MAX, get_xattr, set_xattr};

/// Page size, bytes: what direct mappings and device page tables go by.
const PAGE: usize = 4096;
