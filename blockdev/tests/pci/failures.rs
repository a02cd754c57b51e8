//! Failures midway.

use peerfs_blockdev::pci::PciError;

use crate::machine::{Machine, NVME};

/// Binding fails, and afterwards everything is as it was.
fn fails_and_restores(machine: &Machine) -> PciError {
    let before = machine.snapshot();
    let error = machine.bind(NVME, false).expect_err("it must fail");
    assert!(!matches!(error, PciError::NotRestored { .. }), "{error}");
    assert!(machine.snapshot() == before, "{error}: something stays changed");
    error
}

#[test]
fn a_step_that_the_kernel_refuses() {
    for step in ["driver_override", "nvme/unbind", "drivers_probe"] {
        let machine = Machine::usual();
        machine.kernel.refuse(step);
        let error = fails_and_restores(&machine);
        assert!(matches!(&error, PciError::Write { path, .. } if path.ends_with(step)), "{error}");
        assert!(error.to_string().contains("root"), "{error}");
    }
}

#[test]
fn a_probe_without_effect() {
    let machine = Machine::usual();
    machine.kernel.ignore_probes();
    let error = fails_and_restores(&machine);
    assert!(matches!(&error, PciError::NotTaken { wanted, driver: None, .. } if wanted == "vfio-pci"), "{error}");
    assert!(error.to_string().contains("dmesg"), "{error}");
}

#[test]
fn both_failures_are_told_when_restoring_fails_too() {
    let machine = Machine::usual();
    machine.kernel.ignore_probes();
    machine.kernel.refuse("nvme/bind");
    let error = machine.bind(NVME, false).expect_err("it must fail");
    assert!(matches!(error, PciError::NotRestored { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("vfio-pci should have it") && said.contains("nvme/bind"), "{said}");
}

#[test]
fn restoring_does_not_wait_in_the_kernel_for_a_program() {
    let machine = Machine::usual();
    let binding = machine.bind(NVME, false).expect("idle");
    machine.kernel.occupy(machine.path("dev/vfio/7"));
    let written = machine.kernel.written().len();
    assert!(matches!(binding.restore(), Err(PciError::VfioInUse { group: 7, .. })));
    assert_eq!(machine.kernel.written().len(), written);
    assert_eq!(machine.driver(NVME).as_deref(), Some("vfio-pci"));
}

#[test]
fn restoring_tells_when_the_former_driver_does_not_come_back() {
    let machine = Machine::usual();
    let binding = machine.bind(NVME, false).expect("idle");
    machine.remove("sys/bus/pci/drivers/nvme");
    let error = binding.restore().expect_err("its driver is gone");
    assert!(matches!(&error, PciError::Write { path, .. } if path.ends_with("nvme/bind")), "{error}");
    assert_eq!(machine.driver(NVME), None);
}

#[test]
fn vfio_may_take_it_again() {
    let machine = Machine::usual();
    machine.kernel.prefer("vfio-pci");
    machine.bind(NVME, false).expect("idle").keep();
    let error = machine.unbind(NVME).expect_err("an identifier names it");
    assert!(matches!(error, PciError::TakenAgain { .. }), "{error}");
}
