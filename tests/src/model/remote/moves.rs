//! The steps of the model test on a real mount.

use anyhow::{Context, Result, ensure};
use peerfs_abi::Reason;
use peerfs_p2p::Range;

use super::super::checks::same;
use super::super::oracle::{BLOCK, BlockState, Everywhere, is_plausible};
use super::data_of;
use super::field::{Field, Kind, LONGEST, MAX_SIZE, RemoteFile, RemoteMapping, RemoteSlot};
use super::puppet::Stretch;

/// Named files at one time.
const FILES: usize = 4;
/// Open files of one client.
const SLOTS: usize = 6;
/// Mappings of one client.
const MAPPINGS: usize = 5;

/// A client, and which of its mappings.
type Place = (usize, usize);

impl Field {
    pub(super) fn create(&mut self) -> Result<()> {
        if self.files.values().filter(|file| file.name.is_some()).count() >= FILES {
            return self.idle();
        }
        let key = self.new_number();
        let name = format!("file{key}");
        let length = self.random.below(MAX_SIZE / 2);
        self.note("create", format!("{name} of {length} bytes"));
        let data = data_of(self.random.bits(), length as usize);
        std::fs::write(self.path(&name), &data)?;
        let mut file = RemoteFile { name: Some(name), ..RemoteFile::default() };
        if length > 0 {
            file.model.write(0, &data);
        }
        self.files.insert(key, file);
        Ok(())
    }

    pub(super) fn unlink_or_rename(&mut self) -> Result<()> {
        let Some(key) = self.pick_file() else { return self.idle() };
        let name = self.files[&key].name.clone().context("picked by name")?;
        let path = self.path(&name);
        if self.random.one_in(2) {
            self.note("unlink", name);
            std::fs::remove_file(path)?;
            self.file_mut(key).name = None;
            return Ok(());
        }
        let new_name = format!("renamed{}", self.new_number());
        self.note("rename", format!("{name} to {new_name}"));
        std::fs::rename(path, self.path(&new_name))?;
        self.file_mut(key).name = Some(new_name);
        Ok(())
    }

    pub(super) fn open(&mut self) -> Result<()> {
        let client = self.random.below(self.clients.len() as u64) as usize;
        let Some(file) = self.pick_file().filter(|_| self.clients[client].slots.len() < SLOTS) else { return self.idle() };
        let kind = *self.random.pick(&[Kind::CachedRead, Kind::CachedWrite, Kind::Bypass, Kind::Library, Kind::Library]);
        self.open_slot(client, file, kind).map(drop)
    }

    fn open_slot(&mut self, client: usize, file: u64, kind: Kind) -> Result<RemoteSlot> {
        let number = self.new_number();
        self.note("open", format!("{file} by {client} {kind:?}"));
        let name = self.files[&file].name.clone().context("a named file")?;
        let path = self.path(&name);
        self.tell(client, &format!("open {number} {} {}", kind.word(), path.display()))?;
        let slot = RemoteSlot { number, file, kind, view: 0 };
        self.clients[client].slots.push(slot);
        Ok(slot)
    }

    pub(super) fn close(&mut self) -> Result<()> {
        let Some((client, slot)) = self.pick_slot(|_| true) else { return self.idle() };
        self.note("close", format!("{} by {client} {:?}", slot.file, slot.kind));
        self.clients[client].slots.retain(|other| other.number != slot.number);
        self.tell(client, &format!("close {}", slot.number)).map(drop)
    }

    pub(super) fn read(&mut self) -> Result<()> {
        let Some((client, slot)) = self.pick_slot(|_| true) else { return self.idle() };
        let size = self.model(slot.file).size();
        let range = self.pick_range(size + BLOCK, LONGEST);
        self.note("read", format!("{} by {client} {:?} {range:?}", slot.file, slot.kind));
        let answer = self.tell(client, &format!("read {} {} {}", slot.number, range.start, range.length()))?;
        same("read", range.start, &answer.payload, self.model(slot.file).slice(range.start, range.length()))
    }

    pub(super) fn write(&mut self) -> Result<()> {
        let Some((client, slot)) = self.pick_slot(|slot| slot.kind != Kind::CachedRead) else { return self.idle() };
        let limit = (self.model(slot.file).size() + 4 * BLOCK).min(MAX_SIZE - 1);
        let range = self.pick_range(limit, LONGEST);
        self.note("write", format!("{} by {client} {:?} {range:?}", slot.file, slot.kind));
        let seed = self.random.bits();
        self.tell(client, &format!("write {} {} {} {seed}", slot.number, range.start, range.length()))?;
        self.file_mut(slot.file).model.write(range.start, &data_of(seed, range.length() as usize));
        Ok(())
    }

    /// A slot with a shared view that reaches `size`, and a range inside it.
    fn pick_view(&mut self) -> Result<Option<(usize, RemoteSlot, Range)>> {
        let Some((client, slot)) = self.pick_slot(|slot| slot.kind.can_store()) else { return Ok(None) };
        let size = self.model(slot.file).size();
        let range = self.pick_range(size, LONGEST / 4).intersect(Range { start: 0, end: size });
        if range.is_empty() {
            return Ok(None);
        }
        if slot.view < range.end {
            self.tell(client, &format!("mmap {} {size}", slot.number))?;
            let views = self.clients[client].slots.iter_mut().filter(|other| other.number == slot.number);
            views.for_each(|slot| slot.view = size);
        }
        Ok(Some((client, slot, range)))
    }

    /// Silent stores through a shared mapping of a cached handle.
    pub(super) fn store(&mut self) -> Result<()> {
        let Some((client, slot, range)) = self.pick_view()? else { return self.idle() };
        self.note("store", format!("{} by {client} {range:?}", slot.file));
        let seed = self.random.bits();
        self.tell(client, &format!("store {} {} {} {seed}", slot.number, range.start, range.length()))?;
        self.file_mut(slot.file).model.store(range.start, &data_of(seed, range.length() as usize));
        Ok(())
    }

    pub(super) fn load(&mut self) -> Result<()> {
        let Some((client, slot, range)) = self.pick_view()? else { return self.idle() };
        self.note("load", format!("{} by {client} {range:?}", slot.file));
        let answer = self.tell(client, &format!("load {} {} {}", slot.number, range.start, range.length()))?;
        same("load", range.start, &answer.payload, self.model(slot.file).slice(range.start, range.length()))
    }

    /// Loads through a private mapping of any handle, the client library's included.
    pub(super) fn private_load(&mut self) -> Result<()> {
        let Some((client, slot)) = self.pick_slot(|_| true) else { return self.idle() };
        let size = self.model(slot.file).size();
        let range = self.pick_range(size, LONGEST / 4).intersect(Range { start: 0, end: size });
        if range.is_empty() {
            return self.idle();
        }
        self.note("private load", format!("{} by {client} {:?} {range:?}", slot.file, slot.kind));
        let answer = self.tell(client, &format!("private {} {} {}", slot.number, range.start, range.length()))?;
        same("private load", range.start, &answer.payload, self.model(slot.file).slice(range.start, range.length()))
    }

    pub(super) fn truncate(&mut self) -> Result<()> {
        let Some((client, slot)) = self.pick_slot(|slot| slot.kind != Kind::CachedRead) else { return self.idle() };
        let size = self.model(slot.file).size();
        let new_size = match self.random.below(16) {
            0 => self.random.below(MAX_SIZE),
            1..8 => size.saturating_sub(self.random.below(3 * BLOCK)),
            _ => (size + self.random.below(3 * BLOCK)).min(MAX_SIZE),
        };
        self.note("truncate", format!("{} by {client} {size} to {new_size}", slot.file));
        self.tell(client, &format!("truncate {} {new_size}", slot.number))?;
        self.file_mut(slot.file).model.truncate(new_size);
        Ok(())
    }

    pub(super) fn fallocate(&mut self) -> Result<()> {
        let Some((client, slot)) = self.pick_slot(|slot| slot.kind != Kind::CachedRead) else { return self.idle() };
        let limit = (self.model(slot.file).size() + 4 * BLOCK).min(MAX_SIZE - 1);
        let range = self.pick_range(limit, LONGEST);
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let (punch, zero) = (libc::FALLOC_FL_PUNCH_HOLE, libc::FALLOC_FL_ZERO_RANGE);
        let mode = *self.random.pick(&[0, keep, punch | keep, zero, zero | keep]);
        self.note("fallocate", format!("{} by {client} mode {mode} {range:?}", slot.file));
        self.tell(client, &format!("fallocate {} {mode} {} {}", slot.number, range.start, range.length()))?;
        let model = &mut self.file_mut(slot.file).model;
        let keep_size = mode & keep != 0;
        match mode & !keep {
            0 => model.allocate(range, keep_size),
            mode if mode == punch => model.punch(range),
            _ => model.zero_range(range, keep_size),
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        let Some((client, slot)) = self.pick_slot(|_| true) else { return self.idle() };
        let word = if slot.view > 0 && self.random.one_in(2) { "msync" } else { "fsync" };
        self.note("sync", format!("{} by {client}: {word}", slot.file));
        self.tell(client, &format!("{word} {}", slot.number)).map(drop)
    }

    pub(super) fn map(&mut self) -> Result<()> {
        let slot = self.pick_slot(|slot| slot.kind == Kind::Library);
        let Some((client, slot)) = slot.filter(|(client, _)| self.clients[*client].mappings.len() < MAPPINGS) else {
            return self.idle();
        };
        let size = self.model(slot.file).size();
        let mut range = self.pick_range(size + BLOCK, MAX_SIZE);
        let to_end = self.random.one_in(6) && range.start < size;
        if to_end {
            range.end = size;
        }
        if range.is_empty() {
            return self.idle();
        }
        let (number, write) = (self.new_number(), self.random.one_in(2));
        self.note("map", format!("{} by {client} {range:?} write: {write}", slot.file));
        let length = if to_end { 0 } else { range.length() };
        let command = format!("map {number} {} {} {length} {}", slot.number, range.start, u8::from(write));
        let stretches = self.tell(client, &command)?.stretches()?;
        let mapping = RemoteMapping { number, file: slot.file, range, writable: write, moved: Default::default() };
        self.clients[client].mappings.push(mapping);
        self.check_decisions(slot.file, range, &stretches)?;
        let newest = (client, self.clients[client].mappings.len() - 1);
        match self.pick_inside(newest) {
            // Most are used at once, as importers do.
            Some(range) if write && self.random.one_in(2) => self.device_write_in(newest, range),
            Some(range) => self.device_read_in(newest, range),
            None => Ok(()),
        }
    }

    /// Blocks with data are direct or refused for a passing reason. What else was stored through the page cache may
    /// have been written back or not.
    fn check_decisions(&mut self, file: u64, range: Range, stretches: &[Stretch]) -> Result<()> {
        let mut expected = range.start;
        for stretch in stretches {
            ensure!(stretch.range.start == expected, "segments have gaps: {stretches:?}");
            expected = stretch.range.end;
            let name = stretch.reason.map_or("direct", Reason::name);
            *self.tally.segments.entry(name).or_default() += 1;
        }
        ensure!(expected == range.end, "segments end at {expected}, not {}", range.end);
        let model = self.model(file);
        for stretch in stretches {
            for block in stretch.range.start / BLOCK..stretch.range.end.div_ceil(BLOCK) {
                let part = Range::new(block * BLOCK, BLOCK).intersect(range);
                let part = Range { start: part.start.max(stretch.range.start), ..part };
                let fits = |state| is_plausible(state, model.size(), part, Everywhere::default(), stretch.reason);
                let state = model.block(block);
                ensure!(
                    fits(state) || (state != BlockState::Data && fits(BlockState::Data)),
                    "block {block} ({state:?}) of {part:?}, size {}: answered {:?}",
                    model.size(),
                    stretch.reason
                );
            }
        }
        Ok(())
    }

    /// A mapping, and a range of it that lies inside the file.
    fn pick_mapping(&mut self, writable: bool) -> Option<(Place, Range)> {
        let mut all = Vec::new();
        for (at, client) in self.clients.iter().enumerate() {
            let fit = client.mappings.iter().enumerate().filter(|(_, mapping)| mapping.writable || !writable);
            all.extend(fit.map(|(index, _)| (at, index)));
        }
        if all.is_empty() {
            return None;
        }
        let place = *self.random.pick(&all);
        self.pick_inside(place).map(|range| (place, range))
    }

    fn pick_inside(&mut self, (at, index): Place) -> Option<Range> {
        let mapping = self.clients[at].mappings[index];
        let inside = mapping.range.intersect(Range { start: 0, end: self.model(mapping.file).size() });
        let range = self.pick_range(inside.length(), LONGEST);
        let range = Range { start: inside.start + range.start, end: inside.start + range.end }.intersect(inside);
        (!range.is_empty()).then_some(range)
    }

    pub(super) fn device_read(&mut self) -> Result<()> {
        let Some((place, range)) = self.pick_mapping(false) else { return self.idle() };
        self.device_read_in(place, range)
    }

    fn device_read_in(&mut self, (at, index): Place, range: Range) -> Result<()> {
        let mapping = self.clients[at].mappings[index];
        self.note("device read", format!("{} by {at} {range:?}", mapping.file));
        let answer = self.tell(at, &format!("device-read {} {} {}", mapping.number, range.start, range.length()))?;
        self.count(at, index, answer.moved(), range)?;
        same("device read", range.start, &answer.payload, self.model(mapping.file).slice(range.start, range.length()))
            .with_context(|| format!("moved directly and by fallback: {:?}", answer.moved()))?;
        // A mapping that was cut is mostly given up, so that others are made.
        if answer.moved().0 == 0 && self.random.one_in(2) { self.end_mapping(at, index) } else { Ok(()) }
    }

    pub(super) fn device_write(&mut self) -> Result<()> {
        let Some((place, range)) = self.pick_mapping(true) else { return self.idle() };
        self.device_write_in(place, range)
    }

    fn device_write_in(&mut self, (at, index): Place, range: Range) -> Result<()> {
        let mapping = self.clients[at].mappings[index];
        self.note("device write", format!("{} by {at} {range:?}", mapping.file));
        let seed = self.random.bits();
        let answer = self.tell(at, &format!("device-write {} {} {} {seed}", mapping.number, range.start, range.length()))?;
        self.file_mut(mapping.file).model.write(range.start, &data_of(seed, range.length() as usize));
        self.count(at, index, answer.moved(), range)
    }

    fn count(&mut self, at: usize, index: usize, (direct, fallback): (u64, u64), range: Range) -> Result<()> {
        ensure!(direct + fallback == range.length(), "{direct} + {fallback} bytes are attested of {range:?}");
        let moved = &mut self.clients[at].mappings[index].moved;
        moved.direct += direct;
        moved.fallback += fallback;
        self.tally.bytes_direct += direct;
        self.tally.bytes_fallback += fallback;
        Ok(())
    }

    pub(super) fn unmap(&mut self) -> Result<()> {
        let Some(((at, index), _)) = self.pick_mapping(false) else { return self.idle() };
        self.end_mapping(at, index)
    }

    fn end_mapping(&mut self, at: usize, index: usize) -> Result<()> {
        let mapping = self.clients[at].mappings.swap_remove(index);
        self.note("unmap", format!("{} by {at}", mapping.file));
        let moved = self.tell(at, &format!("unmap {}", mapping.number))?.moved();
        ensure!(moved == (mapping.moved.direct, mapping.moved.fallback), "the client attests {moved:?}, not {:?}", mapping.moved);
        let reported = &mut self.file_mut(mapping.file).reported;
        reported.direct += moved.0;
        reported.fallback += moved.1;
        self.check_counters(mapping.file)
    }

    /// The server's own count of a file is what clients reported.
    fn check_counters(&mut self, file: u64) -> Result<()> {
        let Some((at, slot)) = self.pick_slot(|slot| slot.kind == Kind::Library && slot.file == file) else { return Ok(()) };
        let counted = self.tell(at, &format!("counters {}", slot.number))?.moved();
        let reported = self.files[&file].reported;
        ensure!(counted == (reported.direct, reported.fallback), "the server counts {counted:?}, clients reported {reported:?}");
        Ok(())
    }

    pub(super) fn revoke(&mut self) -> Result<()> {
        let Some((at, slot)) = self.pick_slot(|slot| slot.kind == Kind::Library) else { return self.idle() };
        let range = self.pick_range(MAX_SIZE, MAX_SIZE);
        self.note("revoke", format!("{} by {at} {range:?}", slot.file));
        self.tell(at, &format!("revoke {} {} {}", slot.number, range.start, range.length().max(1))).map(drop)
    }

    /// A client process ends; another takes its place at the end of the row.
    pub(super) fn replace_client(&mut self) -> Result<()> {
        let at = self.random.below(self.clients.len() as u64) as usize;
        self.note("client ends", format!("{at}"));
        // The hung client stays the last one.
        let at = if self.plan.hung_client { self.clients.len() - 1 } else { at };
        let client = self.clients.remove(at);
        for mapping in &client.mappings {
            let reported = &mut self.file_mut(mapping.file).reported;
            reported.direct += mapping.moved.direct;
            reported.fallback += mapping.moved.fallback;
        }
        drop(client);
        self.recruit()
    }

    /// A whole file, by read(2) of this process through the page cache.
    pub(super) fn check_one(&mut self) -> Result<()> {
        let Some(file) = self.pick_file() else { return self.idle() };
        self.note("check", format!("{file}"));
        let name = self.files[&file].name.clone().context("a named file")?;
        let found = std::fs::read(self.path(&name))?;
        same("content", 0, &found, self.model(file).bytes())
    }
}
