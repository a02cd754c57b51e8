//! What must be left when everybody is done: nothing.

use super::aperture::WatchedAperture;
use crate::engine::tests::world::{Peer, World, me};

/// No window, chunk, grant, slot, mapping, pin or entry of the object is left; the sessions that are open still are.
pub(super) fn assert_nothing_left(world: &World, aperture: &WatchedAperture, open: &[Peer]) {
    world.assert_clean();
    assert!(aperture.live().is_empty(), "a window was not written back");
    let engine = &world.engine;
    assert_eq!(engine.grants.len(), open.len(), "more is granted than sequence pages");
    assert_eq!((engine.mapping_count(None), engine.mapping_count(Some(super::FILE))), (0, 0));
    assert_eq!((engine.contexts.len(), engine.sessions.len(), world.custody.pages()), (open.len(), open.len(), open.len()));
    assert_eq!((engine.pins().len(), engine.pin_totals().used_bytes), (0, 0));
    for peer in open {
        assert!(engine.grant(peer.sequence).is_some());
        let context = engine.live_context(peer.context, me()).expect("an open session's");
        let tickets: Vec<_> = (0..engine.config.grants_per_session).map_while(|_| engine.draw_ticket(&context)).collect();
        assert_eq!(tickets.len(), engine.config.grants_per_session, "a slot was not given back");
    }
}
