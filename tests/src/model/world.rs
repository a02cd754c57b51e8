//! One seed's world: a mounted volume, what it must contain, and who uses it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use anyhow::{Context, Result};
use peerfs_abi::Reason;
use peerfs_fs::error::FsError;
use peerfs_fs::ops::Operations;
use peerfs_fs::types::{Caller, Handle, Ino, OpenFlags, ROOT_INO};
use peerfs_p2p::{ObjectId, Range};

use super::importer::{Moved, SimImporter};
use super::oracle::{BLOCK, Everywhere, FileModel};
use super::system::{Disk, System};
use super::tally::Tally;
use crate::Random;

/// Largest file, bytes: three chunks, so that mappings cross chunks.
pub(super) const MAX_SIZE: u64 = 5 << 20;
/// Steps remembered for the message of a failure.
const HISTORY: usize = 40;

/// What kind of run it is.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Seed of everything.
    pub seed: u64,
    /// Steps to make.
    pub steps: u64,
    /// Size of the software aperture, bytes.
    pub cmb_bytes: u64,
    /// Files at one time.
    pub files: usize,
    /// Importers at one time.
    pub importers: usize,
    /// Power fails now and then.
    pub crashes: bool,
}

/// How the CPU has a file open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HandleKind {
    CachedRead,
    CachedWrite,
    /// O_DIRECT on a cached handle: it counts as a cached one.
    BypassWrite,
    /// The client library's handle.
    Direct,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct OpenHandle {
    pub(super) handle: Handle,
    pub(super) kind: HandleKind,
}

/// A file of the world.
#[derive(Debug, Default)]
pub(super) struct SimFile {
    pub(super) ino: Ino,
    pub(super) model: FileModel,
    pub(super) names: u32,
    pub(super) lookups: u64,
    pub(super) handles: Vec<OpenHandle>,
    /// Handles of mappings.
    pub(super) mapped: u32,
    pub(super) policy: Option<&'static str>,
    pub(super) reported: Moved,
}

/// (directory, name).
pub(super) type Name = (Ino, String);

/// See the module.
pub struct World {
    pub(super) plan: Plan,
    pub(super) random: Random,
    pub(super) disk: Disk,
    /// `None` only while it is remounted.
    system: Option<System>,
    pub(super) directories: Vec<Ino>,
    pub(super) names: BTreeMap<Name, u64>,
    /// Names that a crash need not bring back as they are.
    pub(super) loose_names: HashSet<Name>,
    pub(super) files: BTreeMap<u64, SimFile>,
    pub(super) next_file: u64,
    pub(super) importers: Vec<SimImporter>,
    pub(super) tally: Tally,
    history: VecDeque<String>,
}

impl World {
    /// An empty volume and its first importers.
    pub fn new(plan: Plan) -> Result<World> {
        let disk = Disk::new(96 << 20, plan.cmb_bytes, plan.seed)?;
        let system = System::open(&disk)?;
        let mut world = World {
            plan,
            random: Random::new(plan.seed),
            disk,
            system: Some(system),
            directories: vec![ROOT_INO],
            names: BTreeMap::new(),
            loose_names: HashSet::new(),
            files: BTreeMap::new(),
            next_file: 1,
            importers: Vec::new(),
            tally: Tally::default(),
            history: VecDeque::new(),
        };
        let made = world.system().core.mkdir(world.caller(), ROOT_INO, b"sub", 0o755).map_err(failed)?;
        world.directories.push(made.ino);
        world.system().core.sync().map_err(failed)?;
        world.recruit()?;
        Ok(world)
    }

    /// Makes all steps of the plan and a last remount.
    pub fn run(&mut self) -> Result<Tally> {
        for number in 0..self.plan.steps {
            self.step().with_context(|| {
                let last: Vec<&str> = self.history.iter().map(String::as_str).collect();
                format!("seed {}, step {number}; last steps:\n  {}", self.plan.seed, last.join("\n  "))
            })?;
        }
        self.remount().with_context(|| format!("seed {}, the last remount", self.plan.seed))?;
        Ok(std::mem::take(&mut self.tally))
    }

    fn step(&mut self) -> Result<()> {
        let pause = Duration::from_micros(self.random.below(20_000));
        self.system().clock.advance(pause);
        match self.random.below(1000) {
            0..25 => self.create()?,
            25..35 => self.unlink()?,
            35..45 => self.rename()?,
            45..53 => self.link()?,
            53..103 => self.open()?,
            103..133 => self.close()?,
            133..233 => self.cpu_read()?,
            233..333 => self.cpu_write()?,
            333..373 => self.cpu_store()?,
            373..383 => self.private_load()?,
            383..413 => self.truncate()?,
            413..443 => self.fallocate()?,
            443..458 => self.fsync()?,
            458..463 => self.sync()?,
            463..483 => self.seek()?,
            483..673 => self.map()?,
            673..823 => self.peer_read()?,
            823..933 => self.peer_write()?,
            933..953 => self.unmap()?,
            953..963 => self.scribble_beyond_end()?,
            963..973 => self.revoke()?,
            973..979 => self.replace_importer()?,
            979..986 => self.change_manners(),
            986..988 => self.set_policy()?,
            988..998 => self.check_everything()?,
            _ => self.restart()?,
        }
        self.settle();
        self.check_invariants()
    }

    fn restart(&mut self) -> Result<()> {
        if self.plan.crashes && self.random.one_in(2) { self.crash() } else { self.remount() }
    }

    pub(super) fn system(&self) -> &System {
        self.system.as_ref().expect("mounted between steps")
    }

    pub(super) fn take_system(&mut self) -> System {
        self.system.take().expect("mounted between steps")
    }

    pub(super) fn mount_again(&mut self) -> Result<()> {
        self.system = Some(System::open(&self.disk)?);
        Ok(())
    }

    /// Importers up to the planned number; one in ten cannot honour revocation.
    pub(super) fn recruit(&mut self) -> Result<()> {
        while self.importers.len() < self.plan.importers {
            let dynamic = !self.random.one_in(10);
            let importer = SimImporter::open(&self.system().engine, dynamic)?;
            self.importers.push(importer);
        }
        Ok(())
    }

    /// Counts a step and remembers it.
    pub(super) fn note(&mut self, kind: &'static str, text: String) {
        *self.tally.steps.entry(kind).or_default() += 1;
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        if std::env::var_os("PEERFS_TRACE").is_some() {
            println!("{kind} {text}");
        }
        self.history.push_back(format!("{kind} {text}"));
    }

    /// Counts a step that found nothing to do.
    pub(super) fn note_idle(&mut self) -> Result<()> {
        self.note(Tally::IDLE, String::new());
        Ok(())
    }

    pub(super) fn caller(&self) -> Caller {
        Caller { uid: 0, gid: 0, tid: nix::unistd::gettid().as_raw() as u32, umask: 0 }
    }

    pub(super) fn pick_file(&mut self) -> Option<u64> {
        let keys: Vec<u64> = self.files.keys().copied().collect();
        (!keys.is_empty()).then(|| *self.random.pick(&keys))
    }

    pub(super) fn file(&self, key: u64) -> &SimFile {
        &self.files[&key]
    }

    pub(super) fn file_mut(&mut self, key: u64) -> &mut SimFile {
        self.files.get_mut(&key).expect("a key of a file")
    }

    /// A range that starts inside `limit`, often on block boundaries.
    pub(super) fn pick_range(&mut self, limit: u64, longest: u64) -> Range {
        let longest = match self.random.below(10) {
            0 => longest,
            1..4 => longest / 4,
            _ => longest / 32,
        };
        let mut start = self.random.below(limit.max(1));
        let mut length = 1 + self.random.below(longest.max(2));
        if !self.random.one_in(4) {
            start -= start % BLOCK;
            length = length.next_multiple_of(BLOCK);
        }
        Range { start, end: (start + length).min(MAX_SIZE) }
    }

    pub(super) fn pick_data(&mut self, length: u64) -> Vec<u8> {
        let mut data = vec![0; length as usize];
        self.random.fill(&mut data);
        data
    }

    /// Opens a handle that the server counts.
    pub(super) fn open_handle(&self, ino: Ino, read: bool, write: bool, direct: bool, truncate: bool) -> Result<Handle> {
        let flags = OpenFlags { read, write, truncate, direct, ..OpenFlags::default() };
        let opened = self.system().core.open(self.caller(), ino, flags).map_err(failed)?;
        if truncate {
            // Stores that were not written back go with the content.
            self.system().cache.set_size(ino, 0);
        } else if !opened.keep_cache && !direct {
            self.system().cache.flush_and_drop(ino, Range::ALL).map_err(failed)?;
        }
        if write && !direct {
            self.system().cache.add_writer(ino, opened.handle);
        }
        Ok(opened.handle)
    }

    pub(super) fn close_handle(&self, ino: Ino, open: OpenHandle) -> Result<()> {
        if matches!(open.kind, HandleKind::CachedWrite | HandleKind::BypassWrite) {
            self.system().cache.remove_writer(ino, open.handle).map_err(failed)?;
        }
        self.system().core.release(open.handle);
        Ok(())
    }

    /// The kernel's view of a file's size follows the model's.
    pub(super) fn resized(&self, key: u64) {
        let file = self.file(key);
        self.system().cache.set_size(file.ino, file.model.size());
    }

    /// Tells the model of pages that were written back.
    pub(super) fn settle(&mut self) {
        let pages = self.system().cache.take_written_back();
        if pages.is_empty() {
            return;
        }
        let keys: HashMap<Ino, u64> = self.files.iter().map(|(key, file)| (file.ino, *key)).collect();
        for (ino, page) in pages {
            if let Some(file) = keys.get(&ino).and_then(|key| self.files.get_mut(key)) {
                file.model.written_back(page);
            }
        }
    }

    /// What holds for every stretch of a map request.
    pub(super) fn everywhere(&self, key: u64, rules: &[(bool, Reason)]) -> Everywhere {
        let policy = self.file(key).policy;
        let by_policy = (policy == Some("never")).then_some(Reason::Policy);
        let refused = rules.iter().filter(|rule| rule.0).map(|rule| rule.1).chain(by_policy);
        Everywhere { refused: refused.min(), respects_cache: policy == Some("respect-cache") }
    }

    pub(super) fn object(&self, key: u64) -> ObjectId {
        ObjectId(self.file(key).ino)
    }
}

/// An unexpected error of an operation.
pub(super) fn failed(error: FsError) -> anyhow::Error {
    anyhow::anyhow!("an operation failed: {error}")
}
