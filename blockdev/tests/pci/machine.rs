//! A machine's sysfs, procfs and device nodes in a temporary directory.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use peerfs_blockdev::pci::{Binding, Host, PciAddress, PciError};
use tempfile::TempDir;

use crate::kernel::FakeKernel;

/// The controller that tests take.
pub const NVME: &str = "0000:01:00.0";
/// A second controller, in a group of its own.
pub const OTHER: &str = "0000:02:00.0";
pub const NVME_CLASS: &str = "0x010802";
const NO_WAIT: Duration = Duration::ZERO;
/// Registers, a CMB in BAR 2 and a PMR in BAR 4, as QEMU has them.
const RESOURCE: &str = "0x00000000febd0000 0x00000000febd3fff 0x0000000000140204
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000800000000 0x0000000803ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000810000000 0x000000081fffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
";

pub struct Machine {
    directory: TempDir,
    pub kernel: Arc<FakeKernel>,
}

impl Machine {
    /// With drivers and an empty bus.
    pub fn empty() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        for name in ["nvme", "vfio-pci", "e1000e", "pcieport", "pci-stub", "uio_pci_generic"] {
            fs::create_dir_all(root.join("sys/bus/pci/drivers").join(name)).expect("room");
        }
        for name in ["sys/bus/pci/devices", "sys/class/block", "proc/self", "dev/vfio"] {
            fs::create_dir_all(root.join(name)).expect("room");
        }
        let kernel = Arc::new(FakeKernel::new(root.join("sys/bus/pci")));
        let machine = Machine { directory, kernel };
        machine.append("proc/self/mountinfo", "22 27 0:21 / /proc rw,relatime - proc proc rw\n");
        machine.append("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        machine
    }

    /// With two controllers of the kernel's driver, one namespace each, on which nothing is found.
    pub fn usual() -> Self {
        let machine = Machine::empty();
        for (index, address) in [NVME, OTHER].into_iter().enumerate() {
            machine.function(address, NVME_CLASS, Some(7 + index as u32), Some("nvme"));
            machine.controller(address, index);
            machine.namespace(address, index, &format!("nvme{index}n1"), &format!("nvme{index}n1"), &format!("259:{index}"));
        }
        machine
    }

    pub fn host(&self) -> Host {
        Host::at(self.path("sys"), self.path("proc"), self.path("dev"), self.kernel.clone())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().expect("below the root")).expect("room");
        fs::write(self.path(name), content).expect("room");
    }

    pub fn append(&self, name: &str, text: &str) {
        let file = OpenOptions::new().append(true).create(true).open(self.path(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("room");
    }

    pub fn remove(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("there");
    }

    fn link(&self, name: &str, target: &Path) {
        fs::create_dir_all(self.path(name).parent().expect("below the root")).expect("room");
        symlink(target, self.path(name)).expect("room");
    }

    /// Adds a function to the bus.
    pub fn function(&self, address: &str, class: &str, group: Option<u32>, driver: Option<&str>) {
        let directory = format!("sys/devices/pci0000:00/{address}");
        for (name, content) in [
            ("class", format!("{class}\n")),
            ("vendor", "0x1b36\n".into()),
            ("device", "0x0010\n".into()),
            ("resource", RESOURCE.into()),
            ("config", "\0".repeat(64)),
            ("driver_override", "(null)\n".into()),
        ] {
            self.put(&format!("{directory}/{name}"), content);
        }
        self.link(&format!("sys/bus/pci/devices/{address}"), &self.path(&directory));
        if let Some(driver) = driver {
            self.link(&format!("{directory}/driver"), &self.path("sys/bus/pci/drivers").join(driver));
        }
        if let Some(group) = group {
            let groups = format!("sys/kernel/iommu_groups/{group}");
            self.link(&format!("{groups}/devices/{address}"), &self.path(&directory));
            self.link(&format!("{directory}/iommu_group"), &self.path(&groups));
            self.put(&format!("dev/vfio/{group}"), "");
        }
    }

    /// What the kernel's driver shows of a controller.
    pub fn controller(&self, address: &str, instance: usize) {
        let directory = format!("sys/devices/pci0000:00/{address}/nvme/nvme{instance}");
        self.put(&format!("{directory}/model"), "QEMU NVMe Ctrl                          \n");
        self.put(&format!("{directory}/serial"), format!("S{instance}                  \n"));
        fs::create_dir_all(self.path(&format!("{directory}/hwmon1"))).expect("room");
    }

    /// A namespace of 1 MiB of zeros, seen as `entry` at its controller.
    pub fn namespace(&self, address: &str, instance: usize, entry: &str, block: &str, device: &str) {
        let entry = format!("sys/devices/pci0000:00/{address}/nvme/nvme{instance}/{entry}");
        fs::create_dir_all(self.path(&entry)).expect("room");
        self.block(&format!("sys/class/block/{block}"), device);
        self.put(&format!("dev/{block}"), vec![0; 1 << 20]);
    }

    /// A partition of a block device.
    pub fn partition(&self, disk: &str, name: &str, device: &str) {
        self.block(&format!("sys/class/block/{disk}/{name}"), device);
        self.put(&format!("sys/class/block/{disk}/{name}/partition"), "1\n");
        self.link(&format!("sys/class/block/{name}"), &self.path(&format!("sys/class/block/{disk}/{name}")));
    }

    fn block(&self, directory: &str, device: &str) {
        self.put(&format!("{directory}/size"), "2048\n");
        self.put(&format!("{directory}/dev"), format!("{device}\n"));
        fs::create_dir_all(self.path(&format!("{directory}/holders"))).expect("room");
    }

    pub fn bind(&self, address: &str, force: bool) -> Result<Binding, PciError> {
        Binding::bind(&self.host(), at(address), force, NO_WAIT)
    }

    pub fn unbind(&self, address: &str) -> Result<Option<String>, PciError> {
        peerfs_blockdev::pci::unbind(&self.host(), at(address), NO_WAIT)
    }

    /// The driver of a function.
    pub fn driver(&self, address: &str) -> Option<String> {
        let target = fs::read_link(self.path(&format!("sys/bus/pci/devices/{address}/driver"))).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Everything in the tree: the content of files, the targets of links.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut seen = BTreeMap::new();
        collect(self.directory.path(), &mut seen);
        seen
    }
}

fn collect(directory: &Path, seen: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(directory).expect("there") {
        let path = entry.expect("there").path();
        if path.is_symlink() {
            let target = fs::read_link(&path).expect("a link");
            seen.insert(path, target.to_string_lossy().into_owned().into_bytes());
        } else if path.is_dir() {
            collect(&path, seen);
        } else {
            let content = fs::read(&path).expect("a file");
            seen.insert(path, content);
        }
    }
}

pub fn at(address: &str) -> PciAddress {
    address.parse().expect("an address")
}
