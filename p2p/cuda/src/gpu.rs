//! The seam: what is asked of the CUDA driver.

use std::fmt;
use std::marker::PhantomData;
use std::ops::DerefMut;

use peerfs_client::AccessGuard;

use crate::DriverError;

/// Size of the pages that are registered, bytes.
const PAGE_BYTES: usize = 4096;

/// Whole pages of a window, as long as a guard keeps them mapped. Nothing in the program has a reference to them.
#[derive(Clone, Copy)]
pub struct HostMemory<'g> {
    address: usize,
    length: usize,
    /// Of the guard's first byte, from `address` on.
    offset: usize,
    writable: bool,
    guard: PhantomData<&'g AccessGuard>,
}

impl<'g> HostMemory<'g> {
    /// The pages that the guard's range touches.
    pub(crate) fn of(guard: &'g AccessGuard) -> HostMemory<'g> {
        let start = guard.as_ptr() as usize;
        let offset = start % PAGE_BYTES;
        let length = (offset + guard.len()).next_multiple_of(PAGE_BYTES);
        HostMemory { address: start - offset, length, offset, writable: guard.as_mut_ptr().is_some(), guard: PhantomData }
    }

    /// Address of the first page in this process.
    pub fn address(self) -> usize {
        self.address
    }

    /// Length, bytes: a multiple of 4096.
    pub fn length(self) -> usize {
        self.length
    }

    /// Where in the pages the range begins, bytes.
    pub fn offset(self) -> usize {
        self.offset
    }

    /// May the GPU write it?
    pub fn writable(self) -> bool {
        self.writable
    }
}

impl fmt::Debug for HostMemory<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({:#x}, {} bytes, writable: {})", self.address, self.length, self.writable)
    }
}

/// A GPU, as far as an importer needs it. All offsets and lengths are bytes; a range outside its object is an error. Kernels
/// run one after the other.
pub trait Gpu: Send + Sync + 'static {
    /// Pages that the driver holds and the GPU addresses. It ends by [`Gpu::unregister`] only.
    type Registration: Send + Sync;
    /// Memory of the GPU, given back when dropped.
    type Memory: Send + Sync;
    /// Page-locked memory of this process, given back when dropped.
    type Staging: DerefMut<Target = [u8]> + Send + Sync;

    /// Can it register memory that this process may only read?
    fn registers_read_only(&self) -> bool;

    /// Has the driver hold the pages for reading, and where they are writable for writing, until they are unregistered.
    ///
    /// # Errors
    /// What the driver answers; nothing is registered then.
    fn register(&self, memory: HostMemory<'_>) -> Result<Self::Registration, DriverError>;

    /// Has the driver let go of the pages. No kernel may use them any more.
    ///
    /// # Errors
    /// What the driver answers; it may hold the pages until the process ends then.
    fn unregister(&self, registration: Self::Registration) -> Result<(), DriverError>;

    /// Allocates memory of the GPU, zeroed.
    ///
    /// # Errors
    /// What the driver answers.
    fn allocate(&self, length: usize) -> Result<Self::Memory, DriverError>;

    /// Allocates page-locked memory, zeroed.
    ///
    /// # Errors
    /// What the driver answers.
    fn stage(&self, length: usize) -> Result<Self::Staging, DriverError>;

    /// Starts a kernel that reads `length` bytes of registered pages from `from` on into memory of the GPU.
    ///
    /// # Errors
    /// What the driver answers.
    fn load(
        &self,
        pages: &Self::Registration,
        from: usize,
        memory: &Self::Memory,
        to: usize,
        length: usize,
    ) -> Result<(), DriverError>;

    /// Starts a kernel that writes `length` bytes of the GPU's memory from `from` on into registered pages.
    ///
    /// # Errors
    /// What the driver answers.
    fn store(
        &self,
        memory: &Self::Memory,
        from: usize,
        pages: &Self::Registration,
        to: usize,
        length: usize,
    ) -> Result<(), DriverError>;

    /// Copies to memory of the GPU (cuMemcpyHtoD), and returns when it is there.
    ///
    /// # Errors
    /// What the driver answers.
    fn upload(&self, source: &[u8], memory: &Self::Memory, to: usize) -> Result<(), DriverError>;

    /// Copies from memory of the GPU (cuMemcpyDtoH), and returns when it is here.
    ///
    /// # Errors
    /// What the driver answers.
    fn download(&self, memory: &Self::Memory, from: usize, target: &mut [u8]) -> Result<(), DriverError>;

    /// Waits until all kernels have ended.
    ///
    /// # Errors
    /// What the driver answers, also of a kernel that failed.
    fn synchronize(&self) -> Result<(), DriverError>;
}
