//! The seam between the mapping engine and what is mapped.

use peerfs_abi::Reason;

use crate::types::{CacheProbe, MapRequest, ObjectId, Range, Survey};

/// What a filesystem, or a pool of device memory, tells the engine about its
/// objects. The engine calls it with none of its own locks held.
pub trait Exporter: Send + Sync {
    /// A snapshot of `range` of the request's object, for decisions. No side effects. `None`: no such object.
    /// `request.cache_probe` shows the page cache, `request.handle_writable` what the caller may do.
    fn survey(&self, request: &MapRequest, range: Range) -> Option<Survey>;

    /// As [`Exporter::survey`], after [`Exporter::quiesce`] has proved that nothing is cached. Those who change blocks
    /// may wait for this call, so it must not wait for reads and writes of the object, as a look at the cache may.
    fn survey_quiesced(&self, request: &MapRequest, range: Range) -> Option<Survey> {
        self.survey(request, range)
    }

    /// A map of the object begins: an exporter that can move its objects makes this one reachable now, if there is room.
    /// May take long. Files stay where they are.
    fn prepare(&self, _object: ObjectId) {}

    /// Writes back and drops the CPU's cached pages of the range, and proves that none is left. May take long and
    /// may cause reads and writes of the object, so it is never called from a thread that serves them.
    fn quiesce(&self, object: ObjectId, range: Range, probe: Option<CacheProbe>) -> Result<(), Reason>;

    /// Its policy lets cached pages be dropped, also such that nobody asked to map. A hint, looked at without a lock.
    fn drops_pages(&self, _object: ObjectId) -> bool {
        true
    }

    /// No program has the object open through the page cache, and its policy lets pages be dropped: nobody minds when
    /// more of it is mapped than was asked for. A hint, looked at without a lock.
    fn cpu_idle(&self, _object: ObjectId) -> bool {
        true
    }

    /// A grant for writing was given: the object's times and set-id bits change as by an mmap store.
    fn write_granted(&self, object: ObjectId) -> Result<(), Reason>;

    /// A pin that kept device ranges (bytes) out of reuse has ended: what of them the object no longer uses may be
    /// given to others. An exporter that never frees below a pin has nothing to do.
    fn release_blocks(&self, _object: ObjectId, _device_ranges: &[Range]) {}
}
