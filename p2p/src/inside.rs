//! A session of the server with itself: how importers that it drives map files, by the rules of every other importer.

use std::sync::{Arc, OnceLock, Weak};

use peerfs_abi::Reason;
use peerfs_blockdev::{PathKind, Window};

use crate::api::{BindError, Client, DeviceMapOps, GrantPart, MapAnswer, MapCall, MapError, SessionError, SessionId, UnmapCall};
use crate::engine::Engine;
use crate::moved::Moved;
use crate::types::{ContextId, GrantId, Importer, MapRequest, MappingId};

/// Segments asked for at a time.
const SEGMENTS: usize = 64;

/// Place, among the reasons, of bytes that were direct when they were mapped, and revoked before they were moved.
pub const REVOKED: usize = 0;

/// Why the server has no session with itself.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum InsideError {
    /// No session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// No context.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Counts as a session of the user for whom the server maps. Everything that it has ends when it is dropped.
pub(crate) struct InsideSession<'a> {
    engine: &'a Arc<Engine>,
    id: SessionId,
    context: ContextId,
    client: Client,
}

impl<'a> InsideSession<'a> {
    /// `told` hears of each grant that is being revoked, with no lock held, and says whether its importer has stopped using
    /// it already; otherwise it is acknowledged with [`InsideSession::acknowledge`].
    pub(crate) fn open(
        engine: &'a Arc<Engine>,
        uid: u32,
        importer: Importer,
        told: impl Fn(GrantId) -> bool + Send + Sync + 'static,
    ) -> Result<Self, InsideError> {
        let client = Client { tgid: std::process::id(), uid };
        let own: Arc<OnceLock<(Weak<Engine>, SessionId)>> = Arc::default();
        let known = own.clone();
        let wake = Arc::new(move || {
            let own = known.get().and_then(|(engine, id)| Some((engine.upgrade()?, *id)));
            if let Some((engine, id)) = own {
                take_events(&engine, id, &told);
            }
        });
        let id = engine.open_session(client.uid, wake)?;
        let _first = own.set((Arc::downgrade(engine), id));
        match engine.bind_context(id, importer, client, None) {
            Ok(bound) => Ok(InsideSession { engine, id, context: bound.id, client }),
            Err(error) => {
                engine.close_session(id);
                Err(error.into())
            }
        }
    }

    /// Maps more of a range for a mapping of this session, a new one if there is none yet.
    pub(crate) fn map(&self, request: &MapRequest, mapping: Option<MappingId>) -> Result<MapAnswer, MapError> {
        let call = MapCall { context: self.context, client: self.client, request, mapping, segments_max: SEGMENTS };
        self.engine.device_map(&call)
    }

    /// The window behind a grant.
    pub(crate) fn window(&self, grant: GrantId) -> Result<Arc<dyn Window>, Reason> {
        self.engine.lend_window(grant, self.client).ok_or(Reason::Busy)
    }

    /// No revocation of it has begun.
    pub(crate) fn is_current(&self, part: &GrantPart) -> bool {
        self.engine.is_current(self.id, part)
    }

    /// The importer has stopped using a grant. Nothing happens if it is not being revoked.
    pub(crate) fn acknowledge(&self, grant: GrantId) {
        self.engine.ack(self.id, grant);
    }

    /// Ends a mapping, and reports what was moved.
    pub(crate) fn unmap(&self, mapping: MappingId, moved: &Moved) -> Result<(), MapError> {
        let call = UnmapCall { session: self.id, client: self.client, mapping, report_only: false, moved: moved.clone() };
        self.engine.device_unmap(&call)
    }
}

impl Drop for InsideSession<'_> {
    fn drop(&mut self) {
        self.engine.close_session(self.id);
    }
}

fn take_events(engine: &Engine, session: SessionId, told: &impl Fn(GrantId) -> bool) {
    loop {
        let events = engine.events(session, SEGMENTS);
        if events.is_empty() {
            return;
        }
        for grant in events.iter().map(|event| GrantId(event.grant_id)) {
            if told(grant) {
                engine.ack(session, grant);
            }
        }
    }
}

/// Adds bytes that went directly.
pub(crate) fn attest(moved: &mut Moved, part: &GrantPart, bytes: u64) {
    match part.path {
        PathKind::DirectBar => moved.direct_bar += bytes,
        PathKind::DirectWindow => moved.direct_window += bytes,
    }
}
