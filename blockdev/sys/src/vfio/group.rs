//! An IOMMU group: the devices that the IOMMU cannot tell apart.

use std::fs::{File, OpenOptions};
use std::path::Path;

use super::error::{VfioError, os};
use super::{abi, ioctl, sysfs};

/// An open group of a container. As long as it is open, no kernel driver gets a device of it.
#[derive(Debug)]
pub(super) struct Group {
    number: u32,
    file: File,
}

impl Group {
    /// Opens the group and brings it into a container.
    pub(super) fn join(number: u32, container: &File) -> Result<Group, VfioError> {
        let path = format!("/dev/vfio/{number}");
        // The standard library opens with O_CLOEXEC.
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => VfioError::GroupInUse(number),
            _ => os(format!("open {path}"))(error),
        })?;
        let status = ioctl::group_status(&file).map_err(os(format!("ask for the status of IOMMU group {number}")))?;
        if status & abi::GROUP_VIABLE == 0 {
            let devices = sysfs::foreign_devices(Path::new(sysfs::SYSFS), number);
            return Err(VfioError::NotViable { group: number, devices });
        }
        ioctl::set_container(&file, container).map_err(os(format!("bring IOMMU group {number} into a container")))?;
        Ok(Group { number, file })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// False once the kernel has taken its last device away (unbound or removed): the open group is then of no use.
    pub(super) fn is_alive(&self) -> bool {
        ioctl::group_status(&self.file).is_ok()
    }

    /// Opens a device of the group. The kernel enables it and resets it if it can.
    pub(super) fn device(&self, address: &str) -> Result<File, VfioError> {
        ioctl::device_fd(&self.file, address).map_err(os(format!("open PCI device {address} through VFIO")))
    }
}
