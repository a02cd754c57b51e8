//! What a case has asserted of paths and reasons. A case that asserts none proves nothing.

use std::cell::RefCell;
use std::collections::BTreeSet;

use peerfs_abi::{Path, Reason, Trigger};

/// How a stretch is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Directly, by the backend's path.
    Direct,
    /// Through main memory, because of this.
    Fallback(Reason),
}

/// The assertions of one case.
#[derive(Default)]
pub struct Evidence(RefCell<BTreeSet<String>>);

impl Evidence {
    pub(crate) fn path(&self, path: Path) {
        self.add(path.name().to_owned());
    }

    pub(crate) fn reason(&self, reason: Reason) {
        self.add(format!("{} {}", Path::Fallback, reason.name()));
    }

    pub(crate) fn trigger(&self, trigger: Trigger) {
        self.add(format!("revoked {}", trigger.name()));
    }

    fn add(&self, what: String) {
        self.0.borrow_mut().insert(what);
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.0.into_inner().into_iter().collect()
    }
}
