//! Random work against an oracle: every byte, every account, after every step.

use peerfs_abi::{MapFlags, Reason};
use proptest::prelude::*;

use super::super::*;
use super::world::*;
use crate::types::*;

const DEVICE_BYTES: u64 = 4 * MIB;
const MAIN_BYTES: u64 = 3 * MIB;

#[derive(Debug, Clone)]
enum Step {
    Allocate {
        peer: usize,
        bytes: u64,
    },
    Grow {
        which: usize,
        more: u64,
    },
    Free {
        which: usize,
    },
    Write {
        which: usize,
        at: u64,
        length: usize,
        byte: u8,
    },
    /// Maps all of it, stores through the mapping, and leaves it mapped.
    Map {
        which: usize,
        peer: usize,
        at: u64,
        byte: u8,
    },
    CloseSession {
        peer: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = 0usize..16;
    let at = 0..2 * MIB;
    let step = prop_oneof![
        4 => (0usize..3, 1..2 * MIB).prop_map(|(peer, bytes)| Step::Allocate { peer, bytes }),
        2 => (which.clone(), 0..MIB).prop_map(|(which, more)| Step::Grow { which, more }),
        2 => which.clone().prop_map(|which| Step::Free { which }),
        4 => (which.clone(), at.clone(), 1usize..20_000, 1u8..)
            .prop_map(|(which, at, length, byte)| Step::Write { which, at, length, byte }),
        4 => (which, 0usize..3, at, 1u8..).prop_map(|(which, peer, at, byte)| Step::Map { which, peer, at, byte }),
        1 => (0usize..3).prop_map(|peer| Step::CloseSession { peer }),
    ];
    prop::collection::vec(step, 1..40)
}

struct Known {
    id: u64,
    owner: usize,
    bytes: Vec<u8>,
    windows: Vec<(Range, Mapped)>,
}

struct Model {
    world: World,
    peers: Vec<Peer>,
    known: Vec<Known>,
}

impl Model {
    fn new(windowed: bool) -> Model {
        let world = match windowed {
            true => World::windowed(2 * MIB, DEVICE_BYTES, config(MAIN_BYTES)),
            false => World::new(DEVICE_BYTES, config(MAIN_BYTES)),
        };
        let peers = (0..3).map(|_| world.peer()).collect();
        Model { world, peers, known: Vec::new() }
    }

    fn pick(&mut self, which: usize) -> Option<usize> {
        (!self.known.is_empty()).then(|| which % self.known.len())
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Allocate { peer, bytes } => self.allocate(peer, bytes),
            Step::CloseSession { peer } => {
                // The engine's session stays: only the memory ends, and the peer goes on.
                self.world.pool.close_session(self.peers[peer].owner.session);
                self.known.iter().filter(|known| known.owner == peer).for_each(assert_cut);
                self.known.retain(|known| known.owner != peer);
            }
            Step::Grow { which, more } => {
                let Some(at) = self.pick(which) else { return };
                let known = &mut self.known[at];
                let wanted = known.bytes.len() as u64 + more;
                match self.world.pool.grow(self.peers[known.owner].owner.session, known.id, wanted) {
                    Ok(view) => known.bytes.resize(view.bytes as usize, 0),
                    Err(error) => assert!(matches!(error, PoolError::Full { .. } | PoolError::TooLarge { .. }), "{error}"),
                }
            }
            Step::Free { which } => {
                let Some(at) = self.pick(which) else { return };
                let known = self.known.swap_remove(at);
                self.world.pool.free(self.peers[known.owner].owner.session, known.id).expect("free");
                assert_cut(&known);
            }
            Step::Write { which, at, length, byte } => self.write(which, at, &vec![byte; length]),
            Step::Map { which, peer, at, byte } => self.map(which, peer, at, byte),
        }
    }

    fn allocate(&mut self, peer: usize, bytes: u64) {
        match self.world.pool.allocate(self.peers[peer].owner, bytes) {
            Ok(view) => {
                let bytes = vec![0; view.bytes as usize];
                self.known.push(Known { id: view.id, owner: peer, bytes, windows: Vec::new() });
            }
            Err(error) => {
                assert!(matches!(error, PoolError::Full { .. }), "{error}");
                let record = self.world.pool.record();
                assert!(record.main_bytes_max - record.main_bytes_used < bytes.next_multiple_of(4096), "{record:?}");
            }
        }
    }

    fn write(&mut self, which: usize, at: u64, data: &[u8]) {
        let Some(index) = self.pick(which) else { return };
        let known = &mut self.known[index];
        let fits = (known.bytes.len() as u64).saturating_sub(at).min(data.len() as u64) as usize;
        match self.world.pool.write(known.id, at, data) {
            Ok(written) => assert_eq!(written, fits),
            Err(error) => assert!(fits == 0 && matches!(error, PoolError::BeyondEnd { .. }), "{error}"),
        }
        if fits > 0 {
            known.bytes[at as usize..at as usize + fits].copy_from_slice(&data[..fits]);
        }
    }

    fn map(&mut self, which: usize, peer: usize, at: u64, byte: u8) {
        let Some(index) = self.pick(which) else { return };
        let known = &mut self.known[index];
        let answer = self.world.map(self.peers[peer], known.id, Range::ALL, MapFlags::WRITE);
        let reasons: Vec<Reason> = answer.segments.iter().filter_map(|segment| segment.access.err()).collect();
        assert!(reasons.iter().all(|reason| matches!(reason, Reason::ApertureFull | Reason::Busy)), "{answer:?}");
        for (range, window) in self.world.windows(&answer, true) {
            if (range.start..range.end).contains(&at) {
                assert!(window.store(at - range.start, &[byte]));
                known.bytes[at as usize] = byte;
            }
            known.windows.push((range, window));
        }
    }

    fn check(&self) {
        self.world.assert_balanced();
        for known in &self.known {
            let size = known.bytes.len() as u64;
            let found = self.world.pool.read(known.id, 0, size + 1).expect("read");
            assert!(found == known.bytes, "device memory {} differs", known.id);
            for (range, window) in &known.windows {
                if let Some(seen) = window.load(0, range.length() as usize) {
                    assert!(seen == known.bytes[range.start as usize..range.end as usize], "a live window differs");
                }
            }
        }
    }
}

fn assert_cut(known: &Known) {
    assert!(known.windows.iter().all(|window| !window.1.is_live()), "a mapping outlived its memory");
}

fn replay(windowed: bool, steps: &[Step]) {
    let mut model = Model::new(windowed);
    for step in steps {
        model.run(step);
        model.check();
    }
    for peer in model.peers.clone() {
        model.world.pool.close_session(peer.owner.session);
    }
    model.world.assert_empty();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_and_account_is_right_on_an_identity_aperture(steps in steps()) {
        replay(false, &steps);
    }

    #[test]
    fn every_byte_and_account_is_right_on_a_windowed_aperture(steps in steps()) {
        replay(true, &steps);
    }
}
