//! Random operations against a model, without and with a kernel: no byte that any
//! path delivers may differ, whatever is mapped, revoked, cut or remounted.

use std::path::PathBuf;

use peerfs_client::{File, ImporterSpec, MapFlags, Session, Trigger};
use peerfs_tests::ScratchMount;
use peerfs_tests::model::remote::{Field, FieldPlan, data_of};
use peerfs_tests::model::{Plan, Tally, World};

/// Steps of a test, over all its seeds: `PEERFS_STEPS`, or `default`.
fn steps(default: u64) -> u64 {
    std::env::var("PEERFS_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Seeds of a test: `PEERFS_SEED` alone, or these.
fn seeds(default: &[u64]) -> Vec<u64> {
    match std::env::var("PEERFS_SEED").ok().and_then(|text| text.parse().ok()) {
        Some(seed) => vec![seed],
        None => default.to_vec(),
    }
}

fn run_all(plans: &[Plan]) -> Tally {
    let mut total = Tally::default();
    for plan in plans {
        println!("{plan:?} (replay with PEERFS_SEED={} PEERFS_STEPS={})", plan.seed, plan.steps);
        let outcome = World::new(*plan).and_then(|mut world| world.run());
        total += outcome.unwrap_or_else(|error| panic!("divergence: {error:?}"));
    }
    check(&total);
    total
}

fn check(total: &Tally) {
    println!("{total}");
    assert!(total.bytes_direct > 0, "nothing went directly");
    assert!(total.bytes_fallback > 0 && total.total_revoked() > 0, "the run met neither fallback nor revocation");
}

fn plan(seed: u64, steps: u64) -> Plan {
    Plan { seed, steps, cmb_bytes: 8 << 20, files: 6, importers: 3, crashes: false }
}

#[test]
fn random_operations_match_the_model() {
    let each = steps(20_000);
    run_all(&seeds(&[1, 2, 3]).iter().map(|seed| plan(*seed, each)).collect::<Vec<_>>());
}

#[test]
fn a_small_aperture_evicts_and_matches_the_model() {
    let each = steps(20_000);
    let small = |seed: &u64| Plan { cmb_bytes: 1 << 20, ..plan(*seed, each) };
    let total = run_all(&seeds(&[11, 12]).iter().map(small).collect::<Vec<_>>());
    assert!(total.revoked.get(Trigger::AperturePressure.name()).is_some_and(|count| *count > 0), "nothing was evicted");
}

#[test]
fn power_failures_match_the_model() {
    let each = steps(10_000);
    let crashing = |seed: &u64| Plan { crashes: true, ..plan(*seed, each) };
    run_all(&seeds(&[21, 22]).iter().map(crashing).collect::<Vec<_>>());
}

/// Through the kernel: separate client processes, one command at a time. The last of them may be hung.
fn run_on_a_mount(seeds: &[u64], hung_client: bool) {
    let mut total = Tally::default();
    for seed in seeds {
        let plan = FieldPlan {
            seed: *seed,
            steps: steps(4000),
            clients: 3,
            hung_client,
            mount: ["--cmb", "8M", "-o", "deadline_ms=20"].map(str::to_owned).to_vec(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_peerfs-model-client")),
        };
        println!("{plan:?}");
        let outcome = Field::new(plan).and_then(Field::run);
        total += outcome.unwrap_or_else(|error| panic!("divergence: {error:?}"));
    }
    check(&total);
}

#[test]
fn client_processes_on_a_mount_match_the_model() {
    run_on_a_mount(&seeds(&[31, 32]), false);
}

#[test]
fn a_hung_client_process_on_a_mount_changes_no_byte() {
    run_on_a_mount(&seeds(&[41]), true);
}

#[test]
fn an_uncontended_sequential_pass_is_all_direct() {
    const SIZE: u64 = 64 << 20;
    const CHUNK: u64 = 2 << 20;
    let mount = ScratchMount::new("256M", &["--cmb", "32M"]).expect("a mount");
    let path = mount.join("large");
    let data = data_of(7, SIZE as usize);
    std::fs::write(&path, &data).expect("a freshly written file");

    let file = File::open(&path).expect("open");
    let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("session");
    let mut buffer = vec![0; CHUNK as usize];
    let mut attested = 0;
    for start in (0..SIZE).step_by(CHUNK as usize) {
        let mapping = session.map(&file, start..start + CHUNK, MapFlags::empty()).expect("map");
        assert!(mapping.segments().iter().all(|segment| segment.reason.is_none()), "{:?}", mapping.segments());
        let moved = mapping.read_at(start, &mut buffer).expect("read");
        assert_eq!(moved.fallback, 0, "at {start}");
        assert!(buffer == data[start as usize..(start + CHUNK) as usize], "wrong bytes at {start}");
        attested += mapping.unmap().expect("unmap").direct();
    }

    let info = file.info().expect("info");
    println!("server: {} bytes directly, {} by fallback; client: {attested}", info.file_bytes_direct, info.file_bytes_fallback);
    assert_eq!((info.file_bytes_direct, info.file_bytes_fallback), (SIZE, 0));
    assert_eq!(attested, SIZE);
}
