//! `SEMANTICS.md` and the suite name the same cases.

use std::collections::BTreeSet;

use peerfs_conformance::all_cases;

const PAGE: &str = include_str!("../../../SEMANTICS.md");

/// Names between `[` and `]` that are code.
fn named() -> BTreeSet<&'static str> {
    PAGE.split("[`").skip(1).filter_map(|rest| rest.split_once("`]")).map(|(name, _)| name).collect()
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
