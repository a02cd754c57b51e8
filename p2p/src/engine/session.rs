//! Sessions: one client's channel for contexts, events and sequence numbers.

use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_sys::SequencePage;

use super::Engine;
use super::context::Context;
use super::grant::{Grant, GrantKind};
use super::home::Home;
use super::user::{Share, User};
use crate::api::{BindError, BoundContext, Client, Event, SessionError, SessionId, Wake};
use crate::sync::{Mutex, lock};
use crate::types::{ContextId, GrantId, Importer, MappingId};

/// Events that are kept for any session, whatever it holds.
const EVENTS_MIN: usize = 1024;

pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) uid: u32,
    pub(super) user: Arc<User>,
    /// Its place among the user's sessions; freed when it is closed, though others may still know of it.
    place: Mutex<Option<Share>>,
    pub(super) wake: Wake,
    pub(super) page: SequencePage,
    state: Mutex<SessionState>,
}

#[derive(Default)]
struct SessionState {
    closed: bool,
    contexts: Vec<(ContextId, GrantId)>,
    events: VecDeque<Event>,
    /// Slots drawn and not returned.
    grants: usize,
    /// Most of them since all events were read.
    peak_grants: usize,
    mappings: HashSet<MappingId>,
    free_slots: Vec<u32>,
    slots_used: u32,
}

/// A place in the sequence page and the number in it while the grant is valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) number: u32,
    pub(super) value: u64,
}

/// What a closed session leaves to be ended.
pub(super) struct Remains {
    pub(super) contexts: Vec<(ContextId, GrantId)>,
    pub(super) mappings: Vec<MappingId>,
}

impl Session {
    pub(super) fn sequence_bytes(&self) -> u64 {
        self.page.slots() as u64 * 8
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// A slot for a new grant; `None`: the quota is used up, or the session has ended.
    pub(super) fn draw_slot(&self, limit: usize) -> Option<Slot> {
        let mut state = lock(&self.state);
        if state.closed || state.grants >= limit {
            return None;
        }
        let number = match state.free_slots.pop() {
            Some(number) => number,
            None => {
                // Slot 0 tells that the server is gone.
                let number = state.slots_used + 1;
                if number as usize >= self.page.slots() {
                    return None;
                }
                state.slots_used = number;
                number
            }
        };
        state.grants += 1;
        state.peak_grants = state.peak_grants.max(state.grants);
        let value = self.page.load(number as usize)?;
        Some(Slot { number, value })
    }

    /// Makes a grant's number stale for good and frees the slot for another. Once for each slot drawn.
    pub(super) fn return_slot(&self, number: u32) {
        let mut state = lock(&self.state);
        self.page.bump(number as usize);
        state.free_slots.push(number);
        state.grants -= 1;
    }

    /// Tells the client of a revocation. A full queue loses the event: the grant is cut at the deadline. The queue has
    /// room for what the client has held since it last read them all, so that one that never reads cannot let it grow.
    pub(super) fn push_event(&self, event: Event, limit: usize) -> bool {
        let mut state = lock(&self.state);
        let room = !state.closed && state.events.len() < limit.min(state.peak_grants.max(EVENTS_MIN));
        if room {
            state.events.push_back(event);
        }
        room
    }

    pub(super) fn add_mapping(&self, mapping: MappingId, limit: usize) -> bool {
        let mut state = lock(&self.state);
        let room = !state.closed && state.mappings.len() < limit;
        if room {
            state.mappings.insert(mapping);
        }
        room
    }

    /// One more map would be refused for the session's quota.
    pub(super) fn is_full(&self, config: &crate::api::EngineConfig) -> bool {
        let state = lock(&self.state);
        state.grants >= config.grants_per_session || state.mappings.len() >= config.mappings_per_session
    }

    pub(super) fn remove_mapping(&self, mapping: MappingId) {
        lock(&self.state).mappings.remove(&mapping);
    }

    fn close(&self) -> Remains {
        let mut state = lock(&self.state);
        state.closed = true;
        state.events.clear();
        Remains { contexts: std::mem::take(&mut state.contexts), mappings: state.mappings.drain().collect() }
    }
}

impl Engine {
    /// A client of this user opened the session file. `wake` is called, with no lock held, after events were queued.
    pub fn open_session(&self, uid: u32, wake: Wake) -> Result<SessionId, SessionError> {
        let limit = self.config.sessions_max;
        if self.sessions.len() >= limit {
            return Err(SessionError::TooMany { limit });
        }
        let limit = self.config.sessions_per_user;
        // Under the entry's lock, so that a session that ends does not forget the user in between.
        let entry = self.users.entry(uid).or_default();
        let user = entry.value().clone();
        let place = user.take_session(limit);
        drop(entry);
        let place = place.ok_or(SessionError::TooManyOfUser { uid, limit })?;
        let failed = |err: std::io::Error| SessionError::NoSequencePage { reason: err.to_string() };
        let id = SessionId(self.next_number.fetch_add(1, Ordering::Relaxed));
        let page = SequencePage::create(self.config.grants_per_session + 1).map_err(failed)?;
        let writer = page.writer_fd().map_err(failed)?;
        self.custody.hold_sequence(id.0, writer).map_err(failed)?;
        let session = Session { id, uid, user, place: Mutex::new(Some(place)), wake, page, state: Mutex::default() };
        self.sessions.insert(id, Arc::new(session));
        Ok(id)
    }

    /// Binds an importer to the caller's address space. `mem`: the caller's own `/proc/self/mem`, opened read-only;
    /// without it the server opens it itself, which it may be forbidden to.
    pub fn bind_context(
        &self,
        session: SessionId,
        importer: Importer,
        owner: Client,
        mem: Option<OwnedFd>,
    ) -> Result<BoundContext, BindError> {
        let found = self.session_of(session).ok_or(BindError::NoSession { session })?;
        if found.uid != owner.uid {
            return Err(BindError::NotOwner { session });
        }
        let limit = self.config.contexts_per_session;
        if lock(&found.state).contexts.len() >= limit {
            return Err(BindError::TooMany { limit });
        }
        let home = Home::of(owner.tgid, mem).map_err(|reason| BindError::NoAddressSpace { tgid: owner.tgid, reason })?;
        let id = ContextId(self.context_ids.next_id().ok_or(BindError::NoId)?);
        let sequence_grant = self.new_grant_id().ok_or(BindError::NoId)?;
        let context = Context::new(id, found.clone(), importer, owner, home);
        let grant = Grant { id: sequence_grant, kind: GrantKind::Sequence(context.clone()) };
        let mut state = lock(&found.state);
        if state.closed {
            return Err(BindError::NoSession { session });
        }
        if state.contexts.len() >= limit {
            return Err(BindError::TooMany { limit });
        }
        state.contexts.push((id, sequence_grant));
        self.contexts.insert(id, context);
        self.grants.insert(sequence_grant, Arc::new(grant));
        Ok(BoundContext {
            id,
            sequence_grant,
            sequence_bytes: found.sequence_bytes(),
            deadline_ms: u32::try_from(self.config.deadline.as_millis()).unwrap_or(u32::MAX),
        })
    }

    /// Takes up to `max` events off a session's queue, oldest first.
    pub fn events(&self, session: SessionId, max: usize) -> Vec<Event> {
        let Some(session) = self.session_of(session) else {
            return Vec::new();
        };
        let mut state = lock(&session.state);
        let count = max.min(state.events.len());
        let taken = state.events.drain(..count).collect();
        if state.events.is_empty() {
            state.peak_grants = state.grants;
        }
        taken
    }

    /// The session's queue is not empty, or the session has ended.
    pub fn has_events(&self, session: SessionId) -> bool {
        self.session_of(session).is_none_or(|session| !lock(&session.state).events.is_empty())
    }

    /// The last descriptor of the session was closed: all it holds ends at once, with nobody to wait for. Windows
    /// shared with other sessions stay theirs.
    pub fn close_session(&self, session: SessionId) {
        let Some((_, session)) = self.sessions.remove(&session) else {
            return;
        };
        let remains = session.close();
        for (context, sequence_grant) in &remains.contexts {
            self.contexts.remove(context);
            self.grants.remove(sequence_grant);
        }
        let ended = remains.mappings.iter().filter_map(|mapping| self.mappings.remove(*mapping));
        let grants: Vec<GrantId> = ended.flat_map(|mapping| mapping.grants()).collect();
        self.release_grants(&grants, peerfs_abi::Trigger::ClientGone);
        drop(lock(&session.place).take());
        self.users.remove_if(&session.uid, |_, user| user.is_gone());
        self.custody.release_sequence(session.id.0);
    }

    pub(super) fn session_of(&self, id: SessionId) -> Option<Arc<Session>> {
        Some(self.sessions.get(&id)?.value().clone())
    }

    /// The context, if the caller is the process that made it.
    pub(super) fn live_context(&self, id: ContextId, client: Client) -> Option<Arc<Context>> {
        let context = self.contexts.get(&id)?.value().clone();
        context.is_called_by(client).then_some(context)
    }
}
