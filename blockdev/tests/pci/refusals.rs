//! What is refused before anything is changed.

use peerfs_blockdev::pci::PciError;

use crate::machine::{Machine, NVME, NVME_CLASS};

/// Binding is refused even by force, with these words, and nothing changes.
fn refused(machine: &Machine, words: &[&str]) -> PciError {
    let before = machine.snapshot();
    for force in [false, true] {
        let error = machine.bind(NVME, force).expect_err("refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)) && error.contains(NVME), "{error}");
    }
    assert!(machine.snapshot() == before && machine.kernel.written().is_empty());
    machine.bind(NVME, false).expect_err("refused")
}

#[test]
fn no_such_device() {
    let error = refused(&Machine::empty(), &["no such PCI device", "nvme list"]);
    assert!(matches!(error, PciError::NoSuchDevice { .. }));
}

#[test]
fn not_an_nvme_controller() {
    for class in ["0x020000", "0x010601", "0x010803"] {
        let machine = Machine::empty();
        machine.function(NVME, class, Some(7), None);
        assert!(matches!(refused(&machine, &["no NVMe controller", &class[2..]]), PciError::NotNvme { .. }));
        assert!(matches!(machine.unbind(NVME), Err(PciError::NotNvme { .. })));
    }
}

#[test]
fn no_iommu() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, None, Some("nvme"));
    let error = refused(&machine, &["intel_iommu=on", "amd_iommu", "noiommu"]);
    assert!(matches!(error, PciError::NoIommu { .. }));
}

#[test]
fn a_group_that_vfio_made_up() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, Some(0), Some("vfio-pci"));
    machine.put("sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
    assert!(matches!(refused(&machine, &["noiommu"]), PciError::NoIommu { .. }));
}

#[test]
fn no_vfio_driver() {
    let machine = Machine::usual();
    machine.remove("sys/bus/pci/drivers/vfio-pci");
    assert!(matches!(refused(&machine, &["modprobe vfio-pci"]), PciError::NoVfio { .. }));
}

#[test]
fn a_group_with_others_whose_drivers_do_dma() {
    let machine = Machine::usual();
    machine.function("0000:01:00.1", "0x020000", Some(7), Some("e1000e"));
    machine.function("0000:00:01.0", "0x060400", Some(7), Some("pcieport"));
    let error = refused(&machine, &["group 7", "0000:01:00.1 (driver e1000e)"]);
    assert!(matches!(error, PciError::GroupShared { group: 7, .. }));
    assert!(!error.to_string().contains("pcieport"), "{error}");
}

#[test]
fn a_group_with_others_that_vfio_accepts() {
    let machine = Machine::usual();
    for (function, driver) in [("1", None), ("2", Some("pci-stub")), ("3", Some("vfio-pci")), ("4", Some("pcieport"))] {
        machine.function(&format!("0000:01:00.{function}"), "0x020000", Some(7), driver);
    }
    machine.bind(NVME, false).expect("accepted");
}

#[test]
fn a_group_that_another_program_uses() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, Some(7), Some("vfio-pci"));
    machine.kernel.occupy(machine.path("dev/vfio/7"));
    assert!(matches!(refused(&machine, &["/dev/vfio/7"]), PciError::VfioInUse { .. }));
    assert!(matches!(machine.unbind(NVME), Err(PciError::VfioInUse { .. })));
    assert_eq!(machine.driver(NVME).as_deref(), Some("vfio-pci"));
}

#[test]
fn only_what_is_on_vfio_is_given_back() {
    let machine = Machine::usual();
    let error = machine.unbind(NVME).expect_err("on nvme");
    assert!(matches!(&error, PciError::NotOnVfio { driver: Some(driver), .. } if driver == "nvme"), "{error}");
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, Some(7), None);
    let error = machine.unbind(NVME).expect_err("no driver").to_string();
    assert!(error.contains("no driver has it"), "{error}");
    assert!(machine.kernel.written().is_empty());
}
