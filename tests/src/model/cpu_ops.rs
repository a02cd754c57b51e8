//! What the CPU does: names, handles, reads, writes, mapped stores, sizes.

use anyhow::{Context, Result, ensure};
use peerfs_fs::ops::Operations;
use peerfs_fs::types::{FallocateMode, RenameMode, SeekWhence, SetAttr, WriteOrigin, XattrMode};
use peerfs_p2p::Range;

use super::checks::same;
use super::oracle::{BLOCK, BlockState};
use super::world::{HandleKind, MAX_SIZE, Name, OpenHandle, SimFile, World, failed};

/// Names used in each directory.
const NAMES: u64 = 12;
/// CPU handles of one file at a time.
const HANDLES: usize = 4;
/// Longest single transfer, bytes.
const LONGEST: u64 = 1 << 20;

impl World {
    fn pick_name(&mut self) -> Name {
        let directories = self.directories.clone();
        let directory = *self.random.pick(&directories);
        (directory, format!("file{}", self.random.below(NAMES)))
    }

    fn pick_taken_name(&mut self) -> Option<Name> {
        let taken: Vec<Name> = self.names.keys().cloned().collect();
        (!taken.is_empty()).then(|| self.random.pick(&taken).clone())
    }

    fn loosen(&mut self, name: &Name) {
        self.loose_names.insert(name.clone());
    }

    pub(super) fn create(&mut self) -> Result<()> {
        let name = self.pick_name();
        if self.files.len() >= self.plan.files || self.names.contains_key(&name) {
            return self.note_idle();
        }
        self.note("create", format!("{name:?}"));
        let core = self.system().core.clone();
        let attr = core.mknod(self.caller(), name.0, name.1.as_bytes(), libc::S_IFREG | 0o644, 0).map_err(failed)?;
        let key = self.next_file;
        self.next_file += 1;
        self.files.insert(key, SimFile { ino: attr.ino, names: 1, lookups: 1, ..SimFile::default() });
        self.loosen(&name);
        self.names.insert(name, key);
        // Most files get content at once, so that there is something to map.
        if !self.random.one_in(4) {
            let length = BLOCK + self.random.below(MAX_SIZE / 2);
            let data = self.pick_data(length);
            let handle = self.open_handle(attr.ino, true, true, true, false)?;
            self.bypass_write(key, handle, 0, &data)?;
            self.system().core.release(handle);
        }
        Ok(())
    }

    pub(super) fn unlink(&mut self) -> Result<()> {
        let Some(name) = self.pick_taken_name() else { return self.note_idle() };
        self.note("unlink", format!("{name:?}"));
        self.system().core.unlink(self.caller(), name.0, name.1.as_bytes()).map_err(failed)?;
        self.loosen(&name);
        self.drop_name(&name)
    }

    fn drop_name(&mut self, name: &Name) -> Result<()> {
        let key = self.names.remove(name).context("a name of the model")?;
        self.file_mut(key).names -= 1;
        self.bury(key)
    }

    /// Forgets a file that has neither names nor users.
    pub(super) fn bury(&mut self, key: u64) -> Result<()> {
        let file = self.file(key);
        if file.names > 0 || !file.handles.is_empty() || file.mapped > 0 {
            return Ok(());
        }
        self.system().core.forget(file.ino, file.lookups);
        self.files.remove(&key);
        Ok(())
    }

    pub(super) fn rename(&mut self) -> Result<()> {
        let Some(from) = self.pick_taken_name() else { return self.note_idle() };
        let to = self.pick_name();
        let mode = *self.random.pick(&[RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
        self.note("rename", format!("{from:?} {to:?} {mode:?}"));
        let core = self.system().core.clone();
        let outcome = core.rename(self.caller(), from.0, from.1.as_bytes(), to.0, to.1.as_bytes(), mode);
        let (source, target) = (self.names[&from], self.names.get(&to).copied());
        let expected = match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(libc::EEXIST),
            (RenameMode::Exchange, None) => Err(libc::ENOENT),
            _ => Ok(()),
        };
        ensure!(
            outcome.as_ref().map_err(|error| error.code()).copied() == expected,
            "rename answered {outcome:?}, not {expected:?}"
        );
        if expected.is_err() || target == Some(source) {
            return Ok(());
        }
        self.loosen(&from);
        self.loosen(&to);
        self.names.remove(&from);
        match (mode, target) {
            (RenameMode::Exchange, Some(target)) => {
                self.names.insert(from, target);
            }
            (_, Some(_)) => self.drop_name(&to)?,
            (_, None) => {}
        }
        self.names.insert(to, source);
        Ok(())
    }

    pub(super) fn link(&mut self) -> Result<()> {
        let (Some(from), to) = (self.pick_taken_name(), self.pick_name()) else { return self.note_idle() };
        if self.names.contains_key(&to) {
            return self.note_idle();
        }
        self.note("link", format!("{from:?} {to:?}"));
        let key = self.names[&from];
        self.system().core.link(self.caller(), self.file(key).ino, to.0, to.1.as_bytes()).map_err(failed)?;
        self.loosen(&to);
        self.names.insert(to, key);
        let file = self.file_mut(key);
        file.names += 1;
        file.lookups += 1;
        Ok(())
    }

    pub(super) fn open(&mut self) -> Result<()> {
        let Some(key) = self.pick_file().filter(|key| self.file(*key).handles.len() < HANDLES) else {
            return self.note_idle();
        };
        use HandleKind::*;
        let kind = *self.random.pick(&[CachedRead, CachedRead, CachedWrite, BypassWrite, Direct]);
        let truncate = kind == CachedWrite && self.random.one_in(30);
        self.note("open", format!("{key} {kind:?}{}", if truncate { " and truncate" } else { "" }));
        let ino = self.file(key).ino;
        let handle = self.open_handle(ino, true, kind != CachedRead, kind == Direct, truncate)?;
        self.file_mut(key).handles.push(OpenHandle { handle, kind });
        if truncate {
            if self.file(key).model.size() > 0 {
                self.file_mut(key).model.truncate(0);
            }
            self.resized(key);
        }
        Ok(())
    }

    pub(super) fn close(&mut self) -> Result<()> {
        let Some((key, open)) = self.pick_handle(|_| true) else { return self.note_idle() };
        self.note("close", format!("{key} {:?}", open.kind));
        self.file_mut(key).handles.retain(|other| other.handle != open.handle);
        self.close_handle(self.file(key).ino, open)?;
        self.settle();
        self.bury(key)
    }

    fn pick_handle(&mut self, wanted: impl Fn(HandleKind) -> bool) -> Option<(u64, OpenHandle)> {
        let all: Vec<(u64, OpenHandle)> = self
            .files
            .iter()
            .flat_map(|(key, file)| file.handles.iter().map(|open| (*key, *open)))
            .filter(|(_, open)| wanted(open.kind))
            .collect();
        (!all.is_empty()).then(|| *self.random.pick(&all))
    }

    pub(super) fn cpu_read(&mut self) -> Result<()> {
        let Some((key, open)) = self.pick_handle(|_| true) else { return self.note_idle() };
        let size = self.file(key).model.size();
        let range = self.pick_range(size + BLOCK, LONGEST);
        self.note("read", format!("{key} {:?} {range:?}", open.kind));
        let ahead = self.random.below(32);
        let file = self.file(key);
        let found = match open.kind {
            HandleKind::CachedRead | HandleKind::CachedWrite => {
                self.system().cache.read(file.ino, open.handle, range.start, range.length(), ahead).map_err(failed)?
            }
            HandleKind::BypassWrite | HandleKind::Direct => self.bypass_read(key, open.handle, range)?,
        };
        same("read", range.start, &found, file.model.slice(range.start, range.length()))
    }

    /// read(2) past the page cache: what is dirty in it is written back first.
    pub(super) fn bypass_read(&self, key: u64, handle: u64, range: Range) -> Result<Vec<u8>> {
        let ino = self.file(key).ino;
        self.system().cache.flush(ino, range).map_err(failed)?;
        let data = self.system().core.read(handle, range.start, range.length() as u32, false).map_err(failed)?;
        Ok(data.to_vec())
    }

    /// write(2) past the page cache: the range leaves it.
    pub(super) fn bypass_write(&mut self, key: u64, handle: u64, offset: u64, data: &[u8]) -> Result<()> {
        let ino = self.file(key).ino;
        let range = Range::new(offset, data.len() as u64);
        self.system().cache.flush_and_drop(ino, range).map_err(failed)?;
        let origin = WriteOrigin::default();
        let written = self.system().core.write(self.caller(), handle, offset, data, origin).map_err(failed)?;
        ensure!(written as usize == data.len(), "a write was cut short without an error");
        self.system().cache.forget(ino, range);
        self.file_mut(key).model.write(offset, data);
        self.resized(key);
        Ok(())
    }

    pub(super) fn cpu_write(&mut self) -> Result<()> {
        let Some((key, open)) = self.pick_handle(|kind| kind != HandleKind::CachedRead) else { return self.note_idle() };
        let size = self.file(key).model.size();
        let limit = if self.random.one_in(20) { MAX_SIZE } else { (size + 4 * BLOCK).min(MAX_SIZE) };
        let range = self.pick_range(limit, LONGEST / 2);
        if range.is_empty() {
            return self.note_idle();
        }
        self.note("write", format!("{key} {:?} {range:?}", open.kind));
        let data = self.pick_data(range.length());
        if open.kind == HandleKind::CachedWrite {
            let (cache, ino) = (self.system().cache.clone(), self.file(key).ino);
            cache.write(self.caller(), ino, open.handle, range.start, &data).map_err(failed)?;
            self.file_mut(key).model.write(range.start, &data);
            return Ok(());
        }
        self.bypass_write(key, open.handle, range.start, &data)
    }

    /// Stores through a shared mapping of a cached handle, O_DIRECT ones included.
    pub(super) fn cpu_store(&mut self) -> Result<()> {
        let mappable = |kind| matches!(kind, HandleKind::CachedWrite | HandleKind::BypassWrite);
        let Some((key, open)) = self.pick_handle(mappable) else { return self.note_idle() };
        let size = self.file(key).model.size();
        let range = self.pick_range(size, 64 * BLOCK).intersect(Range { start: 0, end: size });
        if range.is_empty() {
            return self.note_idle();
        }
        self.note("store", format!("{key} {range:?}"));
        let length = range.length().min(300);
        let (data, ahead) = (self.pick_data(length), self.random.below(16));
        let (cache, ino) = (self.system().cache.clone(), self.file(key).ino);
        cache.store(ino, open.handle, range.start, &data, ahead).map_err(failed)?;
        self.file_mut(key).model.store(range.start, &data);
        Ok(())
    }

    /// Loads through a private mapping of the client library's handle: it drops the file's pages, then fills anew.
    pub(super) fn private_load(&mut self) -> Result<()> {
        let Some((key, open)) = self.pick_handle(|kind| kind == HandleKind::Direct) else { return self.note_idle() };
        let size = self.file(key).model.size();
        let range = self.pick_range(size.max(1), LONGEST / 4);
        self.note("private load", format!("{key} {range:?}"));
        let file = self.file(key);
        let cache = &self.system().cache;
        cache.flush_and_drop(file.ino, Range::ALL).map_err(failed)?;
        let found = cache.read(file.ino, open.handle, range.start, range.length(), 8).map_err(failed)?;
        same("private load", range.start, &found, file.model.slice(range.start, range.length()))
    }

    pub(super) fn truncate(&mut self) -> Result<()> {
        let Some(key) = self.pick_file() else { return self.note_idle() };
        let size = self.file(key).model.size();
        let new_size = match self.random.below(16) {
            0 => self.random.below(MAX_SIZE),
            1..4 => self.random.below(size + 1),
            4..10 => size.saturating_sub(self.random.below(3 * BLOCK)),
            _ => (size + self.random.below(3 * BLOCK)).min(MAX_SIZE),
        };
        self.note("truncate", format!("{key} {size} to {new_size}"));
        let set = SetAttr { size: Some(new_size), ..SetAttr::default() };
        let ino = self.file(key).ino;
        let attr = self.system().core.setattr(self.caller(), ino, None, set).map_err(failed)?;
        ensure!(attr.size == new_size, "truncate to {new_size} answered size {}", attr.size);
        self.settle();
        self.file_mut(key).model.truncate(new_size);
        self.resized(key);
        Ok(())
    }

    pub(super) fn fallocate(&mut self) -> Result<()> {
        let Some((key, open)) = self.pick_handle(|kind| kind != HandleKind::CachedRead) else { return self.note_idle() };
        let limit = (self.file(key).model.size() + 4 * BLOCK).min(MAX_SIZE);
        let range = self.pick_range(limit, LONGEST);
        if range.is_empty() {
            return self.note_idle();
        }
        let keep_size = self.random.one_in(2);
        let modes = [FallocateMode::Allocate { keep_size }, FallocateMode::PunchHole, FallocateMode::ZeroRange { keep_size }];
        let mode = *self.random.pick(&modes);
        self.note("fallocate", format!("{key} {mode:?} {range:?}"));
        let (core, cache, ino) = (self.system().core.clone(), self.system().cache.clone(), self.file(key).ino);
        cache.flush(ino, range).map_err(failed)?;
        self.settle();
        core.fallocate(self.caller(), open.handle, mode, range.start, range.length()).map_err(failed)?;
        let model = &mut self.file_mut(key).model;
        match mode {
            FallocateMode::Allocate { keep_size } => model.allocate(range, keep_size),
            FallocateMode::PunchHole => model.punch(range),
            FallocateMode::ZeroRange { keep_size } => model.zero_range(range, keep_size),
        }
        self.resized(key);
        if !matches!(mode, FallocateMode::Allocate { .. }) {
            cache.punched(ino, range);
        }
        Ok(())
    }

    pub(super) fn fsync(&mut self) -> Result<()> {
        let Some((key, open)) = self.pick_handle(|_| true) else { return self.note_idle() };
        let data_only = self.random.one_in(2);
        self.fsync_through(key, open.handle, data_only)
    }

    pub(super) fn fsync_through(&mut self, key: u64, handle: u64, data_only: bool) -> Result<()> {
        self.note("fsync", format!("{key}"));
        self.system().cache.flush(self.file(key).ino, Range::ALL).map_err(failed)?;
        self.settle();
        self.system().core.fsync(handle, data_only).map_err(failed)?;
        self.file_mut(key).model.synced();
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        self.note("sync", String::new());
        let inodes: Vec<u64> = self.files.values().map(|file| file.ino).collect();
        for ino in inodes {
            self.system().cache.flush(ino, Range::ALL).map_err(failed)?;
        }
        self.settle();
        self.system().core.sync().map_err(failed)?;
        self.files.values_mut().for_each(|file| file.model.synced());
        self.loose_names.clear();
        Ok(())
    }

    pub(super) fn seek(&mut self) -> Result<()> {
        let Some((key, open)) = self.pick_handle(|_| true) else { return self.note_idle() };
        let from = self.random.below(MAX_SIZE);
        let (whence, data) = if self.random.one_in(2) { (SeekWhence::Data, true) } else { (SeekWhence::Hole, false) };
        self.note("seek", format!("{key} {whence:?} from {from}"));
        self.system().cache.flush(self.file(key).ino, Range::ALL).map_err(failed)?;
        self.settle();
        let model = &self.file(key).model;
        let matches = |block: &u64| (model.block(*block) == BlockState::Data) == data;
        let found = (from / BLOCK..model.size().div_ceil(BLOCK)).find(matches).map(|block| (block * BLOCK).max(from));
        let expected = match (from >= model.size(), found, data) {
            (true, ..) | (false, None, true) => Err(libc::ENXIO),
            (false, Some(found), _) => Ok(found.min(model.size())),
            (false, None, false) => Ok(model.size()),
        };
        let answer = self.system().core.lseek(open.handle, from, whence).map_err(|error| error.code());
        ensure!(answer == expected, "lseek {whence:?} from {from} answered {answer:?}, not {expected:?}");
        Ok(())
    }

    pub(super) fn set_policy(&mut self) -> Result<()> {
        let Some(key) = self.pick_file() else { return self.note_idle() };
        let policy = *self.random.pick(&["prefer", "prefer", "prefer", "respect-cache", "never"]);
        self.note("policy", format!("{key} {policy}"));
        let (core, ino) = (self.system().core.clone(), self.file(key).ino);
        core.setxattr(self.caller(), ino, b"user.peerfs.direct", policy.as_bytes(), XattrMode::Any).map_err(failed)?;
        self.file_mut(key).policy = Some(policy);
        ensure!(self.live_grants(key) == 0, "grants of a file outlive a change of its policy");
        Ok(())
    }
}
