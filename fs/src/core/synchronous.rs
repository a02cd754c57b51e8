//! The mount options `dirsync` and `sync`: what changed is durable when the request is answered. What write(2) writes on a
//! mount with `sync` the kernel follows with an fsync by itself.

use super::{Core, Result};
use crate::types::Ino;

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
