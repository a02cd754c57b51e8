//! A session: an importer bound to this address space, and the mappings it holds.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeBounds;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use nix::errno::Errno;
use peerfs_abi::MapFlags;
use peerfs_abi::ioctl::{Context, Map};
use peerfs_sys::{AddressSpace, Window};

use crate::backend::{NO_WAY, SessionCalls};
use crate::error::errno;
use crate::file::request;
use crate::grant::{Grant, Shared, Taken};
use crate::kernel::KernelSession;
use crate::range::Span;
use crate::registry::Registry;
use crate::segment::{DecisionTable, GrantPlace, Granted, collect, retry_after};
use crate::waiting::Waiting;
use crate::{Error, File, ImporterSpec, Mapping, Segment, service};

/// How a session behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Honour revocations. Without it the session is a hung importer: it hears of
    /// revocations and calls back, but keeps its windows and never acknowledges.
    pub acknowledge: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { acknowledge: true }
    }
}

/// An importer bound to this process. Clones share it; it ends with its last clone and mapping.
#[derive(Clone)]
pub struct Session {
    pub(crate) owner: Arc<Owner>,
}

impl Session {
    /// Registers an importer with the mount that `directory` is in.
    ///
    /// # Errors
    /// [`Error::NotPeerfs`] when it is in none, [`Error::ServerGone`], or what the calls answer.
    pub fn open(directory: impl AsRef<Path>, importer: ImporterSpec) -> Result<Session, Error> {
        Session::open_with(directory, importer, SessionOptions::default())
    }

    /// As [`Session::open`].
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn open_with(directory: impl AsRef<Path>, importer: ImporterSpec, options: SessionOptions) -> Result<Session, Error> {
        let directory = directory.as_ref();
        let name = directory.display().to_string();
        let calls = KernelSession::open(directory).map_err(|source| match errno(&source) {
            Some(Errno::ENOENT) if directory.is_dir() => Error::NotPeerfs { object: name.clone() },
            _ => Error::system("open a session in", &name, source),
        })?;
        Session::start(Box::new(calls), &importer, options, &name)
    }

    /// Binds the session and starts its service thread. Where this process can be given no grants, everything falls back.
    pub(crate) fn start(
        calls: Box<dyn SessionCalls>,
        importer: &ImporterSpec,
        options: SessionOptions,
        name: &str,
    ) -> Result<Session, Error> {
        let mut context = importer.request()?;
        let sequences = match calls.bind(&mut context) {
            Ok(()) => sequences(&*calls, &context, name)?,
            // It may not be looked into, or is not seen at all.
            Err(source) if matches!(errno(&source), Some(Errno::EPERM | Errno::ESRCH)) => None,
            Err(source) => return Err(Error::command("register an importer with", name, source)),
        };
        let core = Arc::new(Core {
            calls,
            name: name.to_owned(),
            context_id: context.context_id,
            deadline: Duration::from_millis(context.deadline_ms.into()),
            options,
            sequences,
            home: AddressSpace::current(),
            gone: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            revocations: AtomicU64::new(0),
            registry: Registry::default(),
        });
        let service = Arc::clone(&core);
        let thread = thread::Builder::new()
            .name("peerfs-session".to_owned())
            .spawn(move || service::run(&service))
            .map_err(|source| Error::system("start the service thread of", name, source))?;
        let owner = Arc::new(Owner { core, thread: Some(thread) });
        Ok(Session { owner })
    }

    /// Number of the context; never used again on this volume.
    pub fn context_id(&self) -> u64 {
        self.owner.core.context_id
    }

    /// How long an importer may take to stop after a revocation.
    pub fn deadline(&self) -> Duration {
        self.owner.core.deadline
    }

    /// Revocations this session has heard of.
    pub fn revocations(&self) -> u64 {
        self.owner.core.revocations.load(Ordering::Acquire)
    }

    /// The decision table of a range for this session's importer. Nothing changes.
    ///
    /// # Errors
    /// As [`Session::map`].
    pub fn query(&self, file: &File, range: impl RangeBounds<u64>, flags: MapFlags) -> Result<DecisionTable, Error> {
        self.owner.core.check()?;
        let mut argument = request(Span::new(range)?, flags | MapFlags::QUERY);
        argument.context_id = self.context_id();
        let mut table = file.table(argument)?;
        if self.owner.core.sequences.is_none() {
            table.segments.iter_mut().for_each(Segment::refuse_grant);
        }
        Ok(table)
    }

    /// Maps a range. What cannot be mapped directly becomes a fallback segment of the mapping: that is no error.
    /// A range without an end ends with the file.
    ///
    /// # Errors
    /// [`Error::StaleContext`] in a fork child, [`Error::ServerGone`], or what the calls answer.
    pub fn map(&self, file: &File, range: impl RangeBounds<u64>, flags: MapFlags) -> Result<Mapping, Error> {
        let core = &self.owner.core;
        core.check()?;
        let span = Span::new(range)?;
        let mut argument = request(span, flags);
        argument.context_id = core.context_id;
        let _in_flight = core.registry.begin_map();
        let mut mapping = Mapping::new(Arc::clone(&self.owner), file.clone(), span.offset, flags);
        let mut grants = HashMap::new();
        let grantable = core.sequences.is_some();
        if !grantable {
            argument.flags |= MapFlags::QUERY.bits();
        }
        let call = |argument: &mut Map| {
            let answer = if grantable { file.calls.map(argument) } else { file.calls.query(argument) };
            answer.map_err(|source| Error::command("map", &file.name, source))
        };
        // When it fails half way, dropping the mapping ends what the server has granted so far.
        collect(argument, call, |answer, granted| {
            mapping.note_answer(if grantable { answer.mapping_id } else { 0 }, answer.end_offset, retry_after(answer));
            for mut piece in granted {
                if !grantable {
                    piece.segment.refuse_grant();
                }
                let grant = match piece.grant {
                    Some(place) => Some(self.grant(&mut grants, place, &piece, &mapping)?),
                    None => None,
                };
                mapping.push(piece, grant);
            }
            Ok(())
        })?;
        Ok(mapping)
    }

    /// The grant object of a segment: segments of one mapping share a grant's window.
    fn grant(
        &self,
        known: &mut HashMap<u64, Arc<Grant>>,
        place: GrantPlace,
        piece: &Granted,
        mapping: &Mapping,
    ) -> Result<Arc<Grant>, Error> {
        if let Some(grant) = known.get(&place.id) {
            return Ok(Arc::clone(grant));
        }
        let core = &self.owner.core;
        let taken = match take(core, place, piece, mapping.writable()) {
            Ok(taken) => taken,
            // Revoked between the answer and now.
            Err(error) if matches!(errno(&error), Some(Errno::ENOENT | Errno::ESTALE)) => Taken::default(),
            // As if it had been: it cannot be had here.
            Err(error) if errno(&error) == Some(NO_WAY) => Taken::default(),
            Err(error) => return Err(Error::system("map a grant of", &core.name, error)),
        };
        let shared: Arc<Shared> = Arc::clone(mapping.shared());
        let path = piece.segment.path;
        let grant = Grant::new(Arc::clone(core), shared, place, path, taken);
        if !core.registry.add(&grant) {
            grant.close();
        }
        known.insert(place.id, Arc::clone(&grant));
        Ok(grant)
    }
}

/// The page of sequence numbers; `None`: grants do not reach this process.
fn sequences(calls: &dyn SessionCalls, context: &Context, name: &str) -> Result<Option<Window>, Error> {
    match calls.window(context.sequence_grant_id, context.sequence_bytes, false) {
        Ok(window) => Ok(Some(window)),
        Err(source) if errno(&source) == Some(NO_WAY) => Ok(None),
        Err(source) => Err(Error::system("map the sequence page of", name, source)),
    }
}

/// A pin's descriptor is kept, so that it can be handed on.
fn take(core: &Core, place: GrantPlace, piece: &Granted, writable: bool) -> std::io::Result<Taken> {
    let Some(kind) = piece.segment.pin else {
        let window = core.calls.window(place.id, place.length, writable)?;
        return Ok(Taken { window: Some(window), pin: None });
    };
    let fd = core.calls.pinned(place.id, kind, writable)?;
    let length = usize::try_from(place.length).map_err(|_| Errno::ENOMEM)?;
    let window = Window::map(&fd, length, writable)?;
    Ok(Taken { window: Some(window), pin: Some(fd) })
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session(context {})", self.context_id())
    }
}

/// What the session's clones, mappings and service thread share.
pub(crate) struct Core {
    pub(crate) calls: Box<dyn SessionCalls>,
    pub(crate) name: String,
    pub(crate) context_id: u64,
    deadline: Duration,
    pub(crate) options: SessionOptions,
    /// `None`: this process can be given no grants.
    sequences: Option<Window>,
    home: AddressSpace,
    pub(crate) gone: AtomicBool,
    pub(crate) stopping: AtomicBool,
    pub(crate) revocations: AtomicU64,
    pub(crate) registry: Registry,
}

impl Core {
    /// Is this the process that opened the session?
    pub(crate) fn is_home(&self) -> bool {
        self.home.is_current()
    }

    /// Can the session be used at all?
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.is_home() {
            return Err(Error::StaleContext);
        }
        let told = self.sequences.as_ref().is_some_and(|sequences| sequences.load_word(0) != Ok(0));
        match self.gone.load(Ordering::Acquire) || told {
            true => Err(Error::ServerGone),
            false => Ok(()),
        }
    }

    /// Is a grant valid at this moment?
    pub(crate) fn is_valid(&self, slot: u32, sequence: u64) -> Result<bool, Error> {
        self.check()?;
        Ok(self.sequences.as_ref().is_some_and(|sequences| sequences.load_word(slot as usize) == Ok(sequence)))
    }

    pub(crate) fn wake(&self) {
        self.calls.wake();
    }
}

/// Stops the service thread when the last clone and mapping are gone.
pub(crate) struct Owner {
    pub(crate) core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
}

impl Owner {
    /// The thread that runs callbacks.
    pub(crate) fn service(&self) -> Option<ThreadId> {
        self.thread.as_ref().map(|thread| thread.thread().id())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if !self.core.is_home() {
            // The thread does not exist in a fork child; not even detaching it is possible.
            std::mem::forget(thread);
            return;
        }
        self.core.stopping.store(true, Ordering::Release);
        self.core.wake();
        // A callback may drop the last mapping: the thread cannot wait for itself, nor for one that waits for it.
        if let Some(_waiting) = Waiting::begin(thread.thread().id()) {
            // It ends normally: callbacks that panic are caught.
            let _ = thread.join();
        }
    }
}
