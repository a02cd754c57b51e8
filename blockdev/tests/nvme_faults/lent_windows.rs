//! Windows in the memory that a controller lends, which loses its content at every reset.

use std::sync::Arc;

use peerfs_blockdev::{Aperture, BlockDeviceExt, Cmb, Run, Window, WindowSpec};
use peerfs_nvme_emulator::{Fault, FaultRule, Profile, Which};
use peerfs_nvme_spec::IoOpcode;

use crate::each_way;
use crate::nvme::{Rig, pattern};

const LENGTH: usize = 64 << 10;

fn aperture(rig: &Rig) -> Cmb {
    let memory = rig.device.controller().lend_memory().expect("lend").expect("there is some");
    Cmb::of_controller(Arc::new(rig.device.clone()), memory)
}

fn window(cmb: &Cmb) -> Arc<dyn Window> {
    let length = LENGTH as u64;
    let run = Run { window_offset: 0, device_offset: 0, length };
    cmb.open_window(WindowSpec { owner: 1, length, runs: vec![run], valid_length: length }).expect("a window")
}

/// Has the controller reset, by a request that goes past the window.
fn reset(rig: &Rig, fault: Fault) {
    rig.emulator.add_fault(FaultRule::once(Which::AnyIo, fault));
    let mut elsewhere = [0; 4096];
    rig.device.read_at(8 << 20, &mut elsewhere).expect("sent once more");
    assert_eq!(rig.recoveries(), 1);
}

fn read(cmb: &Cmb) -> Vec<u8> {
    let mut seen = vec![0; LENGTH];
    cmb.read_at(0, &mut seen).expect("read");
    seen
}

#[test]
fn after_a_reset_the_device_has_the_blocks() {
    each_way(|profile, settings| {
        for fault in [Fault::Fatal, Fault::Disable, Fault::PowerCut] {
            let rig =
                Rig::with(Profile { cmb_bytes: 1 << 20, write_cache: false, ..profile.clone() }, settings.clone()).expect("open");
            let cmb = aperture(&rig);
            let mut data = pattern(1, LENGTH);
            cmb.write_at(0, &data).expect("write");
            let first = window(&cmb);
            reset(&rig, fault.clone());
            let mut seen = vec![0; LENGTH];
            first.peer_read(0, &mut seen).expect_err("what is there is not the file's");
            // The first request that meets the lost window may be a write of part of it.
            cmb.write_at(4096, &[7; 4096]).expect("write");
            data[4096..8192].fill(7);
            assert!(read(&cmb) == data, "{fault:?}");
            assert_eq!(cmb.info().used_bytes, LENGTH as u64, "peers may have it until the cut");
            // The memory is as good as new, and the old window has no say in the blocks any more.
            let second = window(&cmb);
            first.write_back().expect("nothing was lost");
            drop(first);
            assert_eq!((cmb.info().used_bytes, cmb.info().windows), (LENGTH as u64, 1));
            second.set_writable();
            second.peer_write(0, &[9; 4096]).expect("store");
            data[..4096].fill(9);
            assert!(read(&cmb) == data, "{fault:?}");
            second.peer_read(0, &mut seen).expect("read");
            assert!(seen == data && read(&cmb) == data);
            drop((second, cmb));
            rig.finish();
        }
    });
}

#[test]
fn what_peers_stored_is_reported_as_lost_and_nothing_else_takes_its_place() {
    each_way(|profile, settings| {
        for read_first in [false, true] {
            let rig = Rig::with(Profile { cmb_bytes: 1 << 20, ..profile.clone() }, settings.clone()).expect("open");
            let cmb = aperture(&rig);
            let mut data = pattern(2, LENGTH);
            cmb.write_at(0, &data).expect("write");
            let window = window(&cmb);
            window.set_writable();
            window.peer_write(0, &[1; 4096]).expect("store");
            window.flush().expect("flush");
            data[..4096].fill(1);
            window.peer_write(8192, &[2; 4096]).expect("store");
            reset(&rig, Fault::Fatal);
            assert!(!read_first || read(&cmb) == data, "as of the last flush");
            window.write_back().expect_err("stores are lost");
            window.write_back().expect_err("whoever ended the window could only log it");
            window.write_back().expect("told twice");
            assert!(read(&cmb) == data, "as of the last flush");
            drop((window, cmb));
            rig.finish();
        }
    });
}

#[test]
fn a_window_that_a_reset_meets_while_it_is_filled_is_refused_or_right() {
    each_way(|profile, settings| {
        // Several commands fill it; those before the reset wrote to what is lost.
        let rig = Rig::with(Profile { cmb_bytes: 1 << 20, max_transfer: 2, ..profile }, settings).expect("open");
        let cmb = aperture(&rig);
        let data = pattern(3, LENGTH);
        cmb.write_at(0, &data).expect("write");
        rig.emulator.add_fault(FaultRule::once(Which::Io(IoOpcode::Read), Fault::Fatal).after(2));
        let length = LENGTH as u64;
        let run = Run { window_offset: 0, device_offset: 0, length };
        let spec = WindowSpec { owner: 1, length, runs: vec![run], valid_length: length };
        cmb.open_window(spec).map(drop).expect_err("the controller was reset meanwhile");
        assert_eq!((rig.recoveries(), cmb.info().windows, cmb.info().used_bytes), (1, 0, 0));
        assert!(read(&cmb) == data);
        let again = window(&cmb);
        let mut seen = vec![0; LENGTH];
        again.peer_read(0, &mut seen).expect("read");
        assert!(seen == data);
        drop((again, cmb));
        rig.finish();
    });
}
