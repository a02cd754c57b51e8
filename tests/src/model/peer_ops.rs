//! What importers do: map, read, write, unmap, misbehave, die.

use anyhow::{Context, Result, ensure};
use peerfs_abi::{MapFlags, Reason, Trigger};
use peerfs_fs::ops::Operations;
use peerfs_p2p::{CacheProbe, MapRequest, Range};

use super::checks::same;
use super::importer::{Access, SimMapping};
use super::oracle::{BLOCK, BlockState, is_plausible};
use super::racing::Race;
use super::world::{HandleKind, MAX_SIZE, OpenHandle, World, failed};

/// Mappings of one importer.
const MAPPINGS: usize = 8;
/// Longest transfer of an importer, bytes.
const LONGEST: u64 = 512 << 10;

/// An importer, and which of its mappings.
type Place = (usize, usize);

/// What a map asks for.
struct Wish {
    request: MapRequest,
    write: bool,
}

impl World {
    fn pick_importer(&mut self) -> usize {
        self.random.below(self.importers.len() as u64) as usize
    }

    pub(super) fn map(&mut self) -> Result<()> {
        let importer = self.pick_importer();
        let Some(key) = self.pick_file().filter(|_| self.importers[importer].mappings.len() < MAPPINGS) else {
            return self.note_idle();
        };
        let wish = self.pick_wish(key);
        self.note("map", format!("{key} by {importer}: {:?} {:?}", wish.request.range, wish.request.flags));
        let before = self.block_states(key);
        let handle = self.open_handle(self.file(key).ino, true, wish.request.handle_writable, true, false)?;
        let blank = SimMapping::new(key, handle, wish.request.handle_writable, wish.write);
        self.file_mut(key).mapped += 1;
        let stubborn = self.random.one_in(40);
        self.system().cache.be_stubborn(stubborn);
        let engine = self.system().engine.clone();
        let race = self.pick_race(key, wish.request.range);
        let mapped = self.importers[importer].map(&engine, &wish.request, blank).map(|_| ());
        self.system().cache.be_stubborn(false);
        mapped?;
        if let Some(race) = race.filter(|_| !self.system().custody.disarm()) {
            self.note("store during a map", format!("{key} {} bytes at {}", race.data.len(), race.offset));
            self.file_mut(key).model.store(race.offset, &race.data);
        }
        self.settle();
        self.check_decisions(importer, &wish, &before)?;
        // Most are used at once, as importers do.
        let newest = (importer, self.importers[importer].mappings.len() - 1);
        let Some(range) = self.pick_inside(newest) else { return Ok(()) };
        match self.random.below(4) {
            0 => Ok(()),
            1 if wish.write && wish.request.handle_writable => self.peer_write_in(newest, range),
            _ => self.peer_read_in(newest, range),
        }
    }

    /// Now and then, where the CPU may store: a store that comes during the map.
    fn pick_race(&mut self, key: u64, wanted: Range) -> Option<Race> {
        let may_store = |open: &&OpenHandle| matches!(open.kind, HandleKind::CachedWrite | HandleKind::BypassWrite);
        let file = self.file(key);
        let (ino, handle) = (file.ino, file.handles.iter().find(may_store)?.handle);
        let inside = wanted.intersect(Range { start: 0, end: file.model.size() });
        if inside.is_empty() || !self.random.one_in(4) {
            return None;
        }
        let offset = inside.start + self.random.below(inside.length());
        let length = 1 + self.random.below((inside.end - offset).min(100));
        let race = Race { ino, handle, offset, data: self.pick_data(length) };
        self.system().custody.arm(race.clone());
        Some(race)
    }

    fn pick_wish(&mut self, key: u64) -> Wish {
        let size = self.file(key).model.size();
        let mut range = self.pick_range((size + BLOCK).min(MAX_SIZE - 1), 3 << 20);
        if self.random.one_in(10) {
            range.end = u64::MAX;
        }
        let mut flags = MapFlags::empty();
        flags.set(MapFlags::WRITE, self.random.below(5) < 2);
        flags.set(MapFlags::ATOMIC, self.random.one_in(60));
        flags.set(MapFlags::PIN, self.random.one_in(60));
        let handle_writable = !self.random.one_in(10);
        let probe = CacheProbe { tid: nix::unistd::gettid().as_raw() as u32, fd: 0 };
        let request = MapRequest { object: self.object(key), range, flags, handle_writable, uid: 0, cache_probe: Some(probe) };
        Wish { request, write: flags.writes() }
    }

    fn block_states(&self, key: u64) -> Vec<BlockState> {
        let model = &self.file(key).model;
        (0..model.block_count()).map(|block| model.block(block)).collect()
    }

    /// The answer fits what is allocated, before or after the page cache was written back for it.
    fn check_decisions(&mut self, importer: usize, wish: &Wish, before: &[BlockState]) -> Result<()> {
        let mapping = self.importers[importer].mappings.last().context("just mapped")?;
        let key = mapping.file;
        let flags = wish.request.flags;
        let handles = self.system().core.cached_handles(wish.request.object.0);
        let meets_cache = if wish.write { handles.cached_handles > 0 } else { handles.cached_writers > 0 };
        let everywhere = self.everywhere(
            key,
            &[
                (wish.write && !wish.request.handle_writable, Reason::ReadOnly),
                (flags.contains(MapFlags::PIN) && meets_cache, Reason::CpuWriter),
                (flags.contains(MapFlags::PIN), Reason::PinQuota),
                (!self.importers[importer].dynamic && !flags.contains(MapFlags::PIN), Reason::NotifierRequired),
            ],
        );
        let model = &self.file(key).model;
        let end =
            if wish.request.range.end == u64::MAX { model.size().max(wish.request.range.start) } else { wish.request.range.end };
        ensure!(mapping.segments.is_empty() || mapping.range() == Range { start: wish.request.range.start, end });
        let requested = Range { start: wish.request.range.start, end };
        for segment in &mapping.segments {
            let answer = segment.access.err();
            for block in segment.range.start / BLOCK..segment.range.end.div_ceil(BLOCK) {
                // A segment may end inside a block that the request covers: the block counts as the request has it.
                let part = Range::new(block * BLOCK, BLOCK).intersect(requested);
                let start = part.start.max(segment.range.start);
                let part = Range { start, ..part };
                let was = before.get(block as usize).copied().unwrap_or(BlockState::Hole);
                let fits = |state| is_plausible(state, model.size(), part, everywhere, answer);
                ensure!(
                    fits(was) || fits(model.block(block)),
                    "block {block} ({was:?}, then {:?}) of {part:?}, size {}, everywhere {everywhere:?}: answered {answer:?}",
                    model.block(block),
                    model.size()
                );
            }
        }
        let names: Vec<&'static str> =
            mapping.segments.iter().map(|segment| segment.access.err().map_or("direct", Reason::name)).collect();
        for name in names {
            *self.tally.segments.entry(name).or_default() += 1;
        }
        Ok(())
    }

    /// A mapping, and a range of it that lies inside the file.
    fn pick_mapping(&mut self, wanted: impl Fn(&SimMapping) -> bool) -> Option<(Place, Range)> {
        let all: Vec<(usize, usize)> = self
            .importers
            .iter()
            .enumerate()
            .flat_map(|(at, importer)| (0..importer.mappings.len()).map(move |mapping| (at, mapping)))
            .filter(|(at, mapping)| wanted(&self.importers[*at].mappings[*mapping]))
            .collect();
        if all.is_empty() {
            return None;
        }
        let place = *self.random.pick(&all);
        self.pick_inside(place).map(|range| (place, range))
    }

    fn pick_inside(&mut self, (at, index): Place) -> Option<Range> {
        let mapping = &self.importers[at].mappings[index];
        let inside = mapping.range().intersect(Range { start: 0, end: self.file(mapping.file).model.size() });
        let range = self.pick_range(inside.length(), LONGEST);
        let range = Range { start: inside.start + range.start, end: inside.start + range.end }.intersect(inside);
        (!range.is_empty()).then_some(range)
    }

    pub(super) fn peer_read(&mut self) -> Result<()> {
        let Some((place, range)) = self.pick_mapping(|_| true) else { return self.note_idle() };
        self.peer_read_in(place, range)
    }

    fn peer_read_in(&mut self, (at, index): Place, range: Range) -> Result<()> {
        let mapping = &self.importers[at].mappings[index];
        let (key, handle, parts) = (mapping.file, mapping.handle, mapping.parts(range));
        self.note("peer read", format!("{key} by {at} {range:?}"));
        let mut cut = false;
        for part in parts {
            let length = part.range.length();
            let mut found = vec![0; length as usize];
            let engine = self.system().engine.clone();
            let access = match part.access {
                Ok(place) => Some(self.importers[at].read(&engine, place, &mut found)?),
                Err(_) => None,
            };
            if access != Some(Access::Done) {
                found = self.bypass_read(key, handle, part.range)?;
            }
            self.count(at, index, access, length);
            same("peer read", part.range.start, &found, self.file(key).model.slice(part.range.start, length))
                .with_context(|| format!("{access:?} {:?}", part.access))?;
            cut |= access == Some(Access::Cut);
        }
        self.maybe_give_up((at, index), cut)
    }

    /// Most importers end a mapping when they find part of it cut.
    fn maybe_give_up(&mut self, (at, index): Place, cut: bool) -> Result<()> {
        if cut && !self.random.one_in(3) {
            return self.end_mapping(at, index);
        }
        Ok(())
    }

    pub(super) fn peer_write(&mut self) -> Result<()> {
        let able = |mapping: &SimMapping| mapping.writable && mapping.handle_writable;
        let Some((place, range)) = self.pick_mapping(able) else { return self.note_idle() };
        self.peer_write_in(place, range)
    }

    fn peer_write_in(&mut self, (at, index): Place, range: Range) -> Result<()> {
        let mapping = &self.importers[at].mappings[index];
        let (key, handle, parts) = (mapping.file, mapping.handle, mapping.parts(range));
        self.note("peer write", format!("{key} by {at} {range:?}"));
        let mut cut = false;
        for part in parts {
            let data = self.pick_data(part.range.length());
            let engine = self.system().engine.clone();
            let access = match part.access {
                Ok(place) => Some(self.importers[at].write(&engine, place, &data)?),
                Err(_) => None,
            };
            if access == Some(Access::Done) {
                self.file_mut(key).model.write(part.range.start, &data);
            } else {
                self.bypass_write(key, handle, part.range.start, &data)?;
            }
            self.count(at, index, access, part.range.length());
            cut |= access == Some(Access::Cut);
        }
        self.maybe_give_up((at, index), cut)
    }

    fn count(&mut self, at: usize, index: usize, access: Option<Access>, bytes: u64) {
        let moved = &mut self.importers[at].mappings[index].moved;
        match access {
            Some(Access::Done) => {
                moved.direct += bytes;
                self.tally.bytes_direct += bytes;
            }
            other => {
                moved.fallback += bytes;
                self.tally.bytes_fallback += bytes;
                self.tally.cut_accesses += u64::from(other == Some(Access::Cut));
            }
        }
    }

    /// A peer may store behind the end of the file, in the last block: nobody must ever see it.
    pub(super) fn scribble_beyond_end(&mut self) -> Result<()> {
        let Some(((at, index), _)) = self.pick_mapping(|mapping| mapping.writable) else { return self.note_idle() };
        let mapping = &self.importers[at].mappings[index];
        let (key, size) = (mapping.file, self.file(mapping.file).model.size());
        let tail = Range { start: size, end: size.next_multiple_of(BLOCK) };
        let holds_end = |segment: &&super::importer::SimSegment| segment.range.start < size && segment.range.end == size;
        let Some((grant, offset)) = mapping.segments.iter().find(holds_end).and_then(|s| {
            let (grant, offset) = s.access.ok()?;
            Some((grant, offset + s.range.length()))
        }) else {
            return self.note_idle();
        };
        if tail.is_empty() {
            return self.note_idle();
        }
        self.note("scribble", format!("{key} by {at} {tail:?}"));
        let junk = vec![0xEE; tail.length() as usize];
        let engine = self.system().engine.clone();
        self.importers[at].write(&engine, (grant, offset), &junk).map(drop)
    }

    pub(super) fn unmap(&mut self) -> Result<()> {
        let at = self.pick_importer();
        if self.importers[at].mappings.is_empty() {
            return self.note_idle();
        }
        let index = self.random.below(self.importers[at].mappings.len() as u64) as usize;
        self.note("unmap", format!("{} by {at}", self.importers[at].mappings[index].file));
        self.end_mapping(at, index)
    }

    pub(super) fn end_mapping(&mut self, at: usize, index: usize) -> Result<()> {
        let engine = self.system().engine.clone();
        let mapping = self.importers[at].unmap(&engine, index)?;
        let reported = &mut self.file_mut(mapping.file).reported;
        reported.direct += mapping.moved.direct;
        reported.fallback += mapping.moved.fallback;
        let reported = *reported;
        let counted = engine.moved(self.object(mapping.file));
        ensure!(
            (counted.direct(), counted.fallback_total()) == (reported.direct, reported.fallback),
            "the server counted {counted:?}, importers reported {reported:?}"
        );
        self.let_go(mapping)
    }

    fn let_go(&mut self, mapping: SimMapping) -> Result<()> {
        self.system().core.release(mapping.handle);
        self.file_mut(mapping.file).mapped -= 1;
        self.bury(mapping.file)
    }

    pub(super) fn revoke(&mut self) -> Result<()> {
        let engine = self.system().engine.clone();
        let key = self.pick_file().filter(|_| !self.random.one_in(4));
        let range = self.pick_range(MAX_SIZE, MAX_SIZE);
        self.note("revoke", format!("{key:?} {range:?}"));
        engine.revoke(key.map(|key| self.object(key)), range, Trigger::Administrator);
        Ok(())
    }

    /// An importer dies without a word; another takes its place.
    pub(super) fn replace_importer(&mut self) -> Result<()> {
        let at = self.pick_importer();
        self.note("importer dies", format!("{at}"));
        self.dismiss(at)?;
        self.recruit()
    }

    pub(super) fn dismiss(&mut self, at: usize) -> Result<()> {
        let engine = self.system().engine.clone();
        for mapping in self.importers.remove(at).die(&engine) {
            self.let_go(mapping)?;
        }
        Ok(())
    }

    pub(super) fn change_manners(&mut self) {
        let at = self.pick_importer();
        let acknowledges = !self.random.one_in(3);
        self.note("manners", format!("{at} acknowledges: {acknowledges}"));
        self.importers[at].set_acknowledges(acknowledges);
    }

    /// Every importer ends its mappings in order.
    pub(super) fn unmap_all(&mut self) -> Result<()> {
        for at in 0..self.importers.len() {
            while !self.importers[at].mappings.is_empty() {
                self.end_mapping(at, 0)?;
            }
        }
        Ok(())
    }

    /// The CPU's handles are closed, as at the end of every process.
    pub(super) fn close_all(&mut self) -> Result<()> {
        let keys: Vec<u64> = self.files.keys().copied().collect();
        for key in keys {
            let handles = std::mem::take(&mut self.file_mut(key).handles);
            for open in handles {
                self.close_handle(self.file(key).ino, open)?;
            }
            self.settle();
            self.bury(key)?;
        }
        Ok(())
    }

    /// Before the engine goes: what it revoked and why.
    pub(super) fn count_revocations(&mut self) {
        for record in self.system().engine.snapshot().revocations {
            *self.tally.revoked.entry(record.trigger.to_owned()).or_default() += record.revoked;
        }
    }

    /// Looks every file up again after a mount.
    pub(super) fn look_everything_up(&mut self) -> Result<()> {
        let core = self.system().core.clone();
        for file in self.files.values_mut() {
            file.lookups = 0;
        }
        for (name, key) in self.names.clone() {
            let attr = core.lookup(name.0, name.1.as_bytes()).map_err(failed)?;
            let file = self.file_mut(key);
            ensure!(attr.ino == file.ino, "{name:?} names inode {}, not {}", attr.ino, file.ino);
            file.lookups += 1;
        }
        Ok(())
    }
}
