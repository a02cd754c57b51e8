//! One page of a file in the CPU's cache, as far as coherence is concerned: whoever
//! fills or changes it holds it locked until the filesystem has answered, and whoever
//! drops it waits for that.

use std::sync::Arc;

use super::aperture::is_cut;
use crate::api::CpuAccess;
use crate::clock::{Clock, Gate};
use crate::engine::object::ChunkState;
use crate::engine::tests::world::{FILE, World};
use crate::sync::{Mutex, lock};
use crate::types::Range;

/// The page is the first one of the file.
pub(super) const PAGE: Range = Range { start: 0, end: 4096 };

#[derive(Default)]
pub(super) struct PageCache {
    state: Mutex<State>,
    unlocked: Arc<Gate>,
}

#[derive(Default)]
struct State {
    page: Page,
    /// Writable handles whose open has been answered.
    open_writers: u32,
    /// Those, and the ones that are being opened.
    counted_writers: u32,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Page {
    #[default]
    Absent,
    Locked,
    Cached,
}

impl PageCache {
    /// The cache of the world's file: it is emptied when the engine asks for it.
    pub(super) fn of(world: &World) -> Arc<PageCache> {
        let cache = Arc::new(PageCache::default());
        let (emptied, clock) = (cache.clone(), world.clock.clone());
        world.hook_quiesce(move |_, _| emptied.drop_page(&*clock));
        cache
    }

    /// A read(2) through the cache.
    pub(super) fn read(&self, world: &World) {
        if lock(&self.state).page == Page::Cached {
            return;
        }
        self.lock_page(&*world.clock);
        let cpu_writers = lock(&self.state).counted_writers;
        world.engine.cpu_access(FILE, PAGE, CpuAccess::CachedRead { cpu_writers });
        self.unlock_page(world);
    }

    /// A write(2) through the cache.
    pub(super) fn write(&self, world: &World) {
        self.lock_page(&*world.clock);
        world.engine.cpu_access(FILE, PAGE, CpuAccess::CachedWrite);
        self.unlock_page(world);
    }

    /// An open for writing.
    pub(super) fn open_writable(&self, world: &World) {
        lock(&self.state).counted_writers += 1;
        world.engine.writable_cached_open(FILE);
        lock(&self.state).open_writers += 1;
        self.assert_coherent(world);
    }

    /// I1: while a device may write the page, it is not cached. I2: while a device may read it and a writable handle is
    /// open, likewise.
    pub(super) fn assert_coherent(&self, world: &World) {
        let Some(object) = world.engine.object_of(FILE) else { return };
        let object = lock(&object.state);
        let state = lock(&self.state);
        for chunk in object.chunks.values() {
            let (ChunkState::Active(active) | ChunkState::Revoking(active)) = &chunk.state else { continue };
            if state.page == Page::Cached && !is_cut(&*active.window) {
                assert!(!active.writable, "I1: a device may write what is cached");
                assert!(state.open_writers == 0, "I2: a device reads what a program may change in the cache");
            }
        }
    }

    fn lock_page(&self, clock: &dyn Clock) {
        self.await_page(clock, |page| *page = Page::Locked);
    }

    fn unlock_page(&self, world: &World) {
        lock(&self.state).page = Page::Cached;
        self.unlocked.notify();
        self.assert_coherent(world);
    }

    fn drop_page(&self, clock: &dyn Clock) {
        self.await_page(clock, |page| *page = Page::Absent);
    }

    /// Changes the page once nobody has it locked.
    fn await_page(&self, clock: &dyn Clock, mut change: impl FnMut(&mut Page)) {
        clock.wait(&self.unlocked, None, &mut || {
            let mut state = lock(&self.state);
            let free = state.page != Page::Locked;
            if free {
                change(&mut state.page);
            }
            free
        });
    }
}
