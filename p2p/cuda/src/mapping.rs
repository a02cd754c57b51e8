//! A mapping whose windows are registered with a GPU.

use std::ops::{AddAssign, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peerfs_client::{Attestation, File, MapFlags, Mapping, Revocation, Session};

use crate::registration::Registration;
use crate::{DriverError, Error, Gpu, GpuBuffer};

/// A pinned range of a file that a GPU reads, and where mapped so writes, by kernels.
///
/// A stretch that the filesystem does not map, or the driver does not register, goes through the processor and
/// cuMemcpyHtoD or cuMemcpyDtoH: the same calls move the same bytes.
///
/// Nothing takes a pin back but force. Then the session's thread waits for the kernel that runs, unregisters, and acknowledges;
/// from then on the range goes through the filesystem. A GPU that does not stop in time is not stopped by the
/// cut, unlike a processor: the driver holds the pages, so the kernel goes on with memory that is no file's any more. What it has
/// read does not count and is read again. What it stores is lost, or, between the cut and the end of the write-back,
/// still reaches the range that it was allowed to write; never anything else.
///
/// Dropping it waits for the GPU, unregisters, and then ends the pin.
pub struct GpuMapping<G: Gpu> {
    gpu: Arc<G>,
    mapping: Mapping,
    writable: bool,
    registrations: Arc<Registrations<G>>,
    unregistered: Vec<(Range<u64>, DriverError)>,
}

/// Shared with the callback, which may end them.
struct Registrations<G: Gpu>(Mutex<Vec<Registration<G>>>);

/// Bytes moved to or from a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// Through registered windows, by kernels of the GPU, bytes.
    pub by_gpu: u64,
    /// By the processor, to or from memory that the GPU's copy engine reaches, by path.
    pub by_processor: Attestation,
}

impl Moved {
    /// All of it, bytes.
    pub fn total(&self) -> u64 {
        self.by_gpu + self.by_processor.total()
    }
}

impl AddAssign for Moved {
    fn add_assign(&mut self, other: Moved) {
        self.by_gpu += other.by_gpu;
        self.by_processor += other.by_processor;
    }
}

/// What is next of a transfer.
enum Part {
    /// A kernel has moved so many bytes.
    Done(u64),
    /// So many bytes are the processor's.
    Left(u64),
}

impl<G: Gpu> GpuMapping<G> {
    /// Pins the range of a file and registers what is direct of it. `flags` may have WRITE; PIN is added. The importer of
    /// `session` should be [`crate::spec`]'s.
    ///
    /// # Errors
    /// As [`Session::map`]. Refused stretches are none.
    pub fn new(
        gpu: &Arc<G>,
        session: &Session,
        file: &File,
        range: impl RangeBounds<u64>,
        flags: MapFlags,
    ) -> Result<GpuMapping<G>, Error> {
        let mapping = session.map(file, range, flags | MapFlags::PIN)?;
        let registrations = Arc::new(Registrations(Mutex::default()));
        let told = Arc::clone(&registrations);
        // Before the first is registered, so that none is missed.
        mapping.on_revoke(move |revocation| told.end_within(revocation));
        let writable = flags.writes();
        let mut whole = GpuMapping { gpu: Arc::clone(gpu), mapping, writable, registrations, unregistered: Vec::new() };
        whole.register()?;
        Ok(whole)
    }

    fn register(&mut self) -> Result<(), Error> {
        for segment in self.mapping.segments().iter().filter(|segment| segment.pin.is_some()) {
            let range = segment.file_offset..segment.end();
            // A revocation waits for the lock, and finds the stretch; or it has come before, and there is no access.
            let mut registrations = self.registrations.lock();
            let guard = match self.mapping.access(range.clone()) {
                Err(peerfs_client::Error::Revoked { .. }) => continue,
                other => other?,
            };
            match Registration::new(&self.gpu, range.clone(), guard) {
                Ok(registration) => registrations.push(registration),
                Err(error) => self.unregistered.push((range, error)),
            }
        }
        Ok(())
    }

    /// The pin behind it.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Bytes that are registered at the moment.
    pub fn registered_bytes(&self) -> u64 {
        self.registrations.lock().iter().map(|registration| length(registration.range())).sum()
    }

    /// Stretches that are pinned but that the driver has not registered, and why.
    pub fn unregistered(&self) -> &[(Range<u64>, DriverError)] {
        &self.unregistered
    }

    /// Moves `length` bytes from the file offset on to the start of the buffer; fewer where the file ends before.
    ///
    /// # Errors
    /// [`Error::TooLong`], a failure of the GPU, or as [`Mapping::read_at`].
    pub fn read(&self, offset: u64, length: u64, buffer: &mut GpuBuffer<G>) -> Result<Moved, Error> {
        buffer.check(length)?;
        let mut moved = Moved::default();
        while moved.total() < length {
            let (done, left) = (moved.total(), length - moved.total());
            let part = self.part(offset + done, left, |pages, from, length| {
                self.gpu.load(pages, from, &buffer.memory, done as usize, length)
            })?;
            match part {
                Part::Done(count) => moved.by_gpu += count,
                Part::Left(count) => {
                    let read = self.read_by_processor(offset + done, count, buffer, done as usize)?;
                    moved.by_processor += read;
                    if read.total() < count {
                        break;
                    }
                }
            }
        }
        Ok(moved)
    }

    /// Moves the first `length` bytes of the buffer to the file offset.
    ///
    /// # Errors
    /// [`Error::TooLong`], a failure of the GPU, or as [`Mapping::write_at`].
    pub fn write(&self, offset: u64, length: u64, buffer: &mut GpuBuffer<G>) -> Result<Moved, Error> {
        if !self.writable {
            return Err(peerfs_client::Error::ReadOnly.into());
        }
        buffer.check(length)?;
        let mut moved = Moved::default();
        while moved.total() < length {
            let (done, left) = (moved.total(), length - moved.total());
            let part = self.part(offset + done, left, |pages, to, length| {
                self.gpu.store(&buffer.memory, done as usize, pages, to, length)
            })?;
            match part {
                Part::Done(count) => moved.by_gpu += count,
                Part::Left(count) => {
                    moved.by_processor += self.write_by_processor(offset + done, count, buffer, done as usize)?;
                }
            }
        }
        Ok(moved)
    }

    /// The longest part from `at` on that goes one way; a kernel does it at once, on pages from an offset on.
    fn part(
        &self,
        at: u64,
        left: u64,
        kernel: impl FnOnce(&G::Registration, usize, usize) -> Result<(), DriverError>,
    ) -> Result<Part, Error> {
        let registrations = self.registrations.lock();
        let Some(registration) = registrations.iter().find(|registration| registration.range().contains(&at)) else {
            let starts = registrations.iter().map(|registration| registration.range().start);
            let next = starts.filter(|start| *start > at).min();
            return Ok(Part::Left(next.map_or(left, |next| left.min(next - at))));
        };
        let count = left.min(registration.range().end - at);
        let done = registration.run(at, count, |pages, offset| kernel(pages, offset, count as usize))?;
        Ok(if done { Part::Done(count) } else { Part::Left(count) })
    }

    fn read_by_processor(&self, at: u64, length: u64, buffer: &mut GpuBuffer<G>, to: usize) -> Result<Attestation, Error> {
        let mut moved = Attestation::default();
        while moved.total() < length {
            let done = moved.total();
            let count = piece(buffer.staging.len(), length - done);
            let read = self.mapping.read_at(at + done, &mut buffer.staging[..count])?;
            moved += read;
            let came = piece(count, read.total());
            self.gpu.upload(&buffer.staging[..came], &buffer.memory, to + done as usize)?;
            if came < count {
                break;
            }
        }
        Ok(moved)
    }

    fn write_by_processor(&self, at: u64, length: u64, buffer: &mut GpuBuffer<G>, from: usize) -> Result<Attestation, Error> {
        let mut moved = Attestation::default();
        while moved.total() < length {
            let done = moved.total();
            let count = piece(buffer.staging.len(), length - done);
            self.gpu.download(&buffer.memory, from + done as usize, &mut buffer.staging[..count])?;
            moved += self.mapping.write_at(at + done, &buffer.staging[..count])?;
        }
        Ok(moved)
    }

    /// Ends registrations and pin, as dropping does, and answers what has moved.
    ///
    /// # Errors
    /// The driver did not let go: the pin stays until the process ends. Or as [`Mapping::unmap`].
    pub fn end(self) -> Result<Attestation, Error> {
        let released = self.registrations.end();
        let moved = self.mapping.end()?;
        released?;
        Ok(moved)
    }
}

impl<G: Gpu> Drop for GpuMapping<G> {
    fn drop(&mut self) {
        // The pin comes after this, with the fields. A failure leaves it in place.
        let _ = self.registrations.end();
    }
}

impl<G: Gpu> Registrations<G> {
    /// Held for one kernel, or one registration, at most.
    fn lock(&self) -> MutexGuard<'_, Vec<Registration<G>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them; answers the first failure.
    fn end(&self) -> Result<(), DriverError> {
        let mut all = std::mem::take(&mut *self.lock());
        all.iter_mut().map(Registration::end).fold(Ok(()), Result::and)
    }

    /// Those that a revocation concerns.
    fn end_within(&self, revocation: &Revocation) {
        let end = revocation.file_offset.saturating_add(revocation.length);
        self.lock().retain(|registration| {
            let range = registration.range();
            range.end <= revocation.file_offset || range.start >= end
        });
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

/// The smaller of the two.
fn piece(room: usize, bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(room).min(room)
}
