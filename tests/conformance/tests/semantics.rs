//! `SEMANTICS.md` and the suite name the same cases.

use std::collections::BTreeSet;

use peerfs_abi::{Reason, Trigger};
use peerfs_conformance::{Fact, all_cases};

const PAGE: &str = include_str!("../../../SEMANTICS.md");

/// Names between `[` and `]` that are code.
fn named() -> BTreeSet<&'static str> {
    named_in(PAGE)
}

fn named_in(text: &str) -> BTreeSet<&str> {
    text.split("[`").skip(1).filter_map(|rest| rest.split_once("`]")).map(|(name, _)| name).collect()
}

#[test]
fn every_case_is_named_and_every_name_is_a_case() {
    let cases: BTreeSet<&str> = all_cases().iter().map(|case| case.name).collect();
    let named = named();
    let unknown: Vec<_> = named.difference(&cases).collect();
    let unnamed: Vec<_> = cases.difference(&named).collect();
    assert!(unknown.is_empty(), "SEMANTICS.md names cases that do not exist: {unknown:?}");
    assert!(unnamed.is_empty(), "cases that SEMANTICS.md does not name: {unnamed:?}");
}

/// The cases named in the row of a table that starts with this word.
fn row(word: &str) -> BTreeSet<&'static str> {
    let is_row = |line: &&str| {
        let first = line.strip_prefix("| ").and_then(|rest| rest.split([' ', '|']).next());
        first == Some(word)
    };
    let line = PAGE.lines().find(is_row).unwrap_or_else(|| panic!("SEMANTICS.md has no row for {word}"));
    named_in(line)
}

#[test]
fn every_reason_and_trigger_has_a_row_whose_cases_must_see_it() {
    let proving = |fact: Fact, word: &str, names: BTreeSet<&'static str>| {
        let cases = all_cases();
        let wrong = |name: &&&str| cases.iter().any(|case| case.name == **name && case.proves != Some(fact));
        let wrong: Vec<_> = names.iter().filter(wrong).collect();
        assert!(wrong.is_empty(), "cases in the row of {word} that need not see it: {wrong:?}");
    };
    for reason in Reason::ALL {
        let names: BTreeSet<&str> = row(reason.name()).into_iter().filter(|name| name.starts_with("reason-")).collect();
        assert!(!names.is_empty(), "no case in the row of {reason}");
        proving(Fact::Refused(*reason), reason.name(), names);
    }
    for trigger in Trigger::ALL {
        proving(Fact::Revoked(*trigger), trigger.name(), row(trigger.name()));
    }
}
