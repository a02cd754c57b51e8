//! Requests to the mapping engine and its answers.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use peerfs_abi::{Reason, ioctl};
use peerfs_blockdev::{Aperture, PathKind};

use crate::clock::Clock;
use crate::custody::Custody;
use crate::engine::PinQuota;
use crate::moved::Moved;
use crate::types::{ContextId, Decision, GrantId, Importer, MapRequest, MappingId, ObjectId, Range};

/// The unit of a grant: files are cut into aligned chunks of this many bytes.
pub const CHUNK_BYTES: u64 = 2 << 20;

/// One open of the session file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A process, as the transport identified it for one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    /// Process id (thread group).
    pub tgid: u32,
    /// User id.
    pub uid: u32,
}

/// Called, with no lock held, after an event was queued for a session.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Gives context ids that are never reused on the volume, also across restarts.
pub trait ContextIds: Send + Sync {
    /// The next id; `None` when it could not be recorded durably.
    fn next_id(&self) -> Option<u64>;
}

/// Bounds and times of the engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// How long an importer may take to acknowledge a revocation.
    pub deadline: Duration,
    /// How long a map waits for a closed range, or for another map of the same chunk.
    pub busy_wait: Duration,
    /// How often a map of a chunk that the CPU keeps touching is tried.
    pub map_attempts: u32,
    /// More revocations than this of one chunk by CPU access or aperture pressure ...
    pub thrash_revocations: usize,
    /// ... within this time make maps of it answer `Busy`.
    pub thrash_window: Duration,
    /// A window is evicted only when it was granted or reported on at least this long ago.
    pub evict_idle: Duration,
    /// How often pins are looked at for whether anybody still holds them.
    pub pin_poll: Duration,
    /// What may be pinned on the whole mount.
    pub pin_quota: PinQuota,
    /// What one user may pin.
    pub pin_quota_user: PinQuota,
    /// Hand writable pins out as dma-bufs where the kernel can make them; the transport must be able to carry them.
    pub dmabuf_pins: bool,
    /// Sessions of the mount.
    pub sessions_max: usize,
    /// Sessions of one user.
    pub sessions_per_user: usize,
    /// Contexts of one session.
    pub contexts_per_session: usize,
    /// Live grants of one session.
    pub grants_per_session: usize,
    /// Live mappings of one session.
    pub mappings_per_session: usize,
    /// Live mappings of one user.
    pub mappings_per_user: usize,
    /// Live mappings of the mount.
    pub mappings_max: usize,
    /// Events queued for one session; a client that lets them pile up is cut at the deadline without being told.
    pub events_per_session: usize,
    /// Refusals kept for the ledger.
    pub refusals_kept: usize,
    /// Objects with attestation counters.
    pub counted_objects: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            deadline: Duration::from_millis(100),
            busy_wait: Duration::from_millis(200),
            map_attempts: 4,
            thrash_revocations: 8,
            thrash_window: Duration::from_secs(1),
            evict_idle: Duration::from_millis(20),
            pin_poll: Duration::from_millis(200),
            pin_quota: PinQuota::Percent(25),
            pin_quota_user: PinQuota::Percent(25),
            dmabuf_pins: false,
            sessions_max: 8192,
            sessions_per_user: 1024,
            contexts_per_session: 64,
            grants_per_session: 1024 * 1024,
            mappings_per_session: 1024 * 1024,
            mappings_per_user: 2 * 1024 * 1024,
            mappings_max: 4 * 1024 * 1024,
            events_per_session: 1024 * 1024,
            refusals_kept: 256,
            counted_objects: 64 * 1024,
        }
    }
}

/// What the engine works with.
pub struct EngineParts {
    /// The device's aperture, if it has one.
    pub aperture: Option<Arc<dyn Aperture>>,
    /// Keeper of windows beyond the death of this process.
    pub custody: Arc<dyn Custody>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Source of context ids.
    pub context_ids: Arc<dyn ContextIds>,
}

/// Why no session was opened.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SessionError {
    /// The mount has as many sessions as it may.
    #[error("the mount has {limit} sessions, as many as it may; close some")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The user has as many sessions as one user may.
    #[error("user {uid} has {limit} sessions, as many as one user may; close some")]
    TooManyOfUser {
        /// The user.
        uid: u32,
        /// The limit.
        limit: usize,
    },
    /// The sequence page could not be made, or the guardian could not be told of it.
    #[error("the sequence page of a session: {reason}; try again")]
    NoSequencePage {
        /// What failed.
        reason: String,
    },
}

/// Why no context was made.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum BindError {
    /// The session has ended.
    #[error("session {0} has ended; open a new one", session.0)]
    NoSession {
        /// The session.
        session: SessionId,
    },
    /// The caller is another user than the one who opened the session.
    #[error("session {0} belongs to another user", session.0)]
    NotOwner {
        /// The session.
        session: SessionId,
    },
    /// Too many contexts.
    #[error("the session holds {limit} contexts, as many as it may; open another session")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// No descriptor of the caller's address space.
    #[error("process {tgid}: pass a descriptor of its own /proc/self/mem, opened read-only: {reason}")]
    NoAddressSpace {
        /// The caller.
        tgid: u32,
        /// What is wrong with the one that was passed.
        reason: String,
    },
    /// No id could be drawn.
    #[error("no context id could be recorded on the volume")]
    NoId,
}

/// A new context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundContext {
    /// The context.
    pub id: ContextId,
    /// Grant of the session's sequence page; may be taken by the owner more than once, read-only.
    pub sequence_grant: GrantId,
    /// Size of the sequence page, bytes.
    pub sequence_bytes: u64,
    /// Revocation deadline, milliseconds.
    pub deadline_ms: u32,
}

/// For whom a query is decided.
#[derive(Debug, Clone, Copy)]
pub enum Asker<'a> {
    /// A context and the process that names it.
    Context(ContextId, Client),
    /// An importer that is not registered.
    Importer(&'a Importer),
}

/// A call of `device_map`.
#[derive(Debug, Clone, Copy)]
pub struct MapCall<'a> {
    /// The context to map for.
    pub context: ContextId,
    /// The caller.
    pub client: Client,
    /// What to map. A range that ends at `u64::MAX` ends at the end of the object.
    pub request: &'a MapRequest,
    /// The mapping to add to; `None` makes a new one.
    pub mapping: Option<MappingId>,
    /// Most segments to answer.
    pub segments_max: usize,
}

/// A call of `device_unmap`.
#[derive(Debug, Clone)]
pub struct UnmapCall {
    /// The session it came through.
    pub session: SessionId,
    /// The caller.
    pub client: Client,
    /// The mapping.
    pub mapping: MappingId,
    /// Only add the byte counts.
    pub report_only: bool,
    /// What was moved since the last report.
    pub moved: Moved,
}

/// A direct stretch: which grant to open and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantPart {
    /// The grant.
    pub id: GrantId,
    /// Offset of the segment inside the grant, bytes.
    pub offset: u64,
    /// Size of the grant, bytes.
    pub length: u64,
    /// Slot in the sequence page.
    pub sequence_slot: u32,
    /// Its value while the grant is valid.
    pub sequence: u64,
    /// Attestation label.
    pub path: PathKind,
    /// What the grant is.
    pub object: GrantObject,
}

/// What a client is given for a direct stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantObject {
    /// A window that may be revoked at any moment.
    Window,
    /// A pin: a memory file of its own.
    PinnedMemfd,
    /// A pin: a dma-buf over such a file.
    PinnedDmabuf,
}

/// One stretch of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapSegment {
    /// Where in the object.
    pub range: Range,
    /// A grant, or why not.
    pub access: Result<GrantPart, Reason>,
}

/// The answer of `device_map`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapAnswer {
    /// The mapping; `None` when none was made (stale context, quota).
    pub mapping: Option<MappingId>,
    /// Covers the request from its start to `next_offset` without gaps.
    pub segments: Vec<MapSegment>,
    /// Where to continue; the end of the range when all is answered.
    pub next_offset: u64,
    /// End of the range.
    pub end_offset: u64,
    /// 0, or after how many milliseconds a refused stretch is worth another try.
    pub retry_after_ms: u32,
}

/// The answer of `device_query`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryAnswer {
    /// Covers the request from its start to `next_offset` without gaps.
    pub decisions: Vec<Decision>,
    /// Where to continue; the end of the range when all is answered.
    pub next_offset: u64,
    /// End of the range.
    pub end_offset: u64,
    /// 0, or after how many milliseconds a `Busy` stretch is worth another try.
    pub retry_after_ms: u32,
}

/// Why a mapping call failed altogether.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum MapError {
    /// No such object, or it has no exporter any more.
    #[error("object {0} does not exist", object.0)]
    NoObject {
        /// The object.
        object: ObjectId,
    },
    /// The mapping has ended, never existed, or belongs to another session, context or object.
    #[error("mapping {0:#x} has ended or belongs to another client", mapping.0)]
    NoMapping {
        /// The mapping.
        mapping: MappingId,
    },
    /// The context belongs to another address space, or has ended.
    #[error("the context belongs to another address space, or has ended; make a new one")]
    StaleContext,
    /// The range is empty or reaches past the largest offset.
    #[error("an empty or impossible range, or flags that do not fit the call")]
    Invalid,
}

/// The operations of the `device_map` proposal. Nothing in them is specific to files.
pub trait DeviceMapOps: Send + Sync {
    /// Decides only; no side effects.
    fn device_query(&self, asker: Asker<'_>, request: &MapRequest, segments_max: usize) -> Result<QueryAnswer, MapError>;
    /// Maps a range for a context. May wait for revocations and the page cache, so it must not run on the only
    /// thread that serves the object.
    fn device_map(&self, call: &MapCall<'_>) -> Result<MapAnswer, MapError>;
    /// Ends a mapping, or only adds to its byte counts.
    fn device_unmap(&self, call: &UnmapCall) -> Result<(), MapError>;
}

/// What a program did to an object through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CpuAccess {
    /// A READ on a cached handle.
    CachedRead {
        /// Cached handles of the object that are open for writing.
        cpu_writers: u32,
    },
    /// A WRITE on a cached handle, or one from the page cache.
    CachedWrite,
}

/// What a revocation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RevokeReport {
    /// Grants that ended.
    pub revoked: u64,
    /// Those that were cut without an acknowledgement.
    pub enforced: u64,
    /// Time to the cut.
    pub latency: Duration,
}

/// What the holder of a grant's name may learn of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantView {
    /// Who may take it.
    pub owner: Client,
    /// It may be opened for writing.
    pub writable: bool,
    /// Size, bytes.
    pub length: u64,
    /// What it is.
    pub object: GrantObject,
}

/// Why a grant was not handed over.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum GrantError {
    /// Never given, or revoked.
    #[error("no such grant; it may have been revoked: map again")]
    Gone,
    /// Another process or user asked.
    #[error("the grant belongs to another process or user")]
    NotOwner,
    /// Asked for writing, granted for reading.
    #[error("the grant is read-only; map with WRITE")]
    ReadOnly,
    /// A grant is handed over once.
    #[error("the grant was handed over before")]
    Taken,
    /// The descriptor could not be made.
    #[error("the descriptor of a grant: {reason}")]
    Failed {
        /// What failed.
        reason: String,
    },
}

impl GrantError {
    /// The error number (errno.h) to answer with.
    pub fn errno(&self) -> i32 {
        use nix::errno::Errno;
        (match self {
            GrantError::Gone => Errno::ENOENT,
            GrantError::NotOwner | GrantError::ReadOnly => Errno::EACCES,
            GrantError::Taken => Errno::EBUSY,
            GrantError::Failed { .. } => Errno::EIO,
        }) as i32
    }
}

/// One revocation, as a client reads it.
pub type Event = ioctl::Event;

/// Hands over descriptors of grants; what a transport needs of the engine.
pub trait GrantSource: Send + Sync {
    /// See [`crate::Engine::take_grant`].
    fn take(&self, id: GrantId, client: Client, writable: Option<bool>) -> Result<OwnedFd, GrantError>;
}
