//! Taking controllers and giving them back.

use crate::machine::{Machine, NVME, NVME_CLASS, OTHER};

#[test]
fn dropping_a_binding_restores_what_was() {
    let machine = Machine::usual();
    let before = machine.snapshot();
    let binding = machine.bind(NVME, false).expect("idle");
    assert_eq!(machine.driver(NVME).as_deref(), Some("vfio-pci"));
    assert_eq!((binding.group(), binding.former_driver(), binding.was_bound()), (7, Some("nvme"), false));
    assert_eq!(binding.address().to_string(), NVME);
    drop(binding);
    assert!(machine.snapshot() == before);
    machine.bind(NVME, false).expect("and again").restore().expect("restored");
    assert!(machine.snapshot() == before);
}

#[test]
fn a_former_override_and_the_lack_of_a_driver_are_restored() {
    for (driver, driver_override) in [(None, "(null)\n"), (None, "pci-stub\n"), (Some("pci-stub"), "pci-stub\n")] {
        let machine = Machine::empty();
        machine.function(NVME, NVME_CLASS, Some(7), driver);
        machine.put(&format!("sys/bus/pci/devices/{NVME}/driver_override"), driver_override);
        let before = machine.snapshot();
        let binding = machine.bind(NVME, true).expect("idle");
        assert_eq!(machine.driver(NVME).as_deref(), Some("vfio-pci"));
        binding.restore().expect("restored");
        assert!(machine.snapshot() == before, "{driver:?} {driver_override}");
    }
}

#[test]
fn what_is_reserved_is_used_by_one_after_the_other_and_then_given_back() {
    let machine = Machine::usual();
    let before = machine.snapshot();
    let reserved = machine.bind(NVME, false).expect("idle").reserve();
    for _ in 0..2 {
        let user = machine.bind(NVME, false).expect("not locked by the reservation");
        assert!(user.was_bound());
        machine.bind(NVME, false).expect_err("locked by its user");
    }
    assert_eq!(machine.driver(NVME).as_deref(), Some("vfio-pci"));
    drop(reserved);
    assert!(machine.snapshot() == before);
}

#[test]
fn what_was_on_vfio_stays_there() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, Some(7), Some("vfio-pci"));
    let binding = machine.bind(NVME, false).expect("on it already");
    assert!(binding.was_bound());
    binding.restore().expect("nothing to do");
    drop(machine.bind(NVME, false).expect("on it already"));
    assert_eq!(machine.driver(NVME).as_deref(), Some("vfio-pci"));
    assert!(machine.kernel.written().is_empty());
}

#[test]
fn what_is_kept_is_given_back_by_unbind() {
    let machine = Machine::usual();
    let before = machine.snapshot();
    machine.bind(NVME, false).expect("idle").keep();
    assert_eq!(machine.driver(NVME).as_deref(), Some("vfio-pci"));
    assert_eq!(machine.unbind(NVME).expect("nobody uses it").as_deref(), Some("nvme"));
    assert!(machine.snapshot() == before);
}

#[test]
fn the_kernel_may_find_no_driver() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, None, Some("vfio-pci"));
    machine.kernel.ignore_probes();
    assert_eq!(machine.unbind(NVME).expect("nobody uses it"), None);
    assert_eq!(machine.driver(NVME), None);
}

#[test]
fn nothing_of_an_unnamed_device_is_written() {
    let machine = Machine::usual();
    machine.function("0000:01:00.1", "0x020000", Some(7), None);
    let others = |machine: &Machine| -> Vec<_> {
        machine.snapshot().into_iter().filter(|(path, _)| !path.to_string_lossy().contains(NVME)).collect()
    };
    let before = others(&machine);
    machine.bind(NVME, false).expect("idle").restore().expect("restored");
    machine.bind(NVME, true).expect("idle").keep();
    machine.unbind(NVME).expect("nobody uses it");
    machine.kernel.refuse("drivers_probe");
    machine.bind(NVME, true).expect_err("a probe that fails");
    assert!(others(&machine) == before);

    let written = machine.kernel.written();
    assert!(!written.is_empty());
    let own = machine.path(&format!("sys/bus/pci/devices/{NVME}/driver_override"));
    for (path, value) in written {
        let bus = path.ends_with("drivers_probe") || path.ends_with("bind") || path.ends_with("unbind");
        assert!(path == own || (bus && value == NVME), "{value} was written to {}", path.display());
    }
    assert_eq!(machine.driver(OTHER).as_deref(), Some("nvme"));
}
