//! A stretch of a window that the driver holds, and the order in which it lets go.

use std::ops::Range;
use std::sync::Arc;

use peerfs_client::AccessGuard;

use crate::{DriverError, Gpu, HostMemory};

/// A registered stretch of a file. Dropping it waits for the GPU, unregisters, and only then lets go of the memory: the pin
/// lives as long as a process has it mapped, and the driver's hold on the pages does not count.
pub(crate) struct Registration<G: Gpu> {
    gpu: Arc<G>,
    range: Range<u64>,
    /// Of the stretch in the registered pages, bytes.
    offset: usize,
    /// `None` once it has ended.
    held: Option<(G::Registration, AccessGuard)>,
}

impl<G: Gpu> Registration<G> {
    /// Registers what the guard keeps: the file's `range`.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn new(gpu: &Arc<G>, range: Range<u64>, guard: AccessGuard) -> Result<Registration<G>, DriverError> {
        let memory = HostMemory::of(&guard);
        if !memory.writable() && !gpu.registers_read_only() {
            let answer = "this GPU can only register what its process may write: map for writing".to_owned();
            return Err(DriverError { call: "CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED", answer });
        }
        let (pages, offset) = (gpu.register(memory)?, memory.offset());
        Ok(Registration { gpu: Arc::clone(gpu), range, offset, held: Some((pages, guard)) })
    }

    /// What of the file it is, bytes.
    pub(crate) fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// Runs a kernel on what lies at the file offset `at`, inside the range, and waits for its end. `false`: the window was cut
    /// before that, so what moved does not count.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn run(
        &self,
        at: u64,
        length: u64,
        kernel: impl FnOnce(&G::Registration, usize) -> Result<(), DriverError>,
    ) -> Result<bool, DriverError> {
        let Some((pages, guard)) = self.held.as_ref().filter(|(_, guard)| guard.still_valid()) else {
            return Ok(false);
        };
        // Both fit in the address space: they lie in memory that is mapped.
        kernel(pages, self.offset + (at - self.range.start) as usize)?;
        self.gpu.synchronize()?;
        let counts = guard.still_valid();
        if counts {
            guard.count(length);
        }
        Ok(counts)
    }

    /// Ends it, as dropping does.
    ///
    /// # Errors
    /// What the driver answers. The memory stays mapped then if the driver may hold it still, and the pin with it, until the
    /// process ends: else the server would take the pin as over, and use its blocks again while the GPU writes.
    pub(crate) fn end(&mut self) -> Result<(), DriverError> {
        let Some((pages, guard)) = self.held.take() else { return Ok(()) };
        let stopped = self.gpu.synchronize();
        let released = self.gpu.unregister(pages);
        match released {
            Ok(()) => drop(guard),
            Err(_) => std::mem::forget(guard),
        }
        released.and(stopped)
    }
}

impl<G: Gpu> Drop for Registration<G> {
    fn drop(&mut self) {
        // What can be done about a failure is done in it.
        let _ = self.end();
    }
}
