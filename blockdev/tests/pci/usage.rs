//! What is found on namespaces, and what of it forbids taking a controller.

use std::fs;

use peerfs_blockdev::pci::{Finding, PciError, controllers, examine};
use peerfs_blockdev::{Content, VOLUME_MAGIC};

use crate::machine::{Machine, NVME, NVME_CLASS};

/// The machine's first controller is refused, for this reason only; by force it is taken.
fn refused_for(machine: &Machine, reason: &str) {
    let before = machine.snapshot();
    let error = machine.bind(NVME, false).expect_err(reason);
    let PciError::InUse { findings, .. } = &error else { panic!("{reason}: {error}") };
    assert_eq!(findings, reason);
    assert!(error.to_string().contains(NVME) && error.to_string().contains("--force"), "{error}");
    assert!(machine.snapshot() == before, "{reason}: something changed");
    assert!(machine.kernel.written().is_empty(), "{reason}: something was written");
    let forced = machine.bind(NVME, true).expect(reason);
    assert_eq!(machine.driver(NVME).as_deref(), Some("vfio-pci"));
    drop(forced);
    assert!(machine.snapshot() == before, "{reason}: something stays changed");
}

fn mounted(machine: &Machine, device: &str, source: &str, mount_point: &str) {
    let line = format!("40 30 {device} / {mount_point} rw shared:1 - ext4 {source} rw\n");
    machine.append("proc/self/mountinfo", &line);
}

fn with_content(offset: usize, bytes: &[u8]) -> Machine {
    let machine = Machine::usual();
    let mut content = fs::read(machine.path("dev/nvme0n1")).expect("there");
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
    machine.put("dev/nvme0n1", content);
    machine
}

#[test]
fn a_mounted_disk() {
    let machine = Machine::usual();
    mounted(&machine, "259:0", "/dev/disk/by-label/a", "/srv/my\\040data");
    machine.kernel.occupy(machine.path("dev/nvme0n1"));
    refused_for(&machine, "nvme0n1 is mounted at /srv/my data");
}

#[test]
fn a_mounted_partition() {
    let machine = Machine::usual();
    machine.partition("nvme0n1", "nvme0n1p1", "259:8");
    mounted(&machine, "259:8", "/dev/nvme0n1p1", "/boot");
    refused_for(&machine, "nvme0n1p1 is mounted at /boot; nvme0n1 has partitions (nvme0n1p1)");
}

#[test]
fn a_filesystem_on_several_devices_has_no_number_of_one() {
    let machine = Machine::usual();
    mounted(&machine, "0:44", "/dev/vda:/dev/nvme0n1", "/pool");
    refused_for(&machine, "nvme0n1 is mounted at /pool");
}

#[test]
fn mounts_of_others_do_not_matter() {
    let machine = Machine::usual();
    mounted(&machine, "259:1", "/dev/nvme1n1", "/other");
    mounted(&machine, "259:100", "/dev/nvme0n10", "/similar");
    machine.append("proc/swaps", "/dev/nvme1n1 partition 1 0 -2\n");
    machine.bind(NVME, false).expect("nothing of it is on this controller");
}

#[test]
fn a_namespace_mounted_by_another_path() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, Some(7), Some("nvme"));
    machine.controller(NVME, 3);
    machine.namespace(NVME, 3, "nvme0c3n1", "nvme0n1", "259:4");
    mounted(&machine, "259:4", "/dev/nvme0n1", "/shared");
    refused_for(&machine, "nvme0n1 is mounted at /shared");
}

#[test]
fn swap_space() {
    let machine = Machine::usual();
    machine.append("proc/swaps", "/dev/nvme0n1                            partition\t1024\t0\t-2\n");
    refused_for(&machine, "nvme0n1 is swap space in use");
}

#[test]
fn a_disk_and_a_partition_that_others_are_built_on() {
    let machine = Machine::usual();
    machine.put("sys/class/block/nvme0n1/holders/dm-0/dev", "253:0\n");
    refused_for(&machine, "nvme0n1 is part of dm-0");

    let machine = Machine::usual();
    machine.partition("nvme0n1", "nvme0n1p2", "259:8");
    machine.put("sys/class/block/nvme0n1p2/holders/md127/dev", "9:127\n");
    refused_for(&machine, "nvme0n1p2 is part of md127; nvme0n1 has partitions (nvme0n1p2)");
}

#[test]
fn a_disk_that_somebody_holds_open() {
    let machine = Machine::usual();
    machine.kernel.occupy(machine.path("dev/nvme0n1"));
    refused_for(&machine, "nvme0n1 is held open exclusively by a program or the kernel");
}

#[test]
fn tables_and_filesystems_that_the_kernel_has_not_looked_for() {
    for (offset, bytes, what) in [
        (510, &[0x55, 0xaa][..], "an MBR partition table or boot sector"),
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 filesystem"),
        (65600, b"_BHRfS_M", "a btrfs filesystem"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of an md RAID"),
    ] {
        refused_for(&with_content(offset, bytes), &format!("nvme0n1 holds {what}"));
    }
}

#[test]
fn a_disk_that_cannot_be_read_could_hold_anything() {
    let machine = Machine::usual();
    machine.remove("dev/nvme0n1");
    let error = machine.bind(NVME, false).expect_err("unknown content").to_string();
    assert!(error.contains("what nvme0n1 holds cannot be read (No such file"), "{error}");
    assert_eq!(error.matches("cannot be read").count(), 1, "{error}");
    machine.bind(NVME, true).expect("forced");
}

#[test]
fn a_driver_of_programs() {
    let machine = Machine::empty();
    machine.function(NVME, NVME_CLASS, Some(7), Some("uio_pci_generic"));
    refused_for(&machine, "driver uio_pci_generic has it, perhaps for a program");
}

#[test]
fn without_the_mount_table_nothing_is_taken() {
    let machine = Machine::usual();
    machine.remove("proc/self/mountinfo");
    let error = machine.bind(NVME, false).expect_err("no table");
    assert!(matches!(error, PciError::Read { .. }), "{error}");
    assert!(machine.kernel.written().is_empty());
}

#[test]
fn a_peerfs_volume_is_found_but_no_obstacle() {
    let machine = with_content(0, &VOLUME_MAGIC);
    let host = machine.host();
    let found = examine(&host, &controllers(&host).expect("sysfs")[0].namespaces[0]).expect("sysfs");
    assert_eq!(found, [Finding::Holds { block: "nvme0n1".into(), content: Content::Volume }]);
    machine.bind(NVME, false).expect("it is what controllers are taken for");
}
