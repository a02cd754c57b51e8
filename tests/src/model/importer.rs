//! Importers: they map, use what they were given through descriptors of the
//! windows, and acknowledge revocations, or do not.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use anyhow::{Context, Result, bail, ensure};
use peerfs_abi::{ImporterFlags, Reason};
use peerfs_fs::types::Handle;
use peerfs_p2p::{
    Client, ContextId, DeviceMapOps, Engine, GrantError, GrantId, Importer, MapAnswer, MapCall, MapRequest, MappingId, Range,
    SessionId, UnmapCall,
};

/// Events taken at a time.
const EVENTS: usize = 64;

/// Descriptors of what was granted and not yet given up.
type Windows = Arc<Mutex<HashMap<GrantId, File>>>;

/// A simulated importer with a session and a context of its own.
pub(super) struct SimImporter {
    session: SessionId,
    context: ContextId,
    /// It honours invalidation in general (a dynamic importer).
    pub(super) dynamic: bool,
    acknowledges: Arc<AtomicBool>,
    windows: Windows,
    pub(super) mappings: Vec<SimMapping>,
}

/// A mapping an importer holds.
pub(super) struct SimMapping {
    id: MappingId,
    /// Key of the file in the world.
    pub(super) file: u64,
    /// The importer's own direct handle of the file, for what is not direct.
    pub(super) handle: Handle,
    /// The handle may write.
    pub(super) handle_writable: bool,
    /// Mapped for writing.
    pub(super) writable: bool,
    pub(super) segments: Vec<SimSegment>,
    pub(super) moved: Moved,
}

/// Bytes an importer moved.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moved {
    pub(super) direct: u64,
    pub(super) fallback: u64,
}

impl Moved {
    /// As it is told to the server. The model does not tell the reasons apart.
    fn report(self) -> peerfs_p2p::Moved {
        let mut report = peerfs_p2p::Moved { direct_window: self.direct, ..peerfs_p2p::Moved::default() };
        report.fallback[0] = self.fallback;
        report
    }
}

/// A stretch of a mapping.
#[derive(Debug, Clone, Copy)]
pub(super) struct SimSegment {
    pub(super) range: Range,
    /// A grant and the offset in it, or why not.
    pub(super) access: Result<(GrantId, u64), Reason>,
}

/// What came of an access through a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Done,
    /// The window was cut, or given up on revocation.
    Cut,
}

fn myself() -> Client {
    Client { tgid: std::process::id(), uid: nix::unistd::geteuid().as_raw() }
}

impl SimImporter {
    pub(super) fn open(engine: &Arc<Engine>, dynamic: bool) -> Result<SimImporter> {
        let acknowledges = Arc::new(AtomicBool::new(true));
        let windows = Windows::default();
        let named = Arc::new(OnceLock::new());
        let service = Service {
            engine: Arc::downgrade(engine),
            session: named.clone(),
            acknowledges: acknowledges.clone(),
            windows: windows.clone(),
        };
        let session = engine.open_session(myself().uid, Arc::new(move || service.run()))?;
        named.set(session).ok().context("a session is named once")?;
        let mut flags = ImporterFlags::all();
        flags.set(ImporterFlags::DYNAMIC, dynamic);
        let spec = Importer {
            name: "model".into(),
            flags,
            dma_bits: 64,
            va_bits: 48,
            page_bytes: 4096,
            pci_address: None,
            in_client: true,
        };
        let bound = engine.bind_context(session, spec, myself(), None)?;
        Ok(SimImporter { session, context: bound.id, dynamic, acknowledges, windows, mappings: Vec::new() })
    }

    /// From now on it answers revocations, or is hung.
    pub(super) fn set_acknowledges(&self, acknowledges: bool) {
        self.acknowledges.store(acknowledges, Ordering::SeqCst);
    }

    /// Maps a range; the answer is complete.
    pub(super) fn map(&mut self, engine: &Engine, request: &MapRequest, mapping: SimMapping) -> Result<&SimMapping> {
        let mut mapping = mapping;
        let mut request = request.clone();
        let mut known = None;
        loop {
            let call = MapCall { context: self.context, client: myself(), request: &request, mapping: known, segments_max: 16 };
            let answer = engine.device_map(&call)?;
            known = answer.mapping;
            self.take_over(engine, &request, &answer, &mut mapping)?;
            if answer.next_offset >= answer.end_offset {
                break;
            }
            ensure!(answer.next_offset > request.range.start, "an answer does not advance");
            request.range = Range { start: answer.next_offset, end: answer.end_offset };
        }
        mapping.id = known.context("a mapping was refused altogether")?;
        self.mappings.push(mapping);
        Ok(&self.mappings[self.mappings.len() - 1])
    }

    fn take_over(&self, engine: &Engine, request: &MapRequest, answer: &MapAnswer, mapping: &mut SimMapping) -> Result<()> {
        let mut expected = request.range.start;
        for segment in &answer.segments {
            ensure!(segment.range.start == expected && !segment.range.is_empty(), "segments have gaps: {answer:?}");
            expected = segment.range.end;
            if let Ok(part) = &segment.access {
                ensure!(
                    part.offset + segment.range.length() <= part.length.max(segment_blocks(segment.range)),
                    "a segment leaves its grant"
                );
                self.take_grant(engine, part.id, mapping.writable)?;
            }
            let access = segment.access.map(|part| (part.id, part.offset));
            mapping.segments.push(SimSegment { range: segment.range, access });
        }
        ensure!(expected == answer.next_offset, "segments do not end at next_offset: {answer:?}");
        Ok(())
    }

    fn take_grant(&self, engine: &Engine, id: GrantId, writable: bool) -> Result<()> {
        if self.lock().contains_key(&id) {
            return Ok(());
        }
        match engine.take_grant(id, myself(), writable) {
            Ok(fd) => {
                self.lock().insert(id, File::from(fd));
                Ok(())
            }
            Err(GrantError::Gone) => Ok(()),
            Err(error) => Err(error).context("taking a grant that was just given"),
        }
    }

    /// Reads through a grant.
    pub(super) fn read(&self, engine: &Engine, (grant, offset): (GrantId, u64), out: &mut [u8]) -> Result<Access> {
        let windows = self.lock();
        let Some(file) = windows.get(&grant) else { return Ok(Access::Cut) };
        let live = engine.grant(grant).is_some();
        match (file.read_exact_at(out, offset), live) {
            (Ok(()), true) => Ok(Access::Done),
            (Err(_), false) => Ok(Access::Cut),
            (Ok(()), false) => bail!("a revoked grant still reads"),
            (Err(error), true) => Err(error).context("a live grant does not read"),
        }
    }

    /// Writes through a grant.
    pub(super) fn write(&self, engine: &Engine, (grant, offset): (GrantId, u64), data: &[u8]) -> Result<Access> {
        let windows = self.lock();
        let Some(file) = windows.get(&grant) else { return Ok(Access::Cut) };
        let live = engine.grant(grant).is_some();
        match (file.write_all_at(data, offset), live) {
            (Ok(()), true) => Ok(Access::Done),
            (Err(_), false) => Ok(Access::Cut),
            (Ok(()), false) => bail!("a revoked grant still takes stores"),
            (Err(error), true) => Err(error).context("a live grant does not take stores"),
        }
    }

    /// Ends a mapping and reports what it moved.
    pub(super) fn unmap(&mut self, engine: &Engine, index: usize) -> Result<SimMapping> {
        let mapping = self.mappings.swap_remove(index);
        let call = UnmapCall {
            session: self.session,
            client: myself(),
            mapping: mapping.id,
            report_only: false,
            moved: mapping.moved.report(),
        };
        engine.device_unmap(&call)?;
        for (grant, _) in mapping.segments.iter().filter_map(|segment| segment.access.ok()) {
            self.lock().remove(&grant);
        }
        Ok(mapping)
    }

    /// The importer dies: its session ends without a word. Answers the mappings it held.
    pub(super) fn die(self, engine: &Engine) -> Vec<SimMapping> {
        engine.close_session(self.session);
        self.mappings
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<GrantId, File>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn segment_blocks(range: Range) -> u64 {
    range.length().next_multiple_of(super::oracle::BLOCK)
}

impl SimMapping {
    pub(super) fn new(file: u64, handle: Handle, handle_writable: bool, writable: bool) -> SimMapping {
        SimMapping { id: MappingId(0), file, handle, handle_writable, writable, segments: Vec::new(), moved: Moved::default() }
    }

    /// The mapped range.
    pub(super) fn range(&self) -> Range {
        let start = self.segments.first().map_or(0, |segment| segment.range.start);
        Range { start, end: self.segments.last().map_or(start, |segment| segment.range.end) }
    }

    /// Segments cut to a range.
    pub(super) fn parts(&self, range: Range) -> Vec<SimSegment> {
        let cut = |segment: &SimSegment| {
            let part = segment.range.intersect(range);
            let access = segment.access.map(|(grant, offset)| (grant, offset + (part.start - segment.range.start)));
            SimSegment { range: part, access }
        };
        self.segments.iter().map(cut).filter(|segment| !segment.range.is_empty()).collect()
    }
}

/// Hears of revocations while whoever causes them waits.
struct Service {
    engine: Weak<Engine>,
    session: Arc<OnceLock<SessionId>>,
    acknowledges: Arc<AtomicBool>,
    windows: Windows,
}

impl Service {
    fn run(&self) {
        let (Some(engine), Some(session)) = (self.engine.upgrade(), self.session.get()) else { return };
        for event in engine.events(*session, EVENTS) {
            if self.acknowledges.load(Ordering::SeqCst) {
                let grant = GrantId(event.grant_id);
                self.windows.lock().unwrap_or_else(PoisonError::into_inner).remove(&grant);
                engine.ack(*session, grant);
            }
        }
    }
}
