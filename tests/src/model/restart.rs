//! Remounts and power failures.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use peerfs_fs::ops::Operations;
use peerfs_fs::types::{Ino, SetAttr};

use super::importer::Moved;
use super::world::{Name, SimFile, World, failed};

impl World {
    /// Unmounts in order and mounts again: nothing may have changed.
    pub(super) fn remount(&mut self) -> Result<()> {
        self.note("remount", String::new());
        self.tally.restarts += 1;
        if self.random.one_in(2) {
            self.unmap_all()?;
        }
        while !self.importers.is_empty() {
            self.dismiss(0)?;
        }
        self.close_all()?;
        self.count_revocations();
        let system = self.take_system();
        let custody = system.custody.clone();
        system.close()?;
        ensure!(custody.is_empty(), "custody still holds windows after the unmount");
        self.files.values_mut().for_each(|file| file.model.synced());
        self.loose_names.clear();
        self.resume()?;
        self.check_everything()
    }

    /// Power fails: what was made durable is there as it was, of the rest each sector is old or new.
    pub(super) fn crash(&mut self) -> Result<()> {
        self.fsync_some()?;
        self.note("crash", String::new());
        self.tally.restarts += 1;
        self.count_revocations();
        self.disk.power.crash()?;
        self.importers.clear();
        drop(self.take_system());
        self.disk.power.reopen();
        self.mount_again()?;
        self.adopt_names()?;
        self.resume_after_mount()?;
        self.check_everything()?;
        self.sync()
    }

    /// Half of the files are made durable right before, with whatever importers have just stored.
    fn fsync_some(&mut self) -> Result<()> {
        let keys: Vec<u64> = self.files.keys().copied().collect();
        for key in keys {
            if self.random.one_in(2) {
                let ino = self.file(key).ino;
                let handle = self.open_handle(ino, true, true, true, false)?;
                self.fsync_through(key, handle, false)?;
                self.system().core.release(handle);
            }
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.mount_again()?;
        self.resume_after_mount()
    }

    fn resume_after_mount(&mut self) -> Result<()> {
        for file in self.files.values_mut() {
            file.reported = Moved::default();
        }
        self.look_everything_up()?;
        let keys: Vec<u64> = self.files.keys().copied().collect();
        keys.into_iter().for_each(|key| self.resized(key));
        self.recruit()
    }

    /// Takes over the names and files that survived.
    fn adopt_names(&mut self) -> Result<()> {
        let found = self.names_found()?;
        self.check_firm_names(&found)?;
        let mut by_ino: BTreeMap<Ino, (u64, SimFile)> =
            std::mem::take(&mut self.files).into_iter().map(|(key, file)| (file.ino, (key, file))).collect();
        self.names.clear();
        for (name, ino) in found {
            if let Some((key, file)) = by_ino.remove(&ino) {
                let file = SimFile { names: 0, mapped: 0, handles: Vec::new(), ..file };
                self.files.insert(key, file);
            }
            let known = self.files.iter().find(|(_, file)| file.ino == ino).map(|(key, _)| *key);
            // A name may be back whose file the model has buried since.
            let key = match known {
                Some(key) => key,
                None => self.adopt_stranger(ino)?,
            };
            self.file_mut(key).names += 1;
            self.names.insert(name, key);
        }
        let keys: Vec<u64> = self.files.keys().copied().collect();
        for key in keys {
            self.adopt_content(key).with_context(|| format!("file {key} after a crash"))?;
        }
        Ok(())
    }

    fn check_firm_names(&self, found: &BTreeMap<Name, Ino>) -> Result<()> {
        for (name, ino) in found.iter().filter(|(name, _)| !self.loose_names.contains(*name)) {
            let wanted = self.names.get(name).map(|key| self.file(*key).ino);
            ensure!(wanted == Some(*ino), "{name:?} names inode {ino} after a crash, not {wanted:?}");
        }
        match self.names.keys().find(|name| !self.loose_names.contains(*name) && !found.contains_key(*name)) {
            Some(name) => bail!("{name:?} was durable and is gone after a crash"),
            None => Ok(()),
        }
    }

    fn adopt_stranger(&mut self, ino: Ino) -> Result<u64> {
        let key = self.next_file;
        self.next_file += 1;
        let mut file = SimFile { ino, ..SimFile::default() };
        let size = self.trim(ino)?;
        file.model.adopt(self.content(ino, size)?, self.blocks(ino)?);
        self.files.insert(key, file);
        Ok(key)
    }

    fn adopt_content(&mut self, key: u64) -> Result<()> {
        let ino = self.file(key).ino;
        if !self.file(key).model.is_unsynced() {
            return Ok(());
        }
        let size = self.trim(ino)?;
        let content = self.content(ino, size)?;
        let model = &self.file(key).model;
        if let Err(at) = model.check_after_crash(&content) {
            bail!("byte {at} is {:#x}, which the file never held there since it was made durable", content[at]);
        }
        let blocks = self.blocks(ino)?;
        self.file_mut(key).model.adopt(content, blocks);
        self.refresh_policy(key)
    }

    /// Drops what a crash left preallocated behind the end of a file, which nothing shows. Answers the size.
    fn trim(&self, ino: Ino) -> Result<u64> {
        let core = &self.system().core;
        let size = core.getattr(ino).map_err(failed)?.size;
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        Ok(core.setattr(self.caller(), ino, None, set).map_err(failed)?.size)
    }

    fn refresh_policy(&mut self, key: u64) -> Result<()> {
        let value = self.system().core.getxattr(self.file(key).ino, b"user.peerfs.direct").ok();
        let known = ["prefer", "respect-cache", "never"];
        self.file_mut(key).policy = value.and_then(|value| known.into_iter().find(|name| name.as_bytes() == &value[..]));
        Ok(())
    }
}
