//! `rw`: which way, and in which order.

use crate::values::Direction;

/// The kind of a job's accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// In random order.
    pub random: bool,
    /// It reads.
    pub reads: bool,
    /// It writes.
    pub writes: bool,
    name: &'static str,
}

/// Name, random order, reads, writes.
const KINDS: [(&str, bool, bool, bool); 7] = [
    ("read", false, true, false),
    ("write", false, false, true),
    ("randread", true, true, false),
    ("randwrite", true, false, true),
    ("rw", false, true, true),
    ("readwrite", false, true, true),
    ("randrw", true, true, true),
];

impl Access {
    /// Reads a value of `rw`.
    pub fn parse(text: &str) -> Result<Access, String> {
        if let Some((kind, step)) = text.split_once(':') {
            return Err(format!("{text:?}: a step (:{step}) is not supported; expected {kind} alone"));
        }
        let found = KINDS.iter().find(|kind| kind.0 == text);
        let (name, random, reads, writes) = *found.ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().map(|kind| kind.0).collect();
            format!("{text:?}: expected one of {}", names.join(", "))
        })?;
        Ok(Access { random, reads, writes, name })
    }

    /// The name, as fio prints it.
    pub fn name(self) -> &'static str {
        if self.name == "readwrite" { "rw" } else { self.name }
    }

    /// Does it both read and write?
    pub fn is_mixed(self) -> bool {
        self.reads && self.writes
    }

    /// Does it go this way?
    pub fn goes(self, direction: Direction) -> bool {
        match direction {
            Direction::Read => self.reads,
            Direction::Write => self.writes,
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Access { random: false, reads: true, writes: false, name: "read" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let mixed = Access::parse("readwrite").expect("known");
        assert!(mixed.is_mixed() && !mixed.random && mixed.name() == "rw");
        assert!(Access::parse("trim").is_err_and(|said| said.contains("randread")));
        assert!(Access::parse("read:4k").is_err_and(|said| said.contains("step")));
    }
}
