//! Blocks that pins still reach: kept when the file gives them up, free when the pin ends or the volume is mounted again.

use std::sync::Mutex;

use peerfs_abi::Trigger;
use peerfs_blockdev::DeviceError;
use peerfs_p2p::{ExtentState, Range};

use super::*;
use crate::coherence::{ClosedRange, Coherence};
use crate::store::testdev::Rng;

const BLOCK: u64 = 4096;

/// Pins of device ranges (bytes) of files.
#[derive(Default)]
struct Pins(Mutex<Vec<(Ino, Range)>>);

impl Pins {
    /// Pins a range of a file; gives the device ranges.
    fn pin(&self, fs: &Mounted, ino: Ino, range: Range) -> Vec<Range> {
        let survey = fs.core.survey_extents(ino, range).expect("a file");
        let place = |extent: &peerfs_p2p::Extent| match extent.state {
            ExtentState::Mapped { device_offset, .. } => Some(Range::new(device_offset, extent.length)),
            _ => None,
        };
        let ranges: Vec<Range> = survey.extents.iter().filter_map(place).collect();
        self.0.lock().expect("no panic").extend(ranges.iter().map(|range| (ino, *range)));
        ranges
    }

    fn end(&self, fs: &Mounted, ino: Ino, ranges: &[Range]) {
        self.0.lock().expect("no panic").retain(|(owner, range)| *owner != ino || !ranges.contains(range));
        fs.core.release_blocks(ino, ranges).expect("release");
    }
}

impl Coherence for Pins {
    fn close_range(&self, _ino: Ino, _range: Range, _trigger: Trigger) -> ClosedRange {
        Box::new(())
    }
    fn cached_read(&self, _ino: Ino, _range: Range, _cpu_writers: u32) {}
    fn cached_write(&self, _ino: Ino, _range: Range) {}
    fn partial_write(&self, _ino: Ino, _range: Range) -> ClosedRange {
        Box::new(())
    }
    fn before_sharing(&self, _ino: Ino, _range: Range) -> Option<ClosedRange> {
        Some(Box::new(()))
    }
    fn writable_cached_open(&self, _ino: Ino) {}
    fn flush(&self, _ino: Ino) -> Result<(), DeviceError> {
        Ok(())
    }
    fn size_changed(&self, _ino: Ino, _old_size: u64, _new_size: u64) {}
    fn is_mapped(&self, ino: Option<Ino>) -> bool {
        self.0.lock().expect("no panic").iter().any(|(owner, _)| ino.is_none_or(|ino| ino == *owner))
    }
    fn pinned_blocks(&self, ino: Ino, freed: &[Range]) -> Vec<Range> {
        let pins = self.0.lock().expect("no panic");
        let own = pins.iter().filter(|(owner, _)| *owner == ino);
        own.flat_map(|(_, pin)| freed.iter().map(|range| range.intersect(*pin))).filter(|range| !range.is_empty()).collect()
    }
}

fn mounted() -> (Mounted, Arc<Pins>) {
    let fs = Mounted::new(16 << 20);
    let pins = Arc::new(Pins::default());
    fs.core.set_coherence(pins.clone());
    (fs, pins)
}

fn space(fs: &Mounted) -> (u64, u64) {
    fs.core.sync().expect("sync");
    let space = fs.core.volume().space();
    (space.free, space.quarantined)
}

/// What is allocated does not lie in what a pin reaches.
fn assert_untouched(fs: &Mounted, pinned: &[Range]) {
    let (ino, handle) = fs.create(ROOT_INO, "filler");
    let room = fs.core.volume().space().free_for_data / 2;
    for block in 0..room / 64 {
        fs.write(handle, block * 64 * BLOCK, &[0x55; 64 * BLOCK as usize]);
    }
    let survey = fs.core.survey_extents(ino, Range::ALL).expect("a file");
    for extent in survey.extents {
        if let ExtentState::Mapped { device_offset, .. } = extent.state {
            let used = Range::new(device_offset, extent.length);
            assert!(pinned.iter().all(|range| range.intersect(used).is_empty()), "pinned blocks were given away");
        }
    }
    fs.core.unlink(ALICE, ROOT_INO, b"filler").expect("unlink");
    fs.core.release(handle);
    fs.core.forget(ino, 1);
}

/// A way to free blocks of a file.
type Way = fn(&Mounted, Ino, Handle);

#[test]
fn given_up_blocks_are_kept_until_the_pin_ends() {
    let ways: [(&str, Way); 5] = [
        ("truncate", |fs, ino, _| fs.truncate(ino, 0)),
        ("punch", |fs, _, handle| {
            fs.core.fallocate(ALICE, handle, FallocateMode::PunchHole, 0, 16 * BLOCK).expect("punch");
        }),
        ("zero", |fs, _, handle| {
            let zero = FallocateMode::ZeroRange { keep_size: true };
            fs.core.fallocate(ALICE, handle, zero, 0, 16 * BLOCK).expect("zero");
        }),
        ("unlink", |fs, ino, handle| {
            fs.core.unlink(ALICE, ROOT_INO, b"f").expect("unlink");
            fs.core.release(handle);
            fs.core.forget(ino, 1);
            // A mapped file is freed by the commit thread, or by whoever needs space.
            fs.core.reclaim();
        }),
        ("copy on write", |fs, ino, handle| {
            let (clone, other) = fs.create(ROOT_INO, "clone");
            let whole = CloneRange { source_offset: 0, destination_offset: 0, length: 0 };
            assert_eq!(fs.reflink(ino, clone, whole), Ok(16 * BLOCK));
            fs.write(handle, 0, &[9; 16 * BLOCK as usize]);
            fs.truncate(clone, 0);
            fs.core.release(other);
        }),
    ];
    for (what, give_up) in ways {
        for end_by_remount in [false, true] {
            let (fs, pins) = mounted();
            let (ino, handle) = fs.create(ROOT_INO, "f");
            fs.write(handle, 0, &[1; 16 * BLOCK as usize]);
            let pinned = pins.pin(&fs, ino, Range { start: 4 * BLOCK, end: 8 * BLOCK });
            give_up(&fs, ino, handle);
            assert_eq!(space(&fs).1, 4, "{what}");
            assert_untouched(&fs, &pinned);
            let (free, _) = space(&fs);
            if end_by_remount {
                fs.core.set_coherence(Arc::new(NoMappings));
                let fs = fs.remount();
                assert_eq!(space(&fs).1, 0, "{what}");
                assert!(space(&fs).0 >= free + 4, "{what}");
            } else {
                pins.end(&fs, ino, &pinned);
                assert_eq!(space(&fs), (free + 4, 0), "{what}");
                pins.end(&fs, ino, &pinned);
                fs.core.set_coherence(Arc::new(NoMappings));
                fs.remount();
            }
        }
    }
}

#[test]
fn a_crash_ends_the_quarantine() {
    for seed in 0..6 {
        let (fs, pins) = mounted();
        let (ino, handle) = fs.create(ROOT_INO, "f");
        fs.write(handle, 0, &[1; 64 * BLOCK as usize]);
        fs.core.sync().expect("sync");
        pins.pin(&fs, ino, Range::ALL);
        fs.truncate(ino, 10 * BLOCK);
        if seed % 2 == 0 {
            fs.core.sync().expect("sync");
        }
        let disk = Arc::new(TestDevice::from_image(fs.disk.crash_image(&mut Rng::new(seed))));
        drop(fs);
        assert_clean(&disk);
        let fs = Mounted::on(disk);
        assert_eq!(space(&fs).1, 0);
        fs.remount();
    }
}

#[test]
fn two_pinned_clones_keep_their_blocks_until_both_pins_end() {
    let (fs, pins) = mounted();
    let (source, from) = fs.create(ROOT_INO, "source");
    let (clone, _) = fs.create(ROOT_INO, "clone");
    fs.write(from, 0, &[1; 8 * BLOCK as usize]);
    let whole = CloneRange { source_offset: 0, destination_offset: 0, length: 0 };
    assert_eq!(fs.reflink(source, clone, whole), Ok(8 * BLOCK));
    let pinned = pins.pin(&fs, source, Range::ALL);
    assert_eq!(pins.pin(&fs, clone, Range::ALL), pinned);
    fs.truncate(source, 0);
    assert_eq!(space(&fs).1, 8);
    fs.truncate(clone, 0);
    let (free, quarantined) = space(&fs);
    assert_eq!(quarantined, 8);
    pins.end(&fs, source, &pinned);
    assert_eq!(space(&fs), (free, 8), "the clone's pin still reaches them");
    pins.end(&fs, clone, &pinned);
    assert_eq!(space(&fs), (free + 8, 0));
    fs.core.set_coherence(Arc::new(NoMappings));
    fs.remount();
}
