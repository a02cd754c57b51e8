//! One process uses a controller.

use std::time::Duration;

use peerfs_blockdev::pci::{DeviceLock, PciError};

use crate::machine::{Machine, NVME, OTHER, at};

fn lock(machine: &Machine, address: &str) -> Result<DeviceLock, PciError> {
    DeviceLock::acquire(&machine.host(), at(address), Duration::from_millis(5))
}

#[test]
fn the_lock_is_exclusive_until_its_last_descriptor_is_closed() {
    let machine = Machine::usual();
    let held = lock(&machine, NVME).expect("free");
    assert!(matches!(lock(&machine, NVME), Err(PciError::Locked { .. })));
    lock(&machine, OTHER).expect("another controller");
    let shared = held.share().expect("descriptors");
    drop(held);
    assert!(matches!(lock(&machine, NVME), Err(PciError::Locked { .. })));
    drop(shared);
    lock(&machine, NVME).expect("free again");
}

#[test]
fn what_is_not_there_cannot_be_locked() {
    let machine = Machine::usual();
    assert!(matches!(lock(&machine, "0000:44:00.0"), Err(PciError::NoSuchDevice { .. })));
}

#[test]
fn a_locked_controller_is_neither_taken_nor_given_back() {
    let machine = Machine::usual();
    let held = lock(&machine, NVME).expect("free");
    assert!(matches!(machine.bind(NVME, true), Err(PciError::Locked { .. })));
    drop(held);
    let binding = machine.bind(NVME, false).expect("free");
    assert!(matches!(machine.unbind(NVME), Err(PciError::Locked { .. })));
    assert!(matches!(machine.bind(NVME, false), Err(PciError::Locked { .. })));
    let shared = binding.lock_fd().expect("descriptors");
    binding.keep();
    assert!(matches!(machine.unbind(NVME), Err(PciError::Locked { .. })));
    drop(shared);
    machine.unbind(NVME).expect("free again");
}
