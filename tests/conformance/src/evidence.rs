//! What a case has asserted of paths and reasons. A case that asserts none proves nothing, and one that is there for a
//! certain reason or trigger proves nothing without that one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use peerfs_abi::{Path, Reason, Trigger};

/// How a stretch is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Directly, by the backend's path.
    Direct,
    /// Through main memory, because of this.
    Fallback(Reason),
}

/// The case can go no further: what it needs next is a window in a client, and on this backend no process is given one.
/// That it is refused for this reason, and what it reads then, has been asserted.
#[derive(Debug, thiserror::Error)]
#[error("no process can be given this memory")]
pub(crate) struct Ungranted;

/// Something that was seen to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// Bytes went, or a stretch was answered, this way.
    Went(Path),
    /// A stretch fell back for this reason.
    Refused(Reason),
    /// A mapping was revoked by this trigger.
    Revoked(Trigger),
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fact::Went(path) => write!(f, "{path}"),
            Fact::Refused(reason) => write!(f, "{} {reason}", Path::Fallback),
            Fact::Revoked(trigger) => write!(f, "revoked {trigger}"),
        }
    }
}

/// The assertions of one case.
#[derive(Default)]
pub struct Evidence(RefCell<BTreeSet<Fact>>);

impl Evidence {
    pub(crate) fn path(&self, path: Path) {
        self.add(Fact::Went(path));
    }

    pub(crate) fn reason(&self, reason: Reason) {
        self.add(Fact::Refused(reason));
    }

    pub(crate) fn trigger(&self, trigger: Trigger) {
        self.add(Fact::Revoked(trigger));
    }

    fn add(&self, what: Fact) {
        self.0.borrow_mut().insert(what);
    }

    pub(crate) fn into_facts(self) -> BTreeSet<Fact> {
        self.0.into_inner()
    }
}
