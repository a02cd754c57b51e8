//! Grants: what a client opens and maps.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peerfs_blockdev::Window;

use super::Engine;
use super::context::Context;
use super::mappings::Mapping;
use super::object::Object;
use super::session::{Session, Slot};
use crate::api::{Client, GrantError, GrantSource, GrantView};
use crate::types::GrantId;

pub(super) struct Grant {
    pub(super) id: GrantId,
    pub(super) session: Arc<Session>,
    pub(super) context: Arc<Context>,
    pub(super) kind: GrantKind,
}

pub(super) enum GrantKind {
    /// The session's sequence page.
    Sequence,
    /// A window.
    Data(DataGrant),
}

pub(super) struct DataGrant {
    pub(super) object: Arc<Object>,
    /// Number of the chunk in the object, and its id.
    pub(super) chunk: (u64, u64),
    pub(super) window: Arc<dyn Window>,
    pub(super) writable: bool,
    pub(super) mapping: Arc<Mapping>,
    pub(super) slot: Slot,
    pub(super) taken: AtomicBool,
}

impl Grant {
    pub(super) fn data(&self) -> Option<&DataGrant> {
        match &self.kind {
            GrantKind::Data(data) => Some(data),
            GrantKind::Sequence => None,
        }
    }

    pub(super) fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.data().map(|data| &data.mapping)
    }

    fn view(&self) -> GrantView {
        let (writable, length) = match &self.kind {
            GrantKind::Data(data) => (data.writable, data.window.length()),
            GrantKind::Sequence => (false, self.session.sequence_bytes()),
        };
        GrantView { owner: self.context.owner, writable, length }
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
        if !grant.context.is_called_by(client) {
            return Err(GrantError::NotOwner);
        }
        if writable && !grant.view().writable {
            return Err(GrantError::ReadOnly);
        }
        let failed = |reason: String| GrantError::Failed { reason };
        match &grant.kind {
            GrantKind::Sequence => grant.session.page.reader_fd().map_err(|err| failed(err.to_string())),
            GrantKind::Data(data) => {
                if data.taken.swap(true, Ordering::AcqRel) {
                    return Err(GrantError::Taken);
                }
                data.window.grant_fd(writable).map_err(|err| {
                    data.taken.store(false, Ordering::Release);
                    failed(err.to_string())
                })
            }
        }
    }

    /// Forgets a grant that ended: its name, its slot, its place in session and mapping.
    pub(super) fn forget_grant(&self, grant: &Grant) {
        self.grants.remove(&grant.id);
        if let Some(data) = grant.data() {
            data.mapping.remove_grant(grant.id);
            grant.session.return_slot(grant.id, data.slot);
        }
    }
}

impl GrantSource for Engine {
    fn take(&self, id: GrantId, client: Client, writable: Option<bool>) -> Result<OwnedFd, GrantError> {
        let view = self.grant(id).ok_or(GrantError::Gone)?;
        self.take_grant(id, client, writable.unwrap_or(view.writable))
    }
}
