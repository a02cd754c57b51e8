//! Comparisons of the whole volume with the model.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use peerfs_fs::ops::Operations;
use peerfs_fs::types::{Ino, OpenFlags};
use peerfs_p2p::{ExtentState, Range};

use super::oracle::{BLOCK, BlockState};
use super::world::{Name, World, failed};

/// Bytes are the same.
pub(super) fn same(what: &str, offset: u64, found: &[u8], wanted: &[u8]) -> Result<()> {
    ensure!(found.len() == wanted.len(), "{what} at {offset}: {} bytes, not {}", found.len(), wanted.len());
    if let Some(at) = (0..found.len()).find(|at| found[*at] != wanted[*at]) {
        bail!("{what}: byte {} is {:#x}, not {:#x}", offset + at as u64, found[at], wanted[at]);
    }
    Ok(())
}

impl World {
    /// The two invariants of coherence: no page is cached where a peer may write, nor where a peer
    /// reads a file that the CPU may write to silently.
    pub(super) fn check_invariants(&self) -> Result<()> {
        let system = self.system();
        for mapping in self.importers.iter().flat_map(|importer| &importer.mappings) {
            let file = self.file(mapping.file);
            for segment in &mapping.segments {
                let Ok((grant, _)) = segment.access else { continue };
                let Some(view) = system.engine.grant(grant) else { continue };
                let exclusive = view.writable || system.core.cpu_writers(file.ino) > 0;
                if exclusive && system.cache.holds(file.ino, segment.range) {
                    bail!("file {}: a page of {:?} is cached beside a live mapping", mapping.file, segment.range);
                }
            }
        }
        Ok(())
    }

    /// Grants of a file that importers know and the engine still honours.
    pub(super) fn live_grants(&self, key: u64) -> usize {
        let mappings = self.importers.iter().flat_map(|importer| &importer.mappings);
        let segments = mappings.filter(|mapping| mapping.file == key).flat_map(|mapping| &mapping.segments);
        let grants = segments.filter_map(|segment| segment.access.ok());
        grants.filter(|(grant, _)| self.system().engine.grant(*grant).is_some()).count()
    }

    /// Every file by a direct read, its size, its links and its blocks; every name.
    pub(super) fn check_everything(&mut self) -> Result<()> {
        self.note("check", String::new());
        let keys: Vec<u64> = self.files.keys().copied().collect();
        for ino in keys.iter().map(|key| self.file(*key).ino) {
            self.system().cache.flush(ino, Range::ALL).map_err(failed)?;
        }
        self.settle();
        for key in keys {
            self.check_file(key).with_context(|| format!("file {key}"))?;
        }
        self.check_names()
    }

    pub(super) fn check_file(&self, key: u64) -> Result<()> {
        let file = self.file(key);
        let attr = self.system().core.getattr(file.ino).map_err(failed)?;
        ensure!(attr.size == file.model.size(), "size {}, not {}", attr.size, file.model.size());
        ensure!(attr.nlink == file.names, "{} links, not {}", attr.nlink, file.names);
        let found = self.content(file.ino, attr.size)?;
        same("content", 0, &found, file.model.bytes())?;
        let blocks = self.blocks(file.ino)?;
        for number in 0..attr.size.div_ceil(BLOCK) {
            let found = blocks.get(number as usize).copied().unwrap_or(BlockState::Hole);
            ensure!(found == file.model.block(number), "block {number} is {found:?}, not {:?}", file.model.block(number));
        }
        Ok(())
    }

    /// A file's bytes, past the page cache.
    pub(super) fn content(&self, ino: Ino, size: u64) -> Result<Vec<u8>> {
        let handle = self.open_handle(ino, true, false, true, false)?;
        let data = self.system().core.read(handle, 0, (size + 1) as u32, false).map_err(failed)?.to_vec();
        self.system().core.release(handle);
        Ok(data)
    }

    /// What is allocated up to the end of a file.
    pub(super) fn blocks(&self, ino: Ino) -> Result<Vec<BlockState>> {
        let survey = self.system().core.survey_extents(ino, Range::ALL).context("the file has extents")?;
        let mut blocks = Vec::new();
        for extent in &survey.extents {
            let state = match extent.state {
                ExtentState::Hole => BlockState::Hole,
                ExtentState::Unwritten => BlockState::Unwritten,
                ExtentState::Mapped { .. } | ExtentState::Migrated => BlockState::Data,
            };
            blocks.extend(std::iter::repeat_n(state, (extent.length / BLOCK) as usize));
        }
        Ok(blocks)
    }

    /// Names on the volume, with the inodes they name.
    pub(super) fn names_found(&self) -> Result<BTreeMap<Name, Ino>> {
        let core = &self.system().core;
        let mut found = BTreeMap::new();
        for directory in &self.directories {
            let handle = core.opendir(*directory, OpenFlags { read: true, ..OpenFlags::default() }).map_err(failed)?;
            core.readdir(handle, 0, false, &mut |entry| {
                if entry.kind & libc::S_IFMT == libc::S_IFREG {
                    found.insert((*directory, String::from_utf8_lossy(entry.name).into_owned()), entry.ino);
                }
                true
            })
            .map_err(failed)?;
            core.releasedir(handle);
        }
        Ok(found)
    }

    pub(super) fn check_names(&self) -> Result<()> {
        let wanted: BTreeMap<Name, Ino> = self.names.iter().map(|(name, key)| (name.clone(), self.file(*key).ino)).collect();
        let found = self.names_found()?;
        ensure!(found == wanted, "names are {found:?}, not {wanted:?}");
        Ok(())
    }
}
