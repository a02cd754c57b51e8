//! The mount options `dirsync` and `sync`: what changed is durable when the request is answered. What write(2) writes on a
//! mount with `sync` the kernel follows with an fsync by itself.

use super::{Core, Result};
use crate::types::{Attr, Ino};

/// What is durable when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Synchronous {
    /// What fsync(2) asks for.
    #[default]
    Nothing,
    /// Changes of names.
    Names,
    /// Changes of names, attributes and contents.
    Everything,
}

impl Core {
    /// Ends the making of a name. What was made stays when it cannot be made durable, but the kernel, which hears of the
    /// failure only, knows nothing of it.
    pub(super) fn made_name(&self, directory: Ino, outcome: Result<Attr>) -> Result<Attr> {
        let attr = outcome?;
        self.changed_names(directory, Ok(())).inspect_err(|_| self.forget_lookups(attr.ino, 1))?;
        Ok(attr)
    }

    /// Ends a change of a directory's names.
    pub(super) fn changed_names<T>(&self, directory: Ino, outcome: Result<T>) -> Result<T> {
        self.changed(Synchronous::Names, directory, outcome)
    }

    /// Ends a change of an inode.
    pub(super) fn changed_inode<T>(&self, ino: Ino, outcome: Result<T>) -> Result<T> {
        self.changed(Synchronous::Everything, ino, outcome)
    }

    fn changed<T>(&self, from: Synchronous, ino: Ino, outcome: Result<T>) -> Result<T> {
        let done = outcome?;
        if self.options.synchronous >= from {
            self.settle(&self.inode(ino)?, false)?;
        }
        Ok(done)
    }
}
