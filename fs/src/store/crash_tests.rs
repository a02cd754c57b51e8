//! Power failures and failing devices: after any of them the metadata is a
//! state that existed and includes everything committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use peerfs_blockdev::{BlockDevice, FaultDevice, MemDevice};

use super::testdev::{Rng, TestDevice};
use super::*;

const SIZE: u64 = 8 << 20;
const OPTIONS: OpenOptions = OpenOptions { read_only: false, cache_bytes: 1 << 20, discard: true };

type Records = BTreeMap<Vec<u8>, Vec<u8>>;

fn formatted() -> Vec<u8> {
    let device = Arc::new(TestDevice::new(SIZE));
    Volume::format(device.clone(), &FormatOptions::default()).unwrap();
    device.image()
}

/// What the workload writes: attributes of the root directory. They grow the metadata.
fn records(volume: &Volume) -> Records {
    let mut records = Records::new();
    volume
        .for_each(Key::xattrs_of(ROOT_INO), |key, value| {
            records.insert(key.encode(), value.to_vec());
            Ok(())
        })
        .unwrap();
    records
}

struct Workload {
    rng: Rng,
    model: Records,
    /// Runs in quarantine: they move blocks.
    quarantined: Vec<BlockRange>,
    /// The states after each batch.
    states: Vec<Records>,
    /// Index of the last state known to be durable.
    committed: usize,
}

impl Workload {
    fn new(seed: u64) -> Self {
        let states = vec![Records::new()];
        Workload { rng: Rng::new(seed), model: Records::new(), quarantined: Vec::new(), states, committed: 0 }
    }

    /// Runs until the device fails or the steps are done.
    fn run(&mut self, volume: &Volume, steps: usize) -> Result<(), StoreError> {
        for _ in 0..steps {
            let mut batch = Batch::new();
            for _ in 0..1 + self.rng.below(6) {
                let name = format!("user.{}", self.rng.below(60));
                let key = Key::Xattr(ROOT_INO, name.as_bytes());
                if self.rng.below(5) == 0 {
                    batch.delete(&key);
                    self.model.remove(&key.encode());
                } else {
                    let value = vec![self.rng.next() as u8; self.rng.below(60_000) as usize];
                    batch.put_raw(&key, &value);
                    self.model.insert(key.encode(), value);
                }
            }
            self.move_blocks(volume, &mut batch);
            volume.apply(batch)?;
            self.states.push(self.model.clone());
            if self.rng.below(3) == 0 {
                let durable = self.states.len() - 1;
                volume.commit()?;
                self.committed = durable;
            }
        }
        Ok(())
    }

    /// Takes the state that survived as the new beginning.
    fn restart(&mut self, device: Arc<dyn BlockDevice>) {
        let volume = Volume::open(device, &OPTIONS).unwrap();
        self.model = records(&volume);
        volume.close().unwrap();
        // Opening ended the quarantine.
        self.quarantined.clear();
        self.states = vec![self.model.clone()];
        self.committed = 0;
    }

    fn move_blocks(&mut self, volume: &Volume, batch: &mut Batch) {
        if !self.quarantined.is_empty() && self.rng.below(2) == 0 {
            batch.release(self.quarantined.remove(0));
            return;
        }
        let request = AllocRequest { blocks: 1 + self.rng.below(30), near: None };
        let Ok(allocation) = volume.allocate(request) else { return };
        for piece in allocation.pieces() {
            batch.quarantine(*piece);
            self.quarantined.push(*piece);
        }
        batch.claim(allocation);
    }

    fn assert_recovered(&self, image: Vec<u8>, seed: u64, what: &str) {
        self.assert_recovered_on(Arc::new(TestDevice::from_image(image)), seed, what);
    }

    fn assert_recovered_on(&self, device: Arc<dyn BlockDevice>, seed: u64, what: &str) {
        let report = check(device.clone()).unwrap_or_else(|e| panic!("seed {seed} {what}: {e}"));
        assert!(report.is_clean(), "seed {seed} {what}: {:#?}", report.problems);
        let volume = Volume::open(device, &OPTIONS).unwrap();
        let found = records(&volume);
        let possible = &self.states[self.committed..];
        assert!(possible.contains(&found), "seed {seed} {what}: the state after the crash never existed or lost a commit");
    }
}

/// Power fails at every write and flush of a run in turn.
#[test]
fn every_crash_leaves_a_committed_state() {
    let image = formatted();
    for seed in 0..3 {
        let device = Arc::new(TestDevice::from_image(image.clone()));
        let volume = Volume::open(device.clone(), &OPTIONS).unwrap();
        let opened = device.steps();
        Workload::new(seed).run(&volume, 40).unwrap();
        assert!(volume.metadata_extents().iter().map(|range| range.count).sum::<u64>() > 510);
        let total = device.steps();
        let mut crash_rng = Rng::new(seed + 1000);
        let stride = 1 + (total - opened) / 150;
        let mut step = opened + seed % stride;
        while step < total {
            let device = Arc::new(TestDevice::from_image(image.clone()));
            let volume = Volume::open(device.clone(), &OPTIONS).unwrap();
            device.fail(step, u64::MAX);
            let mut workload = Workload::new(seed);
            workload.run(&volume, 40).unwrap_err();
            drop(volume);
            let what = format!("crash at step {step}");
            workload.assert_recovered(device.crash_image(&mut crash_rng), seed, &what);
            step += stride;
        }
    }
}

/// Power fails between the writes of mkfs: the device is no volume or a complete one.
#[test]
fn an_interrupted_mkfs_is_noticed() {
    let device = Arc::new(TestDevice::new(SIZE));
    Volume::format(device.clone(), &FormatOptions::default()).unwrap();
    let total = device.steps();
    let mut rng = Rng::new(5);
    for step in 0..total {
        let device = Arc::new(TestDevice::new(SIZE));
        device.fail(step, u64::MAX);
        let done = Volume::format(device.clone(), &FormatOptions::default()).is_ok();
        let device = Arc::new(TestDevice::from_image(device.crash_image(&mut rng)));
        match Volume::open(device.clone(), &OPTIONS) {
            Ok(_) => assert!(check(device).unwrap().is_clean(), "step {step}"),
            Err(StoreError::NotPeerfs { .. } | StoreError::Unfinished { .. } | StoreError::CorruptSuperblock { .. }) => {
                assert!(!done, "step {step}")
            }
            Err(error) => panic!("step {step}: {error}"),
        }
    }
}

/// One failing write: the commit says so, nothing is lost, the next commit succeeds.
#[test]
fn a_failed_commit_is_retried() {
    let image = formatted();
    for failing in 0..40 {
        let device = Arc::new(TestDevice::from_image(image.clone()));
        let volume = Volume::open(device.clone(), &OPTIONS).unwrap();
        let mut workload = Workload::new(failing);
        workload.run(&volume, 6).unwrap();
        device.fail(device.steps() + failing, 1);
        let mut failures = 0;
        while volume.pending_bytes() > 0 {
            match volume.commit() {
                Ok(_) => break,
                Err(_) => failures += 1,
            }
            // Reading goes on after any failure.
            assert_eq!(records(&volume), workload.model, "failing write {failing}");
            if volume.failed() {
                let refused = volume.apply(Batch::new()).unwrap_err();
                assert!(matches!(refused, StoreError::FlushFailed { .. }));
                break;
            }
            assert!(failures < 3, "failing write {failing}");
        }
        assert_eq!(records(&volume), workload.model, "failing write {failing}");
        device.fail(0, 0);
        if !volume.failed() {
            volume.close().unwrap();
            workload.committed = workload.states.len() - 1;
        }
        drop(volume);
        workload.assert_recovered(device.image(), failing, "a write failed");
    }
}

/// The same through the asynchronous engine: power fails between batches, again and again on one volume.
#[test]
fn repeated_power_failures_on_a_real_device() {
    for seed in 0..4 {
        let memory = Arc::new(MemDevice::new(SIZE).unwrap());
        let device = Arc::new(FaultDevice::new(memory, seed));
        Volume::format(device.clone(), &FormatOptions::default()).unwrap();
        let mut workload = Workload::new(seed);
        for round in 0..6 {
            let volume = Volume::open(device.clone(), &OPTIONS).unwrap();
            workload.run(&volume, 15).unwrap();
            device.crash().unwrap();
            assert!(volume.commit().is_err());
            drop(volume);
            device.reopen();
            workload.assert_recovered_on(device.clone(), seed, &format!("round {round}"));
            workload.restart(device.clone());
        }
    }
}
