//! Every rule of mapping on every software backend: see `peerfs-conformance`.

use peerfs_conformance::{Backend, ImageBackend, MemBackend, all_cases, run};
use peerfs_tests::seed;

fn all_rules_hold_on(backend: &dyn Backend) {
    let report = run(backend, &all_cases(), seed(1), |line| println!("{line}"));
    assert!(report.holds(), "{}", report.summary());
    println!("{}", report.summary());
}

#[test]
fn on_an_image_with_a_software_cmb() {
    all_rules_hold_on(&ImageBackend);
}

#[test]
fn on_a_volume_in_memory() {
    all_rules_hold_on(&MemBackend);
}
