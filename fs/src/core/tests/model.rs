//! Random operations against an oracle, with orderly remounts and crashes.
//!
//! After a crash the metadata must be one of the states since the last sync, and every
//! 512-byte sector of a file one that it had in some state since then.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::model_state::{Model, Node, Seen};
use super::*;
use crate::store::testdev::Rng;

const SECTOR: usize = 512;
const MOST_BYTES: u64 = 40_000;

struct Run {
    fs: Mounted,
    rng: Rng,
    model: Model,
    /// Every state since the last sync, that one included.
    states: Vec<Model>,
    /// Files unchanged since their fsync: their data, and the number of states at that time.
    fsynced: BTreeMap<Ino, (Rc<Vec<u8>>, usize)>,
    names: u64,
}

#[test]
fn random_operations_survive_remounts_and_crashes() {
    for seed in 0..30 {
        println!("seed {seed}");
        Run::new(seed).run(400);
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let model = Model::new();
        Run {
            fs: Mounted::new(16 << 20),
            rng: Rng::new(seed),
            states: vec![model.clone()],
            model,
            fsynced: BTreeMap::new(),
            names: 0,
        }
    }

    fn run(mut self, steps: usize) {
        for _ in 0..steps {
            match self.rng.below(60) {
                0 => {
                    self.fs = self.fs.remount();
                    self.compare_all();
                    self.synced();
                }
                1 => self = self.crash(),
                2 => {
                    self.fs.core.sync().expect("sync");
                    self.synced();
                }
                _ => self.step(),
            }
            self.states.push(self.model.clone());
        }
        self.compare_all();
        self.fs.remount();
    }

    fn synced(&mut self) {
        self.states = vec![self.model.clone()];
        self.fsynced.clear();
    }

    fn pick(&mut self, from: &[Ino]) -> Option<Ino> {
        if from.is_empty() {
            return None;
        }
        Some(from[self.rng.below(from.len() as u64) as usize])
    }

    fn directory(&mut self) -> Ino {
        let all = self.model.directories();
        self.pick(&all).unwrap_or(ROOT_INO)
    }

    /// A name that is in use half of the time, if there is one.
    fn name(&mut self, parent: Ino) -> String {
        let names: Vec<String> = self.model.entries(parent).keys().cloned().collect();
        if !names.is_empty() && self.rng.below(2) == 0 {
            return names[self.rng.below(names.len() as u64) as usize].clone();
        }
        self.names += 1;
        format!("n{}", self.names)
    }

    fn step(&mut self) {
        match self.rng.below(13) {
            0 | 1 => self.make(),
            2 => self.remove(),
            3 => self.rename(),
            4 => self.link(),
            5 => self.xattr(),
            6 => self.clone_range(),
            _ => self.change_data(),
        }
    }

    fn make(&mut self) {
        let parent = self.directory();
        let name = self.name(parent);
        let (made, node) = match self.rng.below(4) {
            0 => (self.fs.core.mkdir(ALICE, parent, name.as_bytes(), 0o755), Node::Directory(BTreeMap::new())),
            1 => (self.fs.core.symlink(ALICE, parent, name.as_bytes(), b"target"), Node::Symlink(b"target".to_vec())),
            _ => (
                self.fs.core.mknod(ALICE, parent, name.as_bytes(), libc::S_IFREG | 0o644, 0),
                Node::File { data: Rc::default(), xattrs: BTreeMap::new() },
            ),
        };
        if self.model.entries(parent).contains_key(&name) {
            assert_eq!(code(made), libc::EEXIST);
            return;
        }
        let ino = made.expect("make").ino;
        self.fs.core.forget(ino, 1);
        assert!(self.states.iter().all(|state| !state.nodes.contains_key(&ino)), "{ino} is new");
        self.model.nodes.insert(ino, node);
        self.model.entries_mut(parent).insert(name, ino);
    }

    fn remove(&mut self) {
        let parent = self.directory();
        let name = self.name(parent);
        let Some(&ino) = self.model.entries(parent).get(&name) else {
            assert_eq!(code(self.fs.core.unlink(ALICE, parent, name.as_bytes())), libc::ENOENT);
            return;
        };
        if !self.model.is_directory(ino) {
            self.fs.core.unlink(ALICE, parent, name.as_bytes()).expect("unlink");
        } else if self.model.entries(ino).is_empty() {
            self.fs.core.rmdir(ALICE, parent, name.as_bytes()).expect("rmdir");
        } else {
            assert_eq!(code(self.fs.core.rmdir(ALICE, parent, name.as_bytes())), libc::ENOTEMPTY);
            return;
        }
        self.model.entries_mut(parent).remove(&name);
        self.model.collect(ino);
    }

    fn rename(&mut self) {
        let (from, to) = (self.directory(), self.directory());
        let (name, new_name) = (self.name(from), self.name(to));
        let mode = match self.rng.below(6) {
            0 => RenameMode::Exchange,
            1 => RenameMode::NoReplace,
            2 => RenameMode::Whiteout,
            _ => RenameMode::Replace,
        };
        let done = self.fs.core.rename(ALICE, from, name.as_bytes(), to, new_name.as_bytes(), mode);
        let done = done.map_or_else(|error| error.code(), |()| 0);
        let expected = self.expect_rename((from, &name), (to, &new_name), mode);
        assert_eq!(done, expected, "{from}/{name} to {to}/{new_name} {mode:?}");
        if done != 0 {
            return;
        }
        let moved = self.model.entries(from)[&name];
        let target = self.model.entries(to).get(&new_name).copied();
        if target == Some(moved) {
            return;
        }
        self.model.entries_mut(from).remove(&name);
        self.model.entries_mut(to).insert(new_name, moved);
        match (target, mode) {
            (Some(target), RenameMode::Exchange) => {
                self.model.entries_mut(from).insert(name.clone(), target);
            }
            (Some(target), _) => self.model.collect(target),
            (None, _) => {}
        }
        if mode == RenameMode::Whiteout {
            let whiteout = self.entries(from)[&name];
            self.model.nodes.insert(whiteout, Node::Whiteout);
            self.model.entries_mut(from).insert(name, whiteout);
        }
    }

    fn expect_rename(&self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> i32 {
        let model = &self.model;
        let Some(&moved) = model.entries(from.0).get(from.1) else {
            return libc::ENOENT;
        };
        let target = model.entries(to.0).get(to.1).copied();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return libc::EEXIST,
            (RenameMode::Exchange, None) => return libc::ENOENT,
            (_, Some(target)) if target == moved => return 0,
            _ => {}
        }
        if model.is_directory(moved) && model.is_ancestor(moved, to.0) {
            return libc::EINVAL;
        }
        let Some(target) = target else {
            return 0;
        };
        if mode == RenameMode::Exchange {
            let cycle = model.is_directory(target) && model.is_ancestor(target, from.0);
            return if cycle { libc::EINVAL } else { 0 };
        }
        match (model.is_directory(moved), model.is_directory(target)) {
            (true, false) => libc::ENOTDIR,
            (false, true) => libc::EISDIR,
            (true, true) if !model.entries(target).is_empty() => libc::ENOTEMPTY,
            _ => 0,
        }
    }

    fn link(&mut self) {
        let files = self.model.files();
        let Some(ino) = self.pick(&files) else {
            return;
        };
        let parent = self.directory();
        let name = self.name(parent);
        let linked = self.fs.core.link(ALICE, ino, parent, name.as_bytes());
        if self.model.entries(parent).contains_key(&name) {
            assert_eq!(code(linked), libc::EEXIST);
            return;
        }
        linked.expect("link");
        self.fs.core.forget(ino, 1);
        self.model.entries_mut(parent).insert(name, ino);
    }

    fn xattr(&mut self) {
        let files = self.model.files();
        let Some(ino) = self.pick(&files) else {
            return;
        };
        let name = format!("user.{}", self.rng.below(3));
        if self.rng.below(3) > 0 {
            let value = vec![self.rng.next() as u8; self.rng.below(300) as usize];
            let set = self.fs.core.setxattr(ALICE, ino, name.as_bytes(), &value, XattrMode::Any);
            set.expect("setxattr");
            self.model.xattrs_mut(ino).insert(name, value);
        } else {
            let removed = self.fs.core.removexattr(ALICE, ino, name.as_bytes());
            assert_eq!(removed.is_ok(), self.model.xattrs_mut(ino).remove(&name).is_some());
        }
    }

    fn change_data(&mut self) {
        let files = self.model.files();
        let Some(ino) = self.pick(&files) else {
            return;
        };
        self.fsynced.remove(&ino);
        let handle = self.fs.core.open(ALICE, ino, READ_WRITE).expect("open").handle;
        let offset = self.rng.below(MOST_BYTES);
        let length = 1 + self.rng.below(MOST_BYTES / 2);
        let end = (offset + length) as usize;
        let (from, model) = (offset as usize, self.model.data_mut(ino));
        match self.rng.below(7) {
            0 => {
                self.fs.truncate(ino, offset);
                model.resize(from, 0);
            }
            1 => {
                let punch = FallocateMode::PunchHole;
                self.fs.core.fallocate(ALICE, handle, punch, offset, length).expect("punch");
                let size = model.len();
                model[from.min(size)..end.min(size)].fill(0);
            }
            2 => {
                let zero = FallocateMode::ZeroRange { keep_size: false };
                self.fs.core.fallocate(ALICE, handle, zero, offset, length).expect("zero");
                model.resize(model.len().max(end), 0);
                model[from..end].fill(0);
            }
            3 => {
                self.fs.core.fsync(handle, false).expect("fsync");
                let data = Rc::new(model.clone());
                self.fsynced.insert(ino, (data, self.states.len()));
            }
            _ => {
                let data: Vec<u8> = (0..length).map(|_| self.rng.next() as u8 | 1).collect();
                self.fs.write(handle, offset, &data);
                model.resize(model.len().max(end), 0);
                model[from..end].copy_from_slice(&data);
            }
        }
        self.fs.core.release(handle);
    }

    fn clone_range(&mut self) {
        let files = self.model.files();
        let (Some(source), Some(target)) = (self.pick(&files), self.pick(&files)) else {
            return;
        };
        let mut block = || (self.rng.below(8) * 4096) as usize;
        let (from, to, length) = (block(), block(), block());
        let range = CloneRange { source_offset: from as u64, destination_offset: to as u64, length: length as u64 };
        let done = self.fs.reflink(source, target, range);
        let old = self.model.data(source).map(|data| data.to_vec()).expect("a file");
        let Some(data) = expect_clone(&old, self.model.data_mut(target).len(), range, source == target) else {
            assert_eq!(done.map_err(|error| error.code()), Err(libc::EINVAL), "{range:?}");
            return;
        };
        assert_eq!(done, Ok(data.len() as u64), "{range:?}");
        self.fsynced.remove(&target);
        let model = self.model.data_mut(target);
        if !data.is_empty() {
            model.resize(model.len().max(to + data.len()), 0);
            model[to..to + data.len()].copy_from_slice(&data);
        }
    }

    fn crash(mut self) -> Self {
        let image = self.fs.disk.crash_image(&mut self.rng);
        let disk = Arc::new(TestDevice::from_image(image));
        assert_clean(&disk);
        self.fs = Mounted::on(disk);
        let seen = self.see();
        let state = self
            .states
            .iter()
            .rev()
            .find(|state| state.seen() == seen)
            .unwrap_or_else(|| panic!("no state since the last sync looks like {seen:?}"));
        for (ino, (data, since)) in &self.fsynced {
            if seen.contains_key(ino) {
                assert!(self.content(*ino) == **data, "inode {ino} was fsynced");
            } else {
                let removed = self.states[*since..].iter().any(|state| !state.nodes.contains_key(ino));
                assert!(removed, "inode {ino} was fsynced and is gone");
            }
        }
        let mut model = state.clone();
        for ino in model.files() {
            let data = self.content(ino);
            self.check_sectors(ino, &data);
            *model.data_mut(ino) = data;
        }
        self.model = model;
        self.fs.core.sync().expect("sync");
        self.synced();
        self
    }

    /// Every sector is one that the file had, or part of it zeros where the file ended.
    fn check_sectors(&self, ino: Ino, data: &[u8]) {
        for (index, sector) in data.chunks(SECTOR).enumerate() {
            let known = self.states.iter().filter_map(|state| state.data(ino)).any(|old| {
                let start = (index * SECTOR).min(old.len());
                let old = &old[start..old.len().min(start + SECTOR)];
                let common = old.len().min(sector.len());
                sector[..common] == old[..common] && sector[common..].iter().all(|b| *b == 0)
            });
            assert!(known, "sector {index} of inode {ino} is neither old nor new");
        }
    }

    /// The tree as the filesystem shows it.
    fn see(&self) -> BTreeMap<Ino, Seen> {
        let mut seen = BTreeMap::new();
        let mut queue = vec![ROOT_INO];
        while let Some(ino) = queue.pop() {
            let attr = self.fs.core.attr(ino).expect("attr");
            let node = match attr.mode & libc::S_IFMT {
                libc::S_IFDIR => {
                    let entries = self.entries(ino);
                    queue.extend(entries.values().filter(|child| !seen.contains_key(*child)));
                    Seen::Directory(entries)
                }
                libc::S_IFLNK => Seen::Symlink(self.fs.core.readlink(ino).expect("readlink")),
                libc::S_IFCHR => Seen::Whiteout,
                _ => Seen::File { size: attr.size, nlink: attr.nlink, xattrs: self.xattrs(ino) },
            };
            seen.insert(ino, node);
        }
        seen
    }

    fn entries(&self, ino: Ino) -> BTreeMap<String, Ino> {
        let names = self.fs.names(ino);
        let found = names.into_iter().map(|name| {
            let attr = self.fs.core.lookup(ino, name.as_bytes()).expect("lookup");
            self.fs.core.forget(attr.ino, 1);
            (name, attr.ino)
        });
        found.collect()
    }

    fn xattrs(&self, ino: Ino) -> BTreeMap<String, Vec<u8>> {
        let list = self.fs.core.listxattr(ALICE, ino).expect("listxattr");
        let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names
            .map(|name| {
                let value = self.fs.core.getxattr(ino, name).expect("getxattr");
                (String::from_utf8_lossy(name).into_owned(), value)
            })
            .collect()
    }

    fn content(&self, ino: Ino) -> Vec<u8> {
        let handle = self.fs.core.open(ALICE, ino, READ_WRITE).expect("open").handle;
        let data = self.fs.read(handle, 0, 1 << 20);
        self.fs.core.release(handle);
        data
    }

    fn compare_all(&self) {
        assert_eq!(self.see(), self.model.seen());
        for ino in self.model.files() {
            assert!(Some(&self.content(ino)) == self.model.data(ino).map(|data| &**data), "inode {ino}");
        }
    }
}

/// What a clone brings into the target, `None` where it is refused.
fn expect_clone(source: &[u8], target_size: usize, range: CloneRange, same: bool) -> Option<Vec<u8>> {
    let (from, to) = (range.source_offset as usize, range.destination_offset as usize);
    let length = if range.length == 0 { source.len().checked_sub(from)? } else { range.length as usize };
    let data = source.get(from..from + length)?;
    let whole = length.is_multiple_of(4096) || (from + length == source.len() && to + length >= target_size);
    let overlaps = same && from < to + length && to < from + length;
    (whole && !overlaps).then(|| data.to_vec())
}
