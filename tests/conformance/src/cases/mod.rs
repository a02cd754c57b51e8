//! The cases, in the order of the rules in `SEMANTICS.md`.

mod addresses;
mod answers;
mod coherence;
mod contexts;
mod cpu_handles;
mod death;
mod device_memory;
mod effects;
mod faults;
mod ids;
mod importers;
mod partial;
mod pin_quarantine;
mod pins;
mod policy;
mod reasons_device;
mod reasons_file;
mod reasons_peer;
mod revocation;
mod shared_addresses;
mod sharing;
mod triggers;
mod trust;

use crate::case::Case;

/// Every case.
pub fn all() -> Vec<Case> {
    [
        reasons_file::CASES,
        reasons_device::CASES,
        reasons_peer::CASES,
        faults::CASES,
        answers::CASES,
        addresses::CASES,
        shared_addresses::CASES,
        device_memory::CASES,
        ids::CASES,
        contexts::CASES,
        coherence::CASES,
        cpu_handles::CASES,
        sharing::CASES,
        policy::CASES,
        effects::CASES,
        triggers::CASES,
        revocation::CASES,
        partial::CASES,
        importers::CASES,
        death::CASES,
        pins::CASES,
        pin_quarantine::CASES,
        trust::CASES,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_rules_are_sentences() {
        let mut names = BTreeSet::new();
        for case in super::all() {
            assert!(names.insert(case.name), "{} is there twice", case.name);
            assert!(case.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit()));
            assert!(!case.rule.is_empty() && !case.rule.ends_with('.'), "{}", case.name);
        }
    }
}
