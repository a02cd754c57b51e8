//! Every rule of mapping on every backend that needs no hardware: see `peerfs-conformance`.

use peerfs_abi::Path;
use peerfs_conformance::{Backend, DeviceBackend, ImageBackend, MemBackend, Verdict, all_cases, run};
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

/// Memory that no process can be given, as the BARs of controllers are: a file stands for it.
#[test]
fn on_memory_that_only_the_server_reaches() {
    let place = tempfile::tempdir().expect("a directory");
    let device = format!("pmem:{},nodax", place.path().join("volume").display());
    let backend = DeviceBackend::new(&device, Path::DirectWindow, None);
    backend.erase(false).expect("nothing is there");
    backend.erase(false).expect_err("a volume is there by now");
    let report = run(&backend, &all_cases(), seed(1), |line| println!("{line}"));
    assert!(report.holds(), "{}", report.summary());
    // What the importer in the server shows is shown, and what takes a window is not said to be.
    for line in &report.lines {
        let wanted = match line.case {
            name if name.starts_with("server-") => Some(true),
            "trigger-truncate" | "revoke-order" | "flag-write" | "answer-direct-at-once" => Some(false),
            _ => None,
        };
        assert!(wanted.is_none_or(|passed| passed == (line.verdict == Verdict::Passed)), "{line}");
    }
    println!("{}", report.summary());
}
