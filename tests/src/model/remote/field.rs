//! A real mount, its client processes, and what its files must contain.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use peerfs_p2p::Range;

use super::super::checks::same;
use super::super::importer::Moved;
use super::super::oracle::{BLOCK, FileModel};
use super::super::tally::Tally;
use super::puppet::{Answer, Puppet};
use crate::{Random, ScratchMount};

/// Largest file, bytes: three chunks.
pub(super) const MAX_SIZE: u64 = 5 << 20;
/// Longest single transfer, bytes.
pub(super) const LONGEST: u64 = 256 << 10;
/// Steps remembered for the message of a failure.
const HISTORY: usize = 40;

/// What kind of run it is.
#[derive(Debug, Clone)]
pub struct FieldPlan {
    /// Seed of everything.
    pub seed: u64,
    /// Steps to make.
    pub steps: u64,
    /// Client processes.
    pub clients: usize,
    /// The last client never acknowledges a revocation.
    pub hung_client: bool,
    /// Options of the mount.
    pub mount: Vec<String>,
    /// The client program.
    pub program: PathBuf,
}

/// How a client has a file open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    CachedRead,
    CachedWrite,
    Bypass,
    Library,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::CachedRead => "cached-read",
            Kind::CachedWrite => "cached-write",
            Kind::Bypass => "bypass",
            Kind::Library => "library",
        }
    }

    pub(super) fn can_store(self) -> bool {
        matches!(self, Kind::CachedWrite | Kind::Bypass)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RemoteSlot {
    pub(super) number: u64,
    pub(super) file: u64,
    pub(super) kind: Kind,
    /// Length of its shared view, 0 without one.
    pub(super) view: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RemoteMapping {
    pub(super) number: u64,
    pub(super) file: u64,
    pub(super) range: Range,
    pub(super) writable: bool,
    pub(super) moved: Moved,
}

pub(super) struct Client {
    pub(super) puppet: Puppet,
    pub(super) slots: Vec<RemoteSlot>,
    pub(super) mappings: Vec<RemoteMapping>,
}

#[derive(Debug, Default)]
pub(super) struct RemoteFile {
    /// `None` once unlinked.
    pub(super) name: Option<String>,
    pub(super) model: FileModel,
    /// What ended mappings have reported since the mount.
    pub(super) reported: Moved,
}

/// See the module.
pub struct Field {
    pub(super) plan: FieldPlan,
    pub(super) random: Random,
    pub(super) mount: ScratchMount,
    pub(super) clients: Vec<Client>,
    pub(super) files: BTreeMap<u64, RemoteFile>,
    pub(super) next_number: u64,
    pub(super) tally: Tally,
    history: VecDeque<String>,
}

impl Field {
    /// A new volume and its clients.
    pub fn new(plan: FieldPlan) -> Result<Field> {
        let options: Vec<&str> = plan.mount.iter().map(String::as_str).collect();
        let mount = ScratchMount::new("256M", &options)?;
        let mut field = Field {
            random: Random::new(plan.seed),
            plan,
            mount,
            clients: Vec::new(),
            files: BTreeMap::new(),
            next_number: 1,
            tally: Tally::default(),
            history: VecDeque::new(),
        };
        field.recruit()?;
        Ok(field)
    }

    /// Makes all steps, remounts, checks the volume and compares everything.
    pub fn run(mut self) -> Result<Tally> {
        for number in 0..self.plan.steps {
            self.step().with_context(|| {
                let last: Vec<&str> = self.history.iter().map(String::as_str).collect();
                format!("seed {}, step {number}; last steps:\n  {}", self.plan.seed, last.join("\n  "))
            })?;
        }
        self.remount()?;
        self.clients.clear();
        self.mount.umount()?;
        self.mount.fsck()?;
        Ok(self.tally)
    }

    fn step(&mut self) -> Result<()> {
        match self.random.below(1000) {
            0..20 => self.create(),
            20..30 => self.unlink_or_rename(),
            30..90 => self.open(),
            90..120 => self.close(),
            120..200 => self.read(),
            200..290 => self.write(),
            290..350 => self.store(),
            350..390 => self.load(),
            390..410 => self.private_load(),
            410..435 => self.truncate(),
            435..465 => self.fallocate(),
            465..480 => self.sync(),
            480..700 => self.map(),
            700..830 => self.device_read(),
            830..935 => self.device_write(),
            935..960 => self.unmap(),
            960..980 => self.revoke(),
            980..985 => self.replace_client(),
            985..998 => self.check_one(),
            _ => self.remount(),
        }
    }

    pub(super) fn note(&mut self, kind: &'static str, text: String) {
        *self.tally.steps.entry(kind).or_default() += 1;
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(format!("{kind} {text}"));
    }

    pub(super) fn idle(&mut self) -> Result<()> {
        self.note(Tally::IDLE, String::new());
        Ok(())
    }

    pub(super) fn tell(&mut self, client: usize, command: &str) -> Result<Answer> {
        self.clients[client].puppet.tell(command)
    }

    pub(super) fn new_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Client processes up to the planned number.
    pub(super) fn recruit(&mut self) -> Result<()> {
        while self.clients.len() < self.plan.clients {
            let last = self.clients.len() + 1 == self.plan.clients;
            let mut puppet = Puppet::start(&self.plan.program)?;
            let acknowledges = u8::from(!(last && self.plan.hung_client));
            puppet.tell(&format!("session {acknowledges} {}", self.mount.path().display()))?;
            self.clients.push(Client { puppet, slots: Vec::new(), mappings: Vec::new() });
        }
        Ok(())
    }

    pub(super) fn model(&self, file: u64) -> &FileModel {
        &self.files[&file].model
    }

    pub(super) fn file_mut(&mut self, file: u64) -> &mut RemoteFile {
        self.files.get_mut(&file).expect("a key of a file")
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }

    /// A named file.
    pub(super) fn pick_file(&mut self) -> Option<u64> {
        let named: Vec<u64> = self.files.iter().filter(|(_, file)| file.name.is_some()).map(|(key, _)| *key).collect();
        (!named.is_empty()).then(|| *self.random.pick(&named))
    }

    pub(super) fn pick_slot(&mut self, wanted: impl Fn(&RemoteSlot) -> bool) -> Option<(usize, RemoteSlot)> {
        let all: Vec<(usize, RemoteSlot)> = self
            .clients
            .iter()
            .enumerate()
            .flat_map(|(at, client)| client.slots.iter().map(move |slot| (at, *slot)))
            .filter(|(_, slot)| wanted(slot))
            .collect();
        (!all.is_empty()).then(|| *self.random.pick(&all))
    }

    /// A range that starts inside `limit`, often on block boundaries.
    pub(super) fn pick_range(&mut self, limit: u64, longest: u64) -> Range {
        let longest = match self.random.below(8) {
            0 => longest,
            _ => longest / 8,
        };
        let mut start = self.random.below(limit.max(1));
        let mut length = 1 + self.random.below(longest.max(2));
        if !self.random.one_in(4) {
            start -= start % BLOCK;
            length = length.next_multiple_of(BLOCK);
        }
        Range { start, end: (start + length).min(MAX_SIZE) }
    }

    /// Ends all clients, remounts, and compares every file.
    pub(super) fn remount(&mut self) -> Result<()> {
        self.note("remount", String::new());
        self.tally.restarts += 1;
        self.count_revocations()?;
        self.clients.clear();
        self.mount.umount()?;
        let options: Vec<&str> = self.plan.mount.iter().map(String::as_str).collect();
        self.mount.mount(&options)?;
        self.files.retain(|_, file| file.name.is_some());
        for (key, file) in &mut self.files {
            file.reported = Moved::default();
            let name = file.name.as_deref().unwrap_or_default();
            let found = std::fs::read(self.mount.join(name))?;
            same("content after a remount", 0, &found, file.model.bytes()).with_context(|| format!("file {key}"))?;
        }
        self.check_names()?;
        self.recruit()
    }

    fn check_names(&self) -> Result<()> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.mount.path())? {
            found.push(entry?.file_name().to_string_lossy().into_owned());
        }
        found.sort_unstable();
        let mut wanted: Vec<String> = self.files.values().filter_map(|file| file.name.clone()).collect();
        wanted.sort_unstable();
        found.retain(|name| name != peerfs_abi::names::CONTROL_DIR);
        ensure!(found == wanted, "names are {found:?}, not {wanted:?}");
        Ok(())
    }

    fn count_revocations(&mut self) -> Result<()> {
        let info = self.mount.info()?;
        let Some(triggers) = info["revocations"].as_array() else { bail!("info.json counts revocations") };
        for record in triggers {
            let (Some(trigger), Some(revoked)) = (record["trigger"].as_str(), record["revoked"].as_u64()) else {
                bail!("a record of revocations has a trigger and a count");
            };
            *self.tally.revoked.entry(trigger.to_owned()).or_default() += revoked;
        }
        Ok(())
    }
}
