//! A world of fakes around one engine: an aperture that records what happens to
//! its windows, a file without a filesystem, and a clock that is turned by hand.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use peerfs_abi::{ImporterFlags, MapFlags, Reason, Trigger};
use peerfs_blockdev::{Aperture, ApertureInfo, ApertureKind, DeviceError, PathKind, Run, Window, WindowError, WindowSpec};
use peerfs_sys::WindowFile;

use crate::api::*;
use crate::clock::VirtualClock;
use crate::custody::MemoryCustody;
use crate::engine::Engine;
use crate::exporter::Exporter;
use crate::moved::Moved;
use crate::sync::{Mutex, lock};
use crate::types::*;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const FILE: ObjectId = ObjectId(7);

type Log = Arc<Mutex<Vec<(String, u64)>>>;

#[derive(Debug)]
pub(super) struct FakeAperture {
    pub(super) capacity: u64,
    pub(super) used: Arc<AtomicU64>,
    pub(super) log: Log,
    pub(super) fail_write_back: Arc<AtomicBool>,
}

impl FakeAperture {
    pub(super) fn new(capacity: u64) -> FakeAperture {
        FakeAperture { capacity, used: Arc::default(), log: Arc::default(), fail_write_back: Arc::default() }
    }
}

#[derive(Debug)]
struct FakeWindow {
    file: WindowFile,
    runs: Vec<Run>,
    log: Log,
    used: Arc<AtomicU64>,
    fail: Arc<AtomicBool>,
    valid: AtomicU64,
    gone: AtomicBool,
}

impl FakeWindow {
    fn note(&self, what: &str) {
        lock(&self.log).push((what.to_owned(), self.runs[0].device_offset));
    }
}

impl Window for FakeWindow {
    fn length(&self) -> u64 {
        self.file.length()
    }
    fn runs(&self) -> &[Run] {
        &self.runs
    }
    fn grant_fd(&self, writable: bool) -> Result<OwnedFd, DeviceError> {
        self.file.reopen(writable).map_err(|err| DeviceError::Unusable { device: "fake".into(), reason: err.to_string() })
    }
    fn custody_fd(&self) -> Result<Option<OwnedFd>, DeviceError> {
        self.file.duplicate().map(Some).map_err(|err| DeviceError::Unusable { device: "fake".into(), reason: err.to_string() })
    }
    fn is_held(&self) -> bool {
        self.file.is_held().expect("lease")
    }
    fn disown(&self, offsets: &[std::ops::Range<u64>]) {
        offsets.iter().for_each(|offset| self.note(&format!("disown {}..{}", offset.start, offset.end)));
    }
    fn set_writable(&self) {
        self.note("writable");
    }
    fn set_valid_length(&self, valid_length: u64) {
        self.valid.store(valid_length, Ordering::SeqCst);
        self.note(&format!("valid {valid_length}"));
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.note("flush");
        Ok(())
    }
    fn cut(&self) {
        self.file.truncate_to_zero().expect("cut");
        self.note("cut");
    }
    fn write_back(&self) -> Result<(), DeviceError> {
        if self.fail.load(Ordering::SeqCst) {
            self.note("write-back failed");
            return Err(DeviceError::Unusable { device: "fake".into(), reason: "told to fail".into() });
        }
        self.note("write-back");
        if !self.gone.swap(true, Ordering::SeqCst) {
            self.used.fetch_sub(self.file.length(), Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Aperture for FakeAperture {
    fn info(&self) -> ApertureInfo {
        ApertureInfo {
            name: "fake".into(),
            kind: ApertureKind::Windowed,
            path: PathKind::DirectWindow,
            capacity_bytes: self.capacity,
            used_bytes: self.used.load(Ordering::SeqCst),
            windows: 0,
            page_bytes: 4096,
            writable: true,
            atomic: false,
            grantable: true,
            bus: None,
        }
    }
    fn open_window(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        let used = self.used.load(Ordering::SeqCst);
        if used + spec.length > self.capacity {
            return Err(WindowError::Full { needed_bytes: used + spec.length - self.capacity });
        }
        self.used.fetch_add(spec.length, Ordering::SeqCst);
        let window = FakeWindow {
            file: WindowFile::create(spec.length).expect("memfd"),
            runs: spec.runs,
            log: self.log.clone(),
            used: self.used.clone(),
            fail: self.fail_write_back.clone(),
            valid: AtomicU64::new(spec.valid_length),
            gone: AtomicBool::new(false),
        };
        window.note("open");
        Ok(Arc::new(window))
    }
}

type Hook = Box<dyn Fn(&Engine, ObjectId) + Send + Sync>;

/// Files that are one extent each. `during_quiesce` stands for whatever comes in while the page cache is emptied.
#[derive(Default)]
pub(super) struct Files {
    pub(super) sizes: Mutex<HashMap<ObjectId, u64>>,
    pub(super) during_quiesce: Mutex<Option<Arc<Hook>>>,
    pub(super) during_survey: Mutex<Option<Arc<Hook>>>,
    pub(super) refuse: Mutex<Option<Reason>>,
    /// What a device's write would change cannot be noted.
    pub(super) refuse_writes: Mutex<Option<Reason>>,
    /// A range whose pages cannot be dropped.
    pub(super) stuck: Mutex<Option<Range>>,
    pub(super) write_grants: AtomicU64,
    /// Open handles of every file.
    pub(super) handles: Mutex<PinSurvey>,
    /// Device ranges that ended pins gave back.
    pub(super) released: Mutex<Vec<Range>>,
    engine: Mutex<Option<std::sync::Weak<Engine>>>,
}

impl Files {
    fn call(&self, hook: &Mutex<Option<Arc<Hook>>>, object: ObjectId) {
        let hook = lock(hook).clone();
        let engine = lock(&self.engine).as_ref().and_then(std::sync::Weak::upgrade);
        if let (Some(hook), Some(engine)) = (hook, engine) {
            hook(&engine, object);
        }
    }
}

impl Exporter for Files {
    fn survey(&self, request: &MapRequest, range: Range) -> Option<Survey> {
        let size = *lock(&self.sizes).get(&request.object)?;
        if !range.is_empty() {
            self.call(&self.during_survey, request.object);
        }
        let base = request.object.0 << 20;
        let state = ExtentState::Mapped { device_offset: base, shared: false };
        Some(Survey {
            regular: true,
            size,
            read_only: false,
            policy: DirectPolicy::Prefer,
            extents: vec![Extent { file_offset: 0, length: size.next_multiple_of(4096), state }],
            cached: Vec::new(),
            closed: Vec::new(),
            pins: *lock(&self.handles),
            triggers: Trigger::ALL.iter().copied().collect(),
        })
    }
    fn quiesce(&self, object: ObjectId, range: Range, _probe: Option<CacheProbe>) -> Result<(), Reason> {
        self.call(&self.during_quiesce, object);
        if lock(&self.stuck).is_some_and(|stuck| stuck.overlaps(range)) {
            return Err(Reason::PageCacheDirty);
        }
        lock(&self.refuse).map_or(Ok(()), Err)
    }
    fn release_blocks(&self, _object: ObjectId, device_ranges: &[Range]) {
        lock(&self.released).extend_from_slice(device_ranges);
    }
    fn write_granted(&self, _object: ObjectId) -> Result<(), Reason> {
        self.write_grants.fetch_add(1, Ordering::SeqCst);
        lock(&self.refuse_writes).map_or(Ok(()), Err)
    }
}

struct Ids(AtomicU64);

impl ContextIds for Ids {
    fn next_id(&self) -> Option<u64> {
        Some(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

pub(super) struct World {
    pub(super) engine: Arc<Engine>,
    pub(super) clock: Arc<VirtualClock>,
    pub(super) custody: Arc<MemoryCustody>,
    pub(super) aperture: Arc<FakeAperture>,
    pub(super) files: Arc<Files>,
}

/// A client with one context.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    pub(super) session: SessionId,
    pub(super) context: ContextId,
    pub(super) sequence: GrantId,
}

/// As [`World::try_map`], for hooks.
pub(super) fn map_on(
    engine: &Engine,
    peer: Peer,
    mapping: Option<MappingId>,
    object: ObjectId,
    range: Range,
    flags: MapFlags,
) -> Result<MapAnswer, MapError> {
    let request = MapRequest { object, range, flags, handle_writable: true, uid: me().uid, cache_probe: None };
    engine.device_map(&MapCall { context: peer.context, client: me(), request: &request, mapping, segments_max: 200 })
}

pub(super) fn me() -> Client {
    Client { tgid: std::process::id(), uid: nix::unistd::getuid().as_raw() }
}

/// The usual importer: software that honours revocation and writes.
pub(super) fn importer() -> Importer {
    Importer {
        name: "cpu".into(),
        flags: ImporterFlags::DYNAMIC | ImporterFlags::WRITE,
        dma_bits: 64,
        va_bits: 47,
        page_bytes: 4096,
        pci_address: None,
        in_client: true,
    }
}

impl World {
    pub(super) fn new() -> World {
        World::with(EngineConfig::default(), 64 * MIB)
    }

    pub(super) fn with(config: EngineConfig, capacity: u64) -> World {
        World::build(config, capacity, None)
    }

    /// On a real aperture; the fake one stays idle.
    pub(super) fn on(config: EngineConfig, aperture: Arc<dyn Aperture>) -> World {
        World::build(config, 0, Some(aperture))
    }

    fn build(config: EngineConfig, capacity: u64, real: Option<Arc<dyn Aperture>>) -> World {
        let clock = Arc::new(VirtualClock::default());
        clock.advance(Duration::from_secs(10));
        let custody = Arc::new(MemoryCustody::default());
        let aperture = Arc::new(FakeAperture::new(capacity));
        let engine = Engine::new(
            config,
            EngineParts {
                aperture: Some(real.unwrap_or_else(|| aperture.clone())),
                custody: custody.clone(),
                clock: clock.clone(),
                context_ids: Arc::new(Ids(AtomicU64::new(1))),
            },
        );
        let files = Arc::new(Files::default());
        *lock(&files.engine) = Some(Arc::downgrade(&engine));
        lock(&files.sizes).insert(FILE, 8 * MIB);
        let exporter: Arc<dyn Exporter> = files.clone();
        engine.attach_exporter(Arc::downgrade(&exporter));
        World { engine, clock, custody, aperture, files }
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer_woken_by(Arc::new(|| {}))
    }

    pub(super) fn peer_woken_by(&self, wake: Wake) -> Peer {
        self.peer_with(wake, importer())
    }

    pub(super) fn peer_with(&self, wake: Wake, importer: Importer) -> Peer {
        let session = self.engine.open_session(me().uid, wake).expect("session");
        let bound = self.engine.bind_context(session, importer, me(), None).expect("context");
        Peer { session, context: bound.id, sequence: bound.sequence_grant }
    }

    pub(super) fn map_flags(&self, peer: Peer, object: ObjectId, range: Range, flags: MapFlags) -> MapAnswer {
        self.try_map(peer, None, object, range, flags).expect("map")
    }

    /// `mapping`: one to add to.
    pub(super) fn try_map(
        &self,
        peer: Peer,
        mapping: Option<MappingId>,
        object: ObjectId,
        range: Range,
        flags: MapFlags,
    ) -> Result<MapAnswer, MapError> {
        map_on(&self.engine, peer, mapping, object, range, flags)
    }

    pub(super) fn map(&self, peer: Peer, range: Range) -> MapAnswer {
        self.map_flags(peer, FILE, range, MapFlags::empty())
    }

    pub(super) fn map_write(&self, peer: Peer, range: Range) -> MapAnswer {
        self.map_flags(peer, FILE, range, MapFlags::WRITE)
    }

    pub(super) fn unmap(&self, peer: Peer, mapping: MappingId) -> Result<(), MapError> {
        self.engine.device_unmap(&UnmapCall {
            session: peer.session,
            client: me(),
            mapping,
            report_only: false,
            moved: Moved { direct_window: 4096, ..Moved::default() },
        })
    }

    pub(super) fn log(&self) -> Vec<String> {
        lock(&self.aperture.log).iter().map(|entry| entry.0.clone()).collect()
    }

    pub(super) fn hook_quiesce(&self, hook: impl Fn(&Engine, ObjectId) + Send + Sync + 'static) {
        *lock(&self.files.during_quiesce) = Some(Arc::new(Box::new(hook)));
    }

    /// Nothing is left: no window, no chunk, no custody.
    pub(super) fn assert_clean(&self) {
        assert!(!self.engine.is_mapped(None));
        assert_eq!(self.custody.windows(), 0);
        assert_eq!(self.aperture.used.load(Ordering::SeqCst), 0);
        assert!(self.engine.objects.is_empty());
        assert_eq!(self.engine.windows(), 0);
    }
}

/// The grants of an answer.
pub(super) fn grants(answer: &MapAnswer) -> Vec<GrantPart> {
    answer.segments.iter().filter_map(|segment| segment.access.ok()).collect()
}

/// The one reason all of an answer was refused for.
pub(super) fn refusal(answer: &MapAnswer) -> Option<Reason> {
    match answer.segments.as_slice() {
        [segment] => segment.access.err(),
        _ => None,
    }
}
