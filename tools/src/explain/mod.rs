//! What `peerfs query` says of each refusal, beside its reason: the rule, what it is about, and what to do.
//!
//! [`Facts`] are looked up once; everything else is pure.

mod bar;
mod facts;
mod openers;
mod remedy;
mod subject;
#[cfg(test)]
mod tests;

pub use bar::{Bar, Look};
pub use facts::Facts;

use peerfs_abi::{Rule, Stage};
use peerfs_client::{DecisionTable, Reason};

use crate::args::RequestArgs;

/// A refusal, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The reason.
    pub reason: Reason,
    /// Bytes that it refuses.
    pub bytes: u64,
    /// The rule that it follows from.
    pub rule: Rule,
    /// What refuses: which device, hop, process, quota, value.
    pub object: String,
    /// What to do about it.
    pub remedy: String,
    /// A command that does it, or shows what to do it with.
    pub command: Option<String>,
}

/// Explains every reason that refuses a part of the table, in pipeline order.
pub fn explain(request: &RequestArgs, table: &DecisionTable, facts: &Facts) -> Vec<Explanation> {
    let explained = |(reason, bytes): (Reason, u64)| Explanation {
        reason,
        bytes,
        rule: reason.rule(),
        object: subject::object(reason, request, table, facts),
        remedy: remedy::remedy(reason, facts),
        command: remedy::command(reason, request, table, facts),
    };
    table.refusals().into_iter().map(explained).collect()
}

/// The name of a stage, as in reports.
pub fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Filesystem => "filesystem",
        Stage::BlockDevice => "block device",
        Stage::PeerPath => "peer path",
    }
}
