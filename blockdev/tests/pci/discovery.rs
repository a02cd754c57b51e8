//! Which controllers there are, and what they are like.

use peerfs_blockdev::pci::{Bar, BarKind, PciError, controllers};

use crate::machine::{Machine, NVME, NVME_CLASS, OTHER, at};

#[test]
fn controllers_are_listed_with_what_the_kernel_knows() {
    let machine = Machine::usual();
    machine.function("0000:00:1f.0", "0x060100", None, None);
    machine.function("0000:03:00.0", "0x010601", Some(9), None);
    let found = controllers(&machine.host()).expect("sysfs");
    let addresses: Vec<_> = found.iter().map(|controller| controller.device.address).collect();
    assert_eq!(addresses, [at(NVME), at(OTHER)]);
    let first = &found[0];
    assert_eq!((first.model.as_deref(), first.serial.as_deref()), (Some("QEMU NVMe Ctrl"), Some("S0")));
    assert_eq!((first.device.vendor, first.device.device, first.device.driver.as_deref()), (0x1b36, 0x10, Some("nvme")));
    let group = first.device.group.as_ref().expect("an IOMMU");
    assert_eq!((group.number, group.members.len(), group.members[0].name.as_str()), (7, 1, NVME));
    assert_eq!((first.namespaces[0].block.as_str(), first.namespaces[0].size_bytes), ("nvme0n1", 1 << 20));
}

#[test]
fn bars_have_sizes_and_kinds() {
    let machine = Machine::usual();
    let found = controllers(&machine.host()).expect("sysfs");
    let bars = &found[0].device.bars;
    let sizes: Vec<_> = bars.iter().map(|bar| (bar.index, bar.bytes, bar.may_be_aperture())).collect();
    assert_eq!(sizes, [(0, 16 << 10, false), (2, 64 << 20, true), (4, 256 << 20, true)]);
    let expected = Bar { index: 4, start: 0x8_1000_0000, bytes: 256 << 20, kind: BarKind::Memory64, prefetchable: true };
    assert_eq!(bars[2], expected);
}

#[test]
fn a_namespace_on_several_paths_is_named_by_its_common_disk() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, Some(7), Some("nvme"));
    machine.controller(NVME, 1);
    machine.namespace(NVME, 1, "nvme0c1n1", "nvme0n1", "259:4");
    machine.partition("nvme0n1", "nvme0n1p1", "259:5");
    let found = controllers(&machine.host()).expect("sysfs");
    assert_eq!(found[0].namespaces.len(), 1);
    assert_eq!(found[0].namespaces[0].block, "nvme0n1");
    assert_eq!(found[0].namespaces[0].partitions, ["nvme0n1p1"]);
}

#[test]
fn without_a_driver_there_are_no_namespaces() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, None, None);
    let found = controllers(&machine.host()).expect("sysfs");
    assert_eq!((found.len(), found[0].namespaces.len()), (1, 0));
    assert_eq!((&found[0].model, &found[0].device.driver, &found[0].device.group), (&None, &None, &None));
}

#[test]
fn a_machine_without_a_bus_has_no_controllers() {
    let machine = Machine::empty();
    assert_eq!(controllers(&machine.host()).expect("sysfs"), []);
    machine.remove("sys");
    assert_eq!(controllers(&machine.host()).expect("nothing"), []);
}

#[test]
fn what_is_not_understood_is_named() {
    for (name, content) in [("resource", "0x10 0x0 0x200\n"), ("class", "nvme\n"), ("vendor", "0x12345\n")] {
        let machine = Machine::usual();
        machine.put(&format!("sys/bus/pci/devices/{NVME}/{name}"), content);
        let error = controllers(&machine.host()).expect_err(name);
        assert!(matches!(&error, PciError::Malformed { path, .. } if path.ends_with(name)), "{error}");
    }
}
