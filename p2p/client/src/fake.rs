//! A server in memory, for tests: the protocol without a kernel. One file, one importer.

use std::collections::HashMap;
use std::fs::File as StdFile;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use peerfs_abi::devmem::DeviceMemory;
use peerfs_abi::ioctl::{self, Context, DeviceCopy, Event, Info, Map, ReadByServer, Reflink, Revoke, Unmap};
use peerfs_abi::{Path, Reason, Trigger};
use peerfs_sys::{SequencePage, Window};

use crate::backend::{FileCalls, SessionCalls};
use crate::cpu::page_table::{Leaf, Target};
use crate::registry::lock;
use crate::{Error, File, ImporterSpec, MapFlags, Mapping, Session, SessionOptions};

/// Size of a grant.
pub(crate) const CHUNK: u64 = 2 << 20;
const SEQUENCE_GRANT: u64 = 1;
const FIRST_GRANT: u64 = 100;

pub(crate) struct FakeServer {
    inner: Mutex<Inner>,
    changed: Condvar,
    page: SequencePage,
}

struct Inner {
    content: Vec<u8>,
    /// Ranges that have no blocks.
    holes: Vec<Range<u64>>,
    /// Segments in one answer, to make callers continue.
    per_answer: usize,
    grants: HashMap<u64, FakeGrant>,
    next: u64,
    events: Vec<Event>,
    woken: bool,
    gone: bool,
    unmapped: Vec<Unmap>,
    acknowledged: Vec<u64>,
    /// What binding a session, and asking for a grant, answer instead.
    refused: (Option<Errno>, Option<Errno>),
}

struct FakeGrant {
    memory: StdFile,
    range: Range<u64>,
    slot: usize,
    open: bool,
}

/// What a revocation found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) grants: usize,
    pub(crate) enforced: usize,
}

impl FakeServer {
    pub(crate) fn new(content: Vec<u8>) -> Arc<FakeServer> {
        let inner = Inner {
            content,
            holes: Vec::new(),
            per_answer: ioctl::SEGMENTS_MAX,
            grants: HashMap::new(),
            next: FIRST_GRANT,
            events: Vec::new(),
            woken: false,
            gone: false,
            unmapped: Vec::new(),
            acknowledged: Vec::new(),
            refused: (None, None),
        };
        Arc::new(FakeServer {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            page: SequencePage::create(4096).expect("sequence page"),
        })
    }

    pub(crate) fn with_holes(content: Vec<u8>, holes: Vec<Range<u64>>, per_answer: usize) -> Arc<Self> {
        let server = FakeServer::new(content);
        let mut inner = lock(&server.inner);
        (inner.holes, inner.per_answer) = (holes, per_answer);
        drop(inner);
        server
    }

    /// Sessions cannot be bound, or their grants not be had.
    pub(crate) fn refuse(&self, bind: Option<Errno>, grants: Option<Errno>) {
        lock(&self.inner).refused = (bind, grants);
    }

    pub(crate) fn file(self: &Arc<Self>) -> File {
        File::from_calls(Arc::new(FakeFile(Arc::clone(self))), "fake")
    }

    pub(crate) fn session(self: &Arc<Self>, options: SessionOptions) -> Session {
        self.try_session(options).expect("session")
    }

    pub(crate) fn try_session(self: &Arc<Self>, options: SessionOptions) -> Result<Session, Error> {
        let calls = Box::new(FakeSession(Arc::clone(self)));
        Session::start(calls, &ImporterSpec::cpu(), options, "fake")
    }

    /// Revokes as a real server does: tell, wait, bump, save the content, cut.
    pub(crate) fn revoke(&self, range: Range<u64>, deadline: Duration) -> Outcome {
        let mut inner = lock(&self.inner);
        let hit = |grant: &FakeGrant| grant.open && grant.range.start < range.end && range.start < grant.range.end;
        let ids: Vec<u64> = inner.grants.iter().filter(|(_, grant)| hit(grant)).map(|(id, _)| *id).collect();
        for id in &ids {
            let grant = &inner.grants[id];
            let event = Event {
                grant_id: *id,
                mapping_id: 0,
                file_offset: grant.range.start,
                length: grant.range.end - grant.range.start,
                trigger: Trigger::Truncate.code(),
                deadline_ms: deadline.as_millis() as u32,
            };
            inner.events.push(event);
        }
        self.changed.notify_all();
        let expires = Instant::now() + deadline;
        let missing = |inner: &Inner| ids.iter().filter(|id| !inner.acknowledged.contains(id)).count();
        while missing(&inner) > 0 && Instant::now() < expires {
            let left = expires.saturating_duration_since(Instant::now());
            inner = self.changed.wait_timeout(inner, left).expect("fake lock").0;
        }
        let enforced = missing(&inner);
        for id in &ids {
            self.cut(&mut inner, *id);
        }
        Outcome { grants: ids.len(), enforced }
    }

    fn cut(&self, inner: &mut Inner, id: u64) {
        let Some(grant) = inner.grants.get_mut(&id) else {
            return;
        };
        grant.open = false;
        self.page.bump(grant.slot);
        let target = grant.range.start as usize..grant.range.end as usize;
        let mut saved = vec![0; target.len()];
        grant.memory.read_exact_at(&mut saved, 0).expect("saved");
        grant.memory.set_len(0).expect("cut");
        inner.content[target].copy_from_slice(&saved);
    }

    /// As if the daemon died and its guardian cut everything.
    pub(crate) fn die(&self) {
        self.page.store(0, 1);
        let mut inner = lock(&self.inner);
        inner.gone = true;
        self.changed.notify_all();
    }

    pub(crate) fn truncate(&self, length: u64) {
        self.revoke(0..u64::MAX, Duration::from_secs(10));
        lock(&self.inner).content.truncate(length as usize);
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        lock(&self.inner).content.clone()
    }

    pub(crate) fn unmapped(&self) -> Vec<Unmap> {
        lock(&self.inner).unmapped.clone()
    }

    fn alive(&self) -> io::Result<std::sync::MutexGuard<'_, Inner>> {
        let inner = lock(&self.inner);
        match inner.gone {
            true => Err(Errno::ENOTCONN.into()),
            false => Ok(inner),
        }
    }

    fn answer(&self, argument: &mut Map, grants: bool) -> io::Result<()> {
        let mut inner = self.alive()?;
        let size = inner.content.len() as u64;
        let end = match argument.length {
            0 => size,
            length => (argument.offset + length).min(size),
        };
        let (mut offset, mut count) = (argument.offset, 0);
        while offset < end && count < inner.per_answer {
            let segment = self.segment(&mut inner, offset, end, grants);
            offset += segment.length;
            argument.segments[count] = segment;
            count += 1;
        }
        argument.segment_count = count as u32;
        (argument.next_offset, argument.end_offset) = (offset, end);
        argument.mapping_id = 7;
        Ok(())
    }

    fn segment(&self, inner: &mut Inner, offset: u64, end: u64, grants: bool) -> ioctl::Segment {
        let mut segment: ioctl::Segment = zerocopy::FromZeros::new_zeroed();
        segment.file_offset = offset;
        let hole = inner.holes.iter().find(|hole| hole.contains(&offset));
        if let Some(hole) = hole {
            segment.length = hole.end.min(end) - offset;
            segment.reason = Reason::Hole.code();
            return segment;
        }
        let later = inner.holes.iter().map(|hole| hole.start).filter(|start| *start > offset);
        let chunk_end = (offset / CHUNK + 1) * CHUNK;
        segment.length = later.chain([chunk_end, end]).min().unwrap_or(end) - offset;
        segment.path = Path::DirectWindow as u32;
        if grants {
            self.grant(inner, &mut segment);
        }
        segment
    }

    fn grant(&self, inner: &mut Inner, segment: &mut ioctl::Segment) {
        let chunk_start = segment.file_offset / CHUNK * CHUNK;
        let range = chunk_start..(chunk_start + CHUNK).min(inner.content.len() as u64);
        let existing = inner.grants.iter().find(|(_, grant)| grant.open && grant.range == range);
        let id = match existing {
            Some((id, _)) => *id,
            None => self.new_grant(inner, range),
        };
        let grant = &inner.grants[&id];
        segment.grant_id = id;
        segment.grant_offset = segment.file_offset - grant.range.start;
        segment.grant_length = grant.range.end - grant.range.start;
        segment.sequence_slot = grant.slot as u32;
        segment.sequence = self.page.load(grant.slot).expect("slot");
    }

    fn new_grant(&self, inner: &mut Inner, range: Range<u64>) -> u64 {
        let memory = StdFile::from(memfd_create(c"grant", MFdFlags::MFD_CLOEXEC).expect("memfd"));
        let bytes = &inner.content[range.start as usize..range.end as usize];
        memory.write_all_at(bytes, 0).expect("fill");
        let id = inner.next;
        inner.next += 1;
        let slot = (id - FIRST_GRANT + 1) as usize;
        let grant = FakeGrant { memory, range, slot, open: true };
        inner.grants.insert(id, grant);
        id
    }
}

struct FakeFile(Arc<FakeServer>);

impl FileCalls for FakeFile {
    fn query(&self, argument: &mut Map) -> io::Result<()> {
        self.0.answer(argument, false)
    }

    fn map(&self, argument: &mut Map) -> io::Result<()> {
        self.0.answer(argument, true)
    }

    fn revoke(&self, argument: &mut Revoke) -> io::Result<()> {
        let outcome = self.0.revoke(0..u64::MAX, Duration::from_secs(10));
        argument.revoked = outcome.grants as u64;
        Ok(())
    }

    fn read_by_server(&self, _argument: &mut ReadByServer) -> io::Result<()> {
        Err(Errno::ENOTTY.into())
    }

    fn copy(&self, _argument: &mut DeviceCopy) -> io::Result<()> {
        Err(Errno::ENXIO.into())
    }

    fn reflink(&self, _argument: &mut Reflink) -> io::Result<()> {
        Err(Errno::EXDEV.into())
    }

    fn info(&self, argument: &mut Info) -> io::Result<()> {
        argument.mappings = 1;
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.content().len() as u64)
    }

    /// Bytes come from the authoritative copy: the window where there is one.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        let inner = self.0.alive()?;
        let end = (inner.content.len() as u64).min(offset + target.len() as u64);
        let count = end.saturating_sub(offset) as usize;
        for (at, byte) in (offset..end).zip(target.iter_mut()) {
            *byte = inner.content[at as usize];
        }
        for grant in inner.grants.values().filter(|grant| grant.open) {
            let (from, to) = (grant.range.start.max(offset), grant.range.end.min(end));
            if from < to {
                let place = (from - offset) as usize..(to - offset) as usize;
                grant.memory.read_exact_at(&mut target[place], from - grant.range.start)?;
            }
        }
        Ok(count)
    }

    fn write_at(&self, offset: u64, source: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.alive()?;
        let end = offset as usize + source.len();
        if inner.content.len() < end {
            inner.content.resize(end, 0);
        }
        inner.content[offset as usize..end].copy_from_slice(source);
        for grant in inner.grants.values().filter(|grant| grant.open) {
            let (from, to) = (grant.range.start.max(offset), grant.range.end.min(end as u64));
            if from < to {
                let place = (from - offset) as usize..(to - offset) as usize;
                grant.memory.write_all_at(&source[place], from - grant.range.start)?;
            }
        }
        Ok(source.len())
    }
}

struct FakeSession(Arc<FakeServer>);

impl SessionCalls for FakeSession {
    fn device_memory(&self, _argument: &mut DeviceMemory) -> io::Result<()> {
        Err(Errno::ENODEV.into())
    }

    fn device_memory_file(&self, _id: u64, _writable: bool) -> io::Result<Arc<dyn FileCalls>> {
        Err(Errno::ENOENT.into())
    }

    fn bind(&self, argument: &mut Context) -> io::Result<()> {
        if let Some(refusal) = lock(&self.0.inner).refused.0 {
            return Err(refusal.into());
        }
        argument.context_id = 42;
        argument.sequence_grant_id = SEQUENCE_GRANT;
        argument.sequence_bytes = self.0.page.slots() as u64 * 8;
        argument.deadline_ms = 100;
        Ok(())
    }

    fn window(&self, grant_id: u64, length: u64, writable: bool) -> io::Result<Window> {
        if let Some(refusal) = lock(&self.0.inner).refused.1 {
            return Err(refusal.into());
        }
        if grant_id == SEQUENCE_GRANT {
            return Window::map(self.0.page.reader_fd()?, length as usize, false);
        }
        let inner = self.0.alive()?;
        let grant = inner.grants.get(&grant_id).filter(|grant| grant.open);
        let grant = grant.ok_or(Errno::ENOENT)?;
        Window::map(&grant.memory, length as usize, writable)
    }

    /// No file of the kernel's is on it.
    fn device(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut inner = self.0.alive()?;
        let expires = timeout.map(|timeout| Instant::now() + timeout);
        while inner.events.is_empty() && !inner.woken && !inner.gone {
            inner = match expires.map(|expires| expires.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(left) => self.0.changed.wait_timeout(inner, left).expect("fake lock").0,
                None => self.0.changed.wait(inner).expect("fake lock"),
            };
        }
        inner.woken = false;
        Ok(())
    }

    fn wake(&self) {
        lock(&self.0.inner).woken = true;
        self.0.changed.notify_all();
    }

    fn events(&self, events: &mut Vec<Event>) -> io::Result<()> {
        events.append(&mut self.0.alive()?.events);
        Ok(())
    }

    fn acknowledge(&self, grant_ids: &[u64]) -> io::Result<()> {
        self.0.alive()?.acknowledged.extend(grant_ids);
        self.0.changed.notify_all();
        Ok(())
    }

    fn unmap(&self, argument: &mut Unmap) -> io::Result<()> {
        self.0.alive()?.unmapped.push(*argument);
        Ok(())
    }
}

/// A translation for tests of tables: it leads nowhere.
pub(crate) fn leaf(start: u64, size: u64) -> Leaf {
    static MAPPING: OnceLock<Arc<Mapping>> = OnceLock::new();
    let mapping = MAPPING.get_or_init(|| {
        let server = FakeServer::new(vec![0; 4096]);
        let session = server.session(SessionOptions::default());
        let mapping = session.map(&server.file(), .., MapFlags::empty());
        Arc::new(mapping.expect("mapping"))
    });
    let target = Target::Fallback { mapping: Arc::clone(mapping), until: Instant::now() };
    Leaf { start, size, target }
}
