//! The overlay against a plain vector of bytes, under random requests, windows and peers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use peerfs_blockdev::{
    Aperture, ApertureKind, BlockDevice, BlockDeviceExt, Cmb, FaultDevice, MemDevice, Run, Window, WindowError, WindowSpec,
};
use proptest::prelude::*;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64;

#[derive(Debug, Clone)]
enum Step {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64),
    Open { first: u64, second: u64, blocks: u64, writable: bool },
    Store(usize, u64, Vec<u8>),
    Flush(usize),
    Cut(usize),
    WriteBack(usize),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..BLOCKS, 1..20u64).prop_map(|(at, n)| (at, n.min(BLOCKS - at)));
    let which = || 0..8usize;
    prop_oneof![
        4 => range().prop_map(|(at, n)| Step::Read(at, n)),
        4 => (range(), any::<u8>()).prop_map(|((at, n), fill)| Step::Write(at, n, fill)),
        1 => range().prop_map(|(at, n)| Step::Zero(at, n)),
        3 => (0..BLOCKS - 8, 0..BLOCKS - 8, 1..8u64, any::<bool>()).prop_map(
            |(first, second, blocks, writable)| Step::Open { first, second, blocks, writable }),
        4 => (which(), any::<u64>(), prop::collection::vec(any::<u8>(), 1..9000))
            .prop_map(|(which, at, data)| Step::Store(which, at, data)),
        1 => which().prop_map(Step::Flush),
        2 => which().prop_map(Step::Cut),
        2 => which().prop_map(Step::WriteBack),
        1 => which().prop_map(Step::Drop),
    ]
}

struct Live {
    window: Arc<dyn Window>,
    grant: File,
    writable: bool,
    cut: bool,
}

struct Bench {
    below: Arc<dyn BlockDevice>,
    cmb: Cmb,
    model: Vec<u8>,
    live: Vec<Live>,
}

impl Bench {
    fn new(kind: ApertureKind, bounce: bool) -> Self {
        let device = MemDevice::new(BLOCKS * BLOCK).expect("memory device");
        let engine = device.engine().clone();
        let mut below: Arc<dyn BlockDevice> = Arc::new(device);
        if bounce {
            below = Arc::new(FaultDevice::new(below, 1));
        }
        let model: Vec<u8> = (0..BLOCKS * BLOCK).map(|i| (i / 100) as u8).collect();
        below.write_at(0, &model).expect("initial contents");
        let cmb = match kind {
            ApertureKind::Windowed => Cmb::new(below.clone(), engine, 40 * BLOCK),
            ApertureKind::Identity => Cmb::identity(below.clone(), engine),
        };
        Bench { below, cmb, model, live: Vec::new() }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Read(at, n) => self.check(at * BLOCK, n * BLOCK),
            Step::Write(at, n, fill) => {
                let (from, to) = ((at * BLOCK) as usize, ((at + n) * BLOCK) as usize);
                self.model[from..to].fill(fill);
                let data = &self.model[from..to];
                self.cmb.write_at(at * BLOCK, data).expect("write");
            }
            Step::Zero(at, n) => {
                self.model[(at * BLOCK) as usize..((at + n) * BLOCK) as usize].fill(0);
                self.cmb.write_zeroes(at * BLOCK, n * BLOCK).expect("zero");
            }
            Step::Open { first, second, blocks, writable } => self.open(first, second, blocks, writable),
            Step::Store(which, at, data) => self.store(which, at, &data),
            Step::Flush(which) => self.flush(which),
            Step::Cut(which) => {
                if let Some(live) = self.live.get_mut(which) {
                    live.window.cut();
                    live.cut = true;
                }
            }
            Step::WriteBack(which) => {
                if let Some(live) = self.take(which) {
                    live.window.cut();
                    live.window.write_back().expect("write back");
                    self.check_below(&live.window);
                }
            }
            Step::Drop(which) => drop(self.take(which)),
        }
    }

    fn open(&mut self, first: u64, second: u64, blocks: u64, writable: bool) {
        let length = blocks * BLOCK;
        let run = |place: u64, block: u64| Run { window_offset: place, device_offset: block * BLOCK, length };
        let spec =
            WindowSpec { owner: 1, length: 2 * length, runs: vec![run(0, first), run(length, second)], valid_length: 2 * length };
        match self.cmb.open_window(spec) {
            Ok(window) => {
                if writable {
                    window.set_writable();
                }
                let grant = File::from(window.grant_fd(writable).expect("grant"));
                self.live.push(Live { window, grant, writable, cut: false });
            }
            Err(WindowError::Full { needed_bytes }) => {
                let info = self.cmb_info();
                assert_eq!(info.kind, ApertureKind::Windowed, "blocks in their home need no room");
                assert_eq!(info.used_bytes + 2 * length - info.capacity_bytes, needed_bytes);
            }
            Err(WindowError::Overlap { .. }) => {
                let held = |block: u64| {
                    let range = block * BLOCK..block * BLOCK + length;
                    self.live
                        .iter()
                        .flat_map(|live| live.window.runs())
                        .any(|run| run.device_offset < range.end && range.start < run.device_offset + run.length)
                };
                assert!(first.abs_diff(second) < blocks || held(first) || held(second));
            }
            Err(err) => panic!("{err}"),
        }
    }

    fn store(&mut self, which: usize, at: u64, data: &[u8]) {
        let Some(live) = self.live.get(which) else { return };
        let at = at % live.window.length();
        let data = &data[..data.len().min((live.window.length() - at) as usize)];
        let stored = live.grant.write_all_at(data, at);
        if !live.writable || live.cut {
            assert!(stored.is_err(), "a store without right or after the cut");
            return;
        }
        stored.expect("a granted store");
        for (i, byte) in (at..).zip(data) {
            let run = live.window.runs().iter().find(|run| (run.window_offset..run.window_offset + run.length).contains(&i));
            let run = run.expect("the runs cover the window");
            self.model[(run.device_offset + i - run.window_offset) as usize] = *byte;
        }
    }

    fn flush(&mut self, which: usize) {
        if let Some(live) = self.live.get(which) {
            live.window.flush().expect("flush");
            if self.cmb_info().kind == ApertureKind::Windowed {
                self.check_below(&live.window);
            }
        }
    }

    fn take(&mut self, which: usize) -> Option<Live> {
        (which < self.live.len()).then(|| self.live.swap_remove(which))
    }

    fn cmb_info(&self) -> peerfs_blockdev::ApertureInfo {
        Aperture::info(&self.cmb)
    }

    fn check(&self, offset: u64, length: u64) {
        let mut got = vec![0; length as usize];
        self.cmb.read_at(offset, &mut got).expect("read");
        assert!(got == self.model[offset as usize..(offset + length) as usize], "read at {offset}");
    }

    fn check_below(&self, window: &Arc<dyn Window>) {
        for run in window.runs() {
            let mut got = vec![0; run.length as usize];
            self.below.read_at(run.device_offset, &mut got).expect("read");
            let from = run.device_offset as usize;
            assert!(got == self.model[from..from + got.len()], "device at {from}");
        }
    }
}

fn play(steps: Vec<Step>, kind: ApertureKind, bounce: bool) {
    let mut bench = Bench::new(kind, bounce);
    for step in steps {
        bench.run(step);
    }
    bench.check(0, BLOCKS * BLOCK);
    bench.live.clear();
    assert_eq!((bench.cmb_info().used_bytes, bench.cmb_info().windows), (0, 0));
    let mut got = vec![0; (BLOCKS * BLOCK) as usize];
    bench.below.read_at(0, &mut got).expect("read");
    assert!(got == bench.model, "the device has everything at the end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn overlay_equals_model(steps in prop::collection::vec(step(), 1..60)) {
        play(steps, ApertureKind::Windowed, false);
    }

    #[test]
    fn overlay_equals_model_when_the_device_bounces(steps in prop::collection::vec(step(), 1..40)) {
        play(steps, ApertureKind::Windowed, true);
    }

    #[test]
    fn an_identity_aperture_equals_the_model(steps in prop::collection::vec(step(), 1..60)) {
        play(steps, ApertureKind::Identity, false);
    }

    #[test]
    fn an_identity_aperture_equals_the_model_when_the_device_bounces(steps in prop::collection::vec(step(), 1..40)) {
        play(steps, ApertureKind::Identity, true);
    }
}
