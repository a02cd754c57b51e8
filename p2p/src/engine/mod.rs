//! The mapping engine.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use peerfs_abi::Trigger;
use peerfs_blockdev::{BlockDevice, DeviceError, DeviceEvent};

use crate::api::*;
use crate::exporter::Exporter;
use crate::types::*;

mod ledger;
pub use ledger::{ContextRecord, Latency, MappingRecord, ObjectCounters, RefusalRecord, Snapshot, TriggerRecord};

/// The engine of one mount.
pub struct Engine;

/// Keeps a range closed to new maps until it is dropped.
pub struct ClosedRange;

impl ClosedRange {
    /// What closing it took.
    pub fn report(&self) -> RevokeReport {
        unimplemented!()
    }
}

impl Engine {
    /// An engine with no object yet.
    pub fn new(_config: EngineConfig, _parts: EngineParts) -> Arc<Engine> {
        unimplemented!()
    }
    /// Names the exporter, once. Until then, and after it is gone, every map answers `NoObject`.
    pub fn attach_exporter(&self, _exporter: Weak<dyn Exporter>) {
        unimplemented!()
    }
    /// Reacts to events of the device from now on, on a thread of its own.
    pub fn subscribe(self: &Arc<Self>, _device: &dyn BlockDevice) {
        unimplemented!()
    }
    /// A client opened the session file.
    pub fn open_session(&self, _uid: u32, _wake: Wake) -> Result<SessionId, SessionError> {
        unimplemented!()
    }
    /// Binds an importer to the caller's address space.
    pub fn bind_context(
        &self,
        _session: SessionId,
        _importer: Importer,
        _owner: Client,
        _mem: Option<OwnedFd>,
    ) -> Result<BoundContext, BindError> {
        unimplemented!()
    }
    /// Takes up to `max` events off a session's queue.
    pub fn events(&self, _session: SessionId, _max: usize) -> Vec<Event> {
        unimplemented!()
    }
    /// A session's queue is not empty.
    pub fn has_events(&self, _session: SessionId) -> bool {
        unimplemented!()
    }
    /// The importer has stopped using a grant. False: no such grant of this session.
    pub fn ack(&self, _session: SessionId, _grant: GrantId) -> bool {
        unimplemented!()
    }
    /// The last descriptor of the session was closed: all it holds ends at once.
    pub fn close_session(&self, _session: SessionId) {
        unimplemented!()
    }
    /// Looks a grant up.
    pub fn grant(&self, _id: GrantId) -> Option<GrantView> {
        unimplemented!()
    }
    /// Hands a grant's descriptor over, once. `writable`: as the caller opens it.
    pub fn take_grant(&self, _id: GrantId, _client: Client, _writable: bool) -> Result<OwnedFd, GrantError> {
        unimplemented!()
    }
    /// Ends direct mappings of the range and keeps it closed.
    pub fn close_range(self: &Arc<Self>, _object: ObjectId, _range: Range, _trigger: Trigger) -> ClosedRange {
        unimplemented!()
    }
    /// Before a cached READ is answered or a cached WRITE carried out.
    pub fn cpu_access(&self, _object: ObjectId, _range: Range, _access: CpuAccess) {
        unimplemented!()
    }
    /// Before the first writable cached handle is opened (count it in `cpu_writers` first).
    pub fn writable_cached_open(&self, _object: ObjectId) {
        unimplemented!()
    }
    /// Copies what peers wrote to the device.
    pub fn flush_object(&self, _object: ObjectId) -> Result<(), DeviceError> {
        unimplemented!()
    }
    /// The size changed.
    pub fn size_changed(&self, _object: ObjectId, _old: u64, _new: u64) {
        unimplemented!()
    }
    /// A mapping of the object (`None`: of any) exists or is being made.
    pub fn is_mapped(&self, _object: Option<ObjectId>) -> bool {
        unimplemented!()
    }
    /// Live mappings of an object that hold at least one grant.
    pub fn mapping_count(&self, _object: Option<ObjectId>) -> u64 {
        unimplemented!()
    }
    /// Revokes a range of one object, or (`None`) every mapping.
    pub fn revoke(&self, _object: Option<ObjectId>, _range: Range, _trigger: Trigger) -> RevokeReport {
        unimplemented!()
    }
    /// Refuses new maps for good, revokes everything, writes everything back.
    pub fn shut_down(&self) -> Result<(), DeviceError> {
        unimplemented!()
    }
    /// What [`Engine::subscribe`] calls.
    pub fn device_event(&self, _event: &DeviceEvent) {
        unimplemented!()
    }
    /// The device works again.
    pub fn clear_device_events(&self) {
        unimplemented!()
    }
    /// The ledger.
    pub fn snapshot(&self) -> Snapshot {
        unimplemented!()
    }
    /// Bytes moved for an object.
    pub fn object_counters(&self, _object: ObjectId) -> ObjectCounters {
        unimplemented!()
    }
    /// Revocations since the start, and those of them that were enforced.
    pub fn revocation_totals(&self) -> (u64, u64) {
        unimplemented!()
    }
}

impl DeviceMapOps for Engine {
    fn device_query(&self, _asker: Asker<'_>, _request: &MapRequest, _segments_max: usize) -> Result<QueryAnswer, MapError> {
        unimplemented!()
    }
    fn device_map(&self, _call: &MapCall<'_>) -> Result<MapAnswer, MapError> {
        unimplemented!()
    }
    fn device_unmap(&self, _call: &UnmapCall) -> Result<(), MapError> {
        unimplemented!()
    }
}
