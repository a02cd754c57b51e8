//! Commands that fail.

use peerfs_blockdev::{BlockDevice, BlockDeviceExt, DeviceEvent};
use peerfs_nvme_emulator::{Blocked, Fault, FaultRule, Profile, Which};
use peerfs_nvme_spec::{IoOpcode, Status};

use crate::each_way;
use crate::nvme::{Rig, inline, pattern, settings};

/// Do not retry.
fn finally(status: Status) -> Fault {
    Fault::Status(Status(status.0 | 1 << 14))
}

fn errno(answer: Result<(), peerfs_blockdev::DeviceError>) -> i32 {
    answer.map_or_else(|error| error.errno(), |()| 0)
}

#[test]
fn a_media_error_is_told_with_its_range_and_nothing_else_suffers() {
    each_way(|profile, settings| {
        let rig = Rig::with(profile, settings).expect("open");
        rig.device.write_at(0, &pattern(1, 128 << 10)).expect("write");
        rig.emulator.add_fault(FaultRule::always(Which::Blocks(10..11), Fault::Status(Status::UNRECOVERED_READ_ERROR)));
        let mut back = vec![0; 8192];
        assert_eq!(errno(rig.device.read_at(9 * 4096, &mut back)), libc::EIO);
        assert_eq!(rig.events(), [DeviceEvent::MediaError { offset: 9 * 4096, length: 8192 }]);
        assert_eq!(rig.emulator.counts().io[&(IoOpcode::Read as u8)], 1, "lost is lost: not sent again");
        rig.device.read_at(11 * 4096, &mut back).expect("the next block");
        assert_eq!(back, pattern(1, 128 << 10)[11 * 4096..13 * 4096]);
        assert_eq!(rig.recoveries(), 0);
        rig.finish();
    });
}

#[test]
fn a_write_fault_is_a_media_error() {
    let rig = Rig::new(inline());
    rig.emulator.add_fault(FaultRule::once(Which::Io(IoOpcode::Write), Fault::Status(Status::WRITE_FAULT)));
    assert_eq!(errno(rig.device.write_at(4096, &[1; 4096])), libc::EIO);
    assert_eq!(rig.events(), [DeviceEvent::MediaError { offset: 4096, length: 4096 }]);
    rig.finish();
}

#[test]
fn passing_errors_are_tried_again_and_final_ones_are_not() {
    each_way(|profile, settings| {
        let rig = Rig::with(profile, settings).expect("open");
        let read = Which::Io(IoOpcode::Read);
        let mut back = [0; 4096];
        for status in [Status::INTERNAL_ERROR, Status::NAMESPACE_NOT_READY, Status::ABORTED_BY_QUEUE_DELETION] {
            let before = rig.emulator.counts().io.get(&2).copied().unwrap_or(0);
            rig.emulator.add_fault(FaultRule::once(read.clone(), Fault::Status(status)).times(3));
            rig.device.read_at(0, &mut back).expect("the fourth time");
            assert_eq!(rig.emulator.counts().io[&2] - before, 4);
            rig.emulator.add_fault(FaultRule::once(read.clone(), finally(status)));
            assert_eq!(errno(rig.device.read_at(0, &mut back)), libc::EIO);
            assert_eq!(rig.emulator.counts().io[&2] - before, 5);
        }
        rig.emulator.add_fault(FaultRule::always(read, Fault::Status(Status::INTERNAL_ERROR)));
        assert_eq!(errno(rig.device.read_at(0, &mut back)), libc::EIO, "there is an end to it");
        assert_eq!((rig.recoveries(), rig.events()), (0, Vec::new()));
        rig.finish();
    });
}

#[test]
fn the_error_number_says_what_the_controller_said() {
    let rig = Rig::new(inline());
    let cases = [
        (Status::CAPACITY_EXCEEDED, libc::ENOSPC),
        (Status::WRITE_PROTECTED, libc::EROFS),
        (Status::INVALID_OPCODE, libc::EOPNOTSUPP),
        (Status::DATA_TRANSFER_ERROR, libc::EIO),
        (Status(0x7FF), libc::EIO),
    ];
    for (status, wanted) in cases {
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, finally(status)));
        assert_eq!(errno(rig.device.write_at(0, &[1; 4096])), wanted, "{status}");
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, finally(status)));
        assert_eq!(errno(rig.device.flush()), wanted, "{status}");
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, finally(status)));
        assert_eq!(errno(rig.device.discard(0, 4096)), wanted, "{status}");
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, finally(status)));
        assert_eq!(errno(rig.device.write_zeroes(0, 4096)), wanted, "{status}");
    }
    assert_eq!(rig.events(), []);
    rig.finish();
}

#[test]
fn one_failed_command_fails_a_request_of_many_after_all_have_ended() {
    each_way(|profile, settings| {
        let rig = Rig::with(Profile { max_transfer: 1, ..profile }, settings).expect("open");
        rig.emulator.add_fault(FaultRule::once(Which::Blocks(20..21), finally(Status::INTERNAL_ERROR)));
        assert_eq!(errno(rig.device.write_at(0, &pattern(1, 1 << 20))), libc::EIO);
        assert_eq!(rig.emulator.counts().io[&1], 128, "the others are not given up for it");
        rig.device.write_at(0, &pattern(2, 1 << 20)).expect("the buffer came back and is whole");
        assert_eq!(rig.emulator.block(20), pattern(2, 1 << 20)[20 * 4096..21 * 4096]);
        rig.finish();
    });
}

#[test]
fn a_page_list_that_cannot_be_read_is_an_error() {
    let rig = Rig::new(inline());
    rig.emulator.add_fault(FaultRule::once(Which::Io(IoOpcode::Read), Fault::ListFault));
    assert_eq!(errno(rig.device.read_at(0, &mut vec![0; 64 << 10])), libc::EIO);
    rig.device.read_at(0, &mut vec![0; 64 << 10]).expect("the next one");
    rig.finish();
}

#[test]
fn optional_commands_that_are_refused_are_errors() {
    let rig = Rig::new(inline());
    rig.emulator.change(|profile| (profile.write_zeroes, profile.dataset_management) = (false, false));
    assert_eq!(errno(rig.device.write_zeroes(0, 4096)), libc::EOPNOTSUPP);
    assert_eq!(errno(rig.device.discard(0, 4096)), libc::EOPNOTSUPP);
    rig.finish();
}

#[test]
fn data_that_is_blocked_silently_touches_no_memory() {
    let rig = Rig::with(Profile { blocked: Blocked::Silent, ..inline() }, settings()).expect("open");
    rig.device.write_at(0, &pattern(1, 8192)).expect("write");
    let emulator = rig.emulator.clone();
    let buf = rig.device.buffer(8192);
    peerfs_blockdev::nvme::Port::sever(&*emulator);
    // Its queues are out of reach as well, so nothing can succeed any more.
    assert_eq!(errno(rig.device.submit(peerfs_blockdev::Io::Read { offset: 0, buf }).wait().map(drop)), libc::EIO);
    assert_eq!(rig.events(), [DeviceEvent::Removed]);
    rig.finish();
}
