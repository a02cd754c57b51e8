//! Memory of the GPU that files are moved to and from.

use std::sync::Arc;

use peerfs_client::File;

use crate::{Error, Gpu};

/// Page-locked memory for what goes through the processor, bytes.
const STAGING_BYTES: usize = 4 << 20;

/// Memory of the GPU, and page-locked memory of this process for bytes that a kernel cannot reach.
pub struct GpuBuffer<G: Gpu> {
    pub(crate) memory: G::Memory,
    pub(crate) staging: G::Staging,
    capacity: usize,
    gpu: Arc<G>,
}

impl<G: Gpu> GpuBuffer<G> {
    /// Allocates `capacity` bytes (at least 1) of the GPU, zeroed, and at most 4 MiB here.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn new(gpu: &Arc<G>, capacity: usize) -> Result<GpuBuffer<G>, Error> {
        let capacity = capacity.max(1);
        let (memory, staging) = (gpu.allocate(capacity)?, gpu.stage(capacity.min(STAGING_BYTES))?);
        Ok(GpuBuffer { memory, staging, capacity, gpu: Arc::clone(gpu) })
    }

    /// Size, bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The ordinary way, without a mapping: read(2) into page-locked memory and cuMemcpyHtoD from there. Answers the bytes
    /// moved, fewer than `length` where the file ends.
    ///
    /// # Errors
    /// [`Error::TooLong`], what pread(2) and the driver answer.
    pub fn fill_from(&mut self, file: &File, offset: u64, length: u64) -> Result<u64, Error> {
        let length = self.check(length)?;
        let mut done = 0;
        while done < length {
            let count = self.staging.len().min(length - done);
            let read = file.read_at(offset + done as u64, &mut self.staging[..count])?;
            self.gpu.upload(&self.staging[..read], &self.memory, done)?;
            done += read;
            if read < count {
                break;
            }
        }
        Ok(done as u64)
    }

    /// Hands the first `length` bytes to `each`, in order and in pieces, as they come back from the GPU.
    ///
    /// # Errors
    /// [`Error::TooLong`], what the driver answers.
    pub fn for_each_piece(&mut self, length: u64, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let length = self.check(length)?;
        let mut done = 0;
        while done < length {
            let count = self.staging.len().min(length - done);
            self.gpu.download(&self.memory, done, &mut self.staging[..count])?;
            each(&self.staging[..count]);
            done += count;
        }
        Ok(())
    }

    pub(crate) fn check(&self, length: u64) -> Result<usize, Error> {
        let fits = usize::try_from(length).ok().filter(|length| *length <= self.capacity);
        fits.ok_or(Error::TooLong { length, capacity: self.capacity })
    }
}
