//! Contexts: an importer bound to one address space.

use std::sync::Arc;

use super::home::Home;
use super::session::Session;
use crate::api::Client;
use crate::types::{ContextId, Importer};

pub(super) struct Context {
    pub(super) id: ContextId,
    pub(super) session: Arc<Session>,
    pub(super) importer: Importer,
    pub(super) owner: Client,
    home: Home,
}

impl Context {
    pub(super) fn new(id: ContextId, session: Arc<Session>, importer: Importer, owner: Client, home: Home) -> Arc<Context> {
        Arc::new(Context { id, session, importer, owner, home })
    }

    /// The caller runs in the address space that the context was made in, as the same user.
    pub(super) fn is_called_by(&self, client: Client) -> bool {
        self.owner.uid == client.uid && self.home.is_of(client.tgid)
    }
}
