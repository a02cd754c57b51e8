//! Grants: what a client opens and maps.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use peerfs_blockdev::Window;

use super::Engine;
use super::context::Context;
use super::mappings::Mapping;
use super::object::Object;
use super::pins::PinGrant;
use super::session::Session;
use crate::api::{Client, GrantError, GrantObject, GrantPart, GrantSource, GrantView, SessionId};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::types::GrantId;

/// There is one for each live mapping of a block, so it is kept small.
pub(super) struct Grant {
    pub(super) id: GrantId,
    pub(super) kind: GrantKind,
}

pub(super) enum GrantKind {
    /// The session's sequence page.
    Sequence(Arc<Context>),
    /// A window.
    Data(DataGrant),
    /// A pin, while the mapping lives that it was made through.
    Pin(PinGrant),
}

pub(super) struct DataGrant {
    pub(super) mapping: Arc<Mapping>,
    pub(super) lent: Arc<Lent>,
    /// Number in the session's sequence page.
    pub(super) slot: u32,
    /// Place among the window's holders; theirs to keep.
    pub(super) place: AtomicU32,
    pub(super) writable: bool,
    pub(super) taken: AtomicBool,
    /// The holder has stopped using a window that is being revoked.
    pub(super) acknowledged: AtomicBool,
}

/// A window and where it belongs: what its grants have in common.
pub(super) struct Lent {
    pub(super) object: Arc<Object>,
    /// Number of the chunk in the object.
    pub(super) number: u64,
    /// Id of the chunk.
    pub(super) id: u64,
    pub(super) window: Arc<dyn Window>,
    used_ns: AtomicU64,
    cut: AtomicBool,
}

impl Lent {
    pub(super) fn new(object: Arc<Object>, number: u64, id: u64, window: Arc<dyn Window>) -> Arc<Lent> {
        Arc::new(Lent { object, number, id, window, used_ns: AtomicU64::new(0), cut: AtomicBool::new(false) })
    }

    /// It was granted or reported on.
    pub(super) fn touch(&self, now: Duration) {
        self.used_ns.fetch_max(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn used_after(&self, moment: Duration) -> bool {
        Duration::from_nanos(self.used_ns.load(Ordering::Relaxed)) > moment
    }

    /// Ends every access.
    pub(super) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.window.cut();
    }
}

impl Grant {
    pub(super) fn data(&self) -> Option<&DataGrant> {
        match &self.kind {
            GrantKind::Data(data) => Some(data),
            GrantKind::Sequence(_) | GrantKind::Pin(_) => None,
        }
    }

    /// The mapping it belongs to, and its number in the session's sequence page.
    fn place(&self) -> Option<(&Arc<Mapping>, u32)> {
        match &self.kind {
            GrantKind::Sequence(_) => None,
            GrantKind::Data(data) => Some((&data.mapping, data.slot)),
            GrantKind::Pin(held) => Some((&held.mapping, held.slot)),
        }
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        match &self.kind {
            GrantKind::Data(data) => &data.mapping.context,
            GrantKind::Pin(held) => &held.mapping.context,
            GrantKind::Sequence(context) => context,
        }
    }

    pub(super) fn session(&self) -> &Arc<Session> {
        &self.context().session
    }

    fn view(&self) -> GrantView {
        let (writable, length, object) = match &self.kind {
            GrantKind::Data(data) => (data.writable, data.lent.window.length(), GrantObject::Window),
            GrantKind::Pin(held) => (held.pin.is_writable(), held.pin.length(), held.pin.form()),
            GrantKind::Sequence(context) => (false, context.session.sequence_bytes(), GrantObject::Window),
        };
        GrantView { owner: self.context().owner, writable, length, object }
    }
}

impl Engine {
    /// Looks a grant up.
    pub fn grant(&self, id: GrantId) -> Option<GrantView> {
        Some(self.grant_of(id)?.view())
    }

    pub(super) fn grant_of(&self, id: GrantId) -> Option<Arc<Grant>> {
        Some(self.grants.get(&id)?.value().clone())
    }

    /// Hands a grant's descriptor to its owner: a window once, a sequence page any number of times. `writable`: the
    /// access the descriptor is to have, at most what was granted.
    pub fn take_grant(&self, id: GrantId, client: Client, writable: bool) -> Result<OwnedFd, GrantError> {
        let grant = self.grant_of(id).ok_or(GrantError::Gone)?;
        if !grant.context().is_called_by(client) {
            return Err(GrantError::NotOwner);
        }
        if writable && !grant.view().writable {
            return Err(GrantError::ReadOnly);
        }
        let failed = |reason: String| GrantError::Failed { reason };
        match &grant.kind {
            GrantKind::Sequence(context) => context.session.page.reader_fd().map_err(|err| failed(err.to_string())),
            GrantKind::Pin(held) => held.pin.take(writable),
            GrantKind::Data(data) => {
                if data.taken.swap(true, Ordering::AcqRel) {
                    return Err(GrantError::Taken);
                }
                data.lent.window.grant_fd(writable).map_err(|err| {
                    data.taken.store(false, Ordering::Release);
                    if data.lent.cut.load(Ordering::Acquire) { GrantError::Gone } else { failed(err.to_string()) }
                })
            }
        }
    }

    /// The window behind a grant, for the importer inside this process that has it. `None`: the grant has ended, or is
    /// none of its.
    pub fn lend_window(&self, id: GrantId, client: Client) -> Option<Arc<dyn Window>> {
        let grant = self.grant_of(id)?;
        let context = grant.context();
        let inside = context.is_called_by(client) && !context.importer.in_client;
        grant.data().filter(|_| inside).map(|data| data.lent.window.clone())
    }

    /// No revocation of a grant of this session has begun.
    pub fn is_current(&self, session: SessionId, part: &GrantPart) -> bool {
        let number = self.session_of(session).and_then(|session| session.page.load(part.sequence_slot as usize));
        number == Some(part.sequence)
    }

    /// Makes a new grant known.
    pub(super) fn add_grant(&self, grant: &Arc<Grant>) {
        self.grants.insert(grant.id, grant.clone());
        if let Some((mapping, _)) = grant.place()
            && mapping.add_grant(grant.id)
        {
            self.ledger.mapping_lives(mapping.object);
        }
    }

    /// Forgets a grant that ended: its name, its slot, its place in the mapping.
    pub(super) fn forget_grant(&self, grant: &Grant) {
        if self.grants.remove(&grant.id).is_none() {
            return;
        }
        if let Some((mapping, slot)) = grant.place() {
            if mapping.remove_grant(grant.id) {
                self.ledger.mapping_ends(mapping.object);
            }
            grant.session().return_slot(slot);
        }
    }
}

impl GrantSource for Engine {
    fn take(&self, id: GrantId, client: Client, writable: Option<bool>) -> Result<OwnedFd, GrantError> {
        let view = self.grant(id).ok_or(GrantError::Gone)?;
        self.take_grant(id, client, writable.unwrap_or(view.writable))
    }
}
