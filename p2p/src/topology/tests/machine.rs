//! sysfs and procfs of a machine, as plain files in a temporary directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use peerfs_blockdev::BusPlace;
use peerfs_blockdev::pci::{Host, LinuxKernel};
use tempfile::TempDir;

use crate::topology::Topology;

/// A BAR 4 of 256 MiB.
pub const BAR: u64 = 0x38_0000_0000;
pub const BAR_BYTES: u64 = 256 << 20;
/// Request Redirect, Completion Redirect and Upstream Forwarding, as Linux sets them with an IOMMU.
pub const REDIRECT: u16 = 0x1D;

/// Device/Port Type of PCI Express.
#[derive(Clone, Copy)]
pub enum Express {
    Endpoint = 0x0,
    RootPort = 0x4,
    Upstream = 0x5,
    Downstream = 0x6,
}

pub struct Machine(TempDir);

/// A function that is being described.
pub struct Function<'a> {
    machine: &'a Machine,
    address: String,
}

impl Machine {
    /// With a processor and an empty bus.
    pub fn new(vendor: &str, family: u32) -> Self {
        let machine = Machine(tempfile::tempdir().expect("a temporary directory"));
        machine
            .put("proc/cpuinfo", format!("processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel name\t: x\n\n"));
        fs::create_dir_all(machine.path("sys/bus/pci/devices")).expect("room");
        machine
    }

    pub fn intel() -> Self {
        Machine::new("GenuineIntel", 6)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().expect("below the root")).expect("room");
        fs::write(self.path(name), content).expect("room");
    }

    /// `way`: what is above it from the host bridge on, and itself: `pci0000:00/0000:00:01.0/0000:01:00.0`.
    pub fn add(&self, way: &str, class: u32, (vendor, device): (u16, u16), express: Express) -> Function<'_> {
        let address = way.rsplit('/').next().expect("a name").to_owned();
        let directory = format!("sys/devices/{way}");
        self.put(&format!("{directory}/class"), format!("0x{class:06x}\n"));
        self.put(&format!("{directory}/vendor"), format!("0x{vendor:04x}\n"));
        self.put(&format!("{directory}/device"), format!("0x{device:04x}\n"));
        self.put(&format!("{directory}/dma_mask_bits"), "32\n");
        let unused = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let bar = format!("{BAR:#018x} {:#018x} 0x000000000014220c\n", BAR + BAR_BYTES - 1);
        self.put(&format!("{directory}/resource"), format!("{}{bar}{}", unused.repeat(4), unused.repeat(2)));
        symlink(format!("../../../devices/{way}"), self.link(&address)).expect("room");
        let function = Function { machine: self, address };
        function.config(config(express, None))
    }

    pub fn link(&self, address: &str) -> PathBuf {
        self.path("sys/bus/pci/devices").join(address)
    }

    pub fn host(&self) -> Host {
        Host::at(self.path("sys"), self.path("proc"), self.path("dev"), Arc::new(LinuxKernel))
    }

    /// Its topology around a volume in a BAR 4.
    pub fn topology(&self, storage: &str) -> Topology {
        let address = storage.parse().expect("an address");
        let place = BusPlace { address, bar: 4, offset: 1 << 20, length: 64 << 20 };
        Topology::of_machine(&self.host(), Some(place)).expect("a topology")
    }
}

impl Function<'_> {
    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.machine.link(&self.address).join(name), content).expect("room");
    }

    fn config(self, bytes: Vec<u8>) -> Self {
        self.put("config", bytes);
        self
    }

    /// With access control.
    pub fn acs(self, express: Express, control: u16) -> Self {
        self.config(config(express, Some(control)))
    }

    pub fn driver(self, name: &str, dma_bits: u32) -> Self {
        symlink(format!("../../../bus/pci/drivers/{name}"), self.machine.link(&self.address).join("driver")).expect("room");
        self.put("dma_mask_bits", format!("{dma_bits}\n"));
        self
    }

    /// In an IOMMU group of this type.
    pub fn group(self, number: u32, kind: &str, reserved: &str) -> Self {
        let group = format!("sys/kernel/iommu_groups/{number}");
        self.machine.put(&format!("{group}/type"), format!("{kind}\n"));
        self.machine.put(&format!("{group}/reserved_regions"), reserved);
        symlink(self.machine.path(&group), self.machine.link(&self.address).join("iommu_group")).expect("room");
        self
    }
}

/// Configuration space with a capability of PCI Express, and perhaps one of access control behind another.
fn config(express: Express, control: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |offset: usize, word: u32| bytes[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
    put(0x04, 0x0010_0406);
    put(0x34, 0x40);
    put(0x40, 0x7001);
    put(0x70, (express as u32) << 20 | 0x0002_0010);
    put(0x100, 0x0002_0001);
    if let Some(control) = control {
        put(0x100, 0x1482_0001);
        put(0x148, 0x0001_000D);
        put(0x14C, u32::from(control) << 16 | 0x5F);
    }
    bytes
}
