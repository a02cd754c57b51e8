//! A client whose thread acknowledges whatever it is told of.

use std::sync::Arc;

use crate::clock::{Clock, Gate};
use crate::engine::tests::world::{Peer, World};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread;
use crate::types::GrantId;

pub(super) struct Client {
    pub(super) peer: Peer,
    bell: Arc<Gate>,
    dismissed: AtomicBool,
}

impl Client {
    pub(super) fn new(world: &World) -> Client {
        let bell = Arc::<Gate>::default();
        let rung = bell.clone();
        let peer = world.peer_woken_by(Arc::new(move || rung.notify()));
        Client { peer, bell, dismissed: AtomicBool::new(false) }
    }

    /// Acknowledges until it is dismissed, or its session is closed.
    fn listen(&self, world: &World) {
        let engine = &world.engine;
        while engine.session_of(self.peer.session).is_some() {
            let dismissed = || self.dismissed.load(Ordering::SeqCst);
            world.clock.wait(&self.bell, None, &mut || engine.has_events(self.peer.session) || dismissed());
            let events = engine.events(self.peer.session, 16);
            for event in &events {
                engine.ack(self.peer.session, GrantId(event.grant_id));
            }
            if events.is_empty() && dismissed() {
                return;
            }
        }
    }

    fn dismiss(&self) {
        self.dismissed.store(true, Ordering::SeqCst);
        self.bell.notify();
    }
}

/// Runs what `work` starts while the clients listen.
pub(super) fn beside<'env>(
    world: &'env World,
    clients: &'env [&Client],
    work: impl for<'scope> FnOnce(&'scope thread::Scope<'scope, 'env>),
) {
    thread::scope(|listeners| {
        for client in clients {
            listeners.spawn(|| client.listen(world));
        }
        thread::scope(work);
        clients.iter().for_each(|client| client.dismiss());
    });
}
