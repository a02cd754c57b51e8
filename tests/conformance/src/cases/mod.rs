//! The cases, in the order of the rules in `SEMANTICS.md`.

mod addresses;
mod answers;
mod coherence;
mod contexts;
mod cpu_handles;
mod death;
mod device_memory;
mod dmabuf;
mod effects;
mod faults;
mod ids;
mod importers;
mod metrics;
mod partial;
mod pin_quarantine;
mod pins;
mod policy;
mod reasons_device;
mod reasons_file;
mod reasons_peer;
mod revocation;
mod server_importer;
mod shared_addresses;
mod sharing;
mod signals;
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
        metrics::CASES,
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
        signals::CASES,
        importers::CASES,
        server_importer::CASES,
        death::CASES,
        pins::CASES,
        pin_quarantine::CASES,
        dmabuf::CASES,
        trust::CASES,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use peerfs_abi::{Reason, Trigger};

    use crate::evidence::Fact;

    /// Triggers without a case `trigger-...`, the case that proves each, and why it is named otherwise.
    const ELSEWHERE: [(Trigger, &str, &str); 2] = [
        (Trigger::CpuAccess, "cached-read-beside-write", "each cell of the table of coherence is a case"),
        (Trigger::PolicyChange, "policy-change-revokes", "it stands with the policies"),
    ];

    #[test]
    fn names_are_unique_and_rules_are_sentences() {
        let mut names = BTreeSet::new();
        for case in super::all() {
            assert!(names.insert(case.name), "{} is there twice", case.name);
            assert!(case.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte.is_ascii_digit()));
            assert!(!case.rule.is_empty() && !case.rule.ends_with('.'), "{}", case.name);
        }
    }

    fn proved() -> BTreeSet<Fact> {
        super::all().iter().filter_map(|case| case.proves).collect()
    }

    #[test]
    fn every_reason_and_every_trigger_has_a_case_that_must_see_it() {
        let unproved = |fact: Fact| (!proved().contains(&fact)).then_some(fact);
        let reasons = Reason::ALL.iter().filter_map(|reason| unproved(Fact::Refused(*reason)));
        let triggers = Trigger::ALL.iter().filter_map(|trigger| unproved(Fact::Revoked(*trigger)));
        let missing: Vec<Fact> = reasons.chain(triggers).collect();
        assert!(missing.is_empty(), "no case proves {missing:?}");
    }

    #[test]
    fn cases_named_after_a_reason_or_trigger_say_which() {
        for case in super::all() {
            match case.name.split_once('-') {
                Some(("reason", _)) => assert!(matches!(case.proves, Some(Fact::Refused(_))), "{}", case.name),
                Some(("trigger", _)) => assert!(matches!(case.proves, Some(Fact::Revoked(_))), "{}", case.name),
                _ => {}
            }
        }
    }

    #[test]
    fn triggers_have_a_case_of_their_name_or_a_place_elsewhere() {
        let named = |trigger: Trigger| {
            let wanted = Some(Fact::Revoked(trigger));
            super::all().iter().any(|case| case.name.starts_with("trigger-") && case.proves == wanted)
        };
        let elsewhere: Vec<Trigger> = Trigger::ALL.iter().copied().filter(|trigger| !named(*trigger)).collect();
        assert_eq!(elsewhere, ELSEWHERE.map(|(trigger, ..)| trigger));
        for (trigger, name, why) in ELSEWHERE {
            let holds = super::all().iter().any(|case| case.name == name && case.proves == Some(Fact::Revoked(trigger)));
            assert!(holds && !why.is_empty(), "{name} does not prove {trigger}");
        }
    }
}
