//! What would be lost or torn away if a controller were taken from the kernel.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use super::host::{head, names, text};
use super::mounts::Mounts;
use super::{Controller, Host, Namespace, PciDevice, PciError};
use crate::signature::{Content, head_bytes, recognise};

/// The kernel's driver, which is safe to unbind where nothing was found.
const KERNEL_DRIVER: &str = "nvme";

/// Something found on a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A filesystem is mounted from it.
    Mounted {
        /// The disk or partition.
        block: String,
        /// Where.
        mount_point: String,
    },
    /// The kernel swaps to it.
    Swap {
        /// The disk or partition.
        block: String,
    },
    /// Another block device is built on it (device mapper, md, bcache).
    Holder {
        /// The disk or partition.
        block: String,
        /// The other block device.
        holder: String,
    },
    /// Somebody has it open exclusively, in whatever namespace.
    HeldOpen {
        /// The disk.
        block: String,
    },
    /// It has partitions.
    Partitions {
        /// The disk.
        block: String,
        /// The partitions.
        partitions: Vec<String>,
    },
    /// Its first sectors are known.
    Holds {
        /// The disk.
        block: String,
        /// What they belong to.
        content: Content,
    },
    /// Its first sectors cannot be read, so anything could be there.
    Unreadable {
        /// The disk.
        block: String,
        /// What the kernel answered.
        why: String,
    },
    /// A driver other than the kernel's has the controller, perhaps for a program.
    OtherDriver {
        /// The driver.
        driver: String,
    },
}

impl Finding {
    /// Taking the controller would lose something or tear it away. A peerfs volume is no such thing: it is what
    /// controllers are taken for, and who formats one looks at the device itself.
    pub fn forbids(&self) -> bool {
        !matches!(self, Finding::Holds { content: Content::Volume, .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Mounted { block, mount_point } => write!(f, "{block} is mounted at {mount_point}"),
            Finding::Swap { block } => write!(f, "{block} is swap space in use"),
            Finding::Holder { block, holder } => write!(f, "{block} is part of {holder}"),
            Finding::HeldOpen { block } => write!(f, "{block} is held open exclusively by a program or the kernel"),
            Finding::Partitions { block, partitions } => write!(f, "{block} has partitions ({})", partitions.join(" ")),
            Finding::Holds { block, content } => write!(f, "{block} holds {content}"),
            Finding::Unreadable { block, why } => write!(f, "what {block} holds cannot be read ({why})"),
            Finding::OtherDriver { driver } => write!(f, "driver {driver} has it, perhaps for a program"),
        }
    }
}

/// What is found on a namespace without disturbing anybody: all but [`Finding::HeldOpen`] and [`Finding::OtherDriver`].
///
/// # Errors
/// [`PciError::Read`] if sysfs or procfs is not as documented.
pub fn examine(host: &Host, namespace: &Namespace) -> Result<Vec<Finding>, PciError> {
    find(host, namespace, &Mounts::read(host)?)
}

fn find(host: &Host, namespace: &Namespace, mounts: &Mounts) -> Result<Vec<Finding>, PciError> {
    let mut findings = Vec::new();
    for block in std::iter::once(&namespace.block).chain(&namespace.partitions) {
        findings.extend(users(host, block, mounts)?);
    }
    let block = namespace.block.clone();
    if !namespace.partitions.is_empty() {
        findings.push(Finding::Partitions { block: block.clone(), partitions: namespace.partitions.clone() });
    }
    match head(&host.node(&block), head_bytes()) {
        Ok(head) => findings.extend(recognise(&head).map(|content| Finding::Holds { block, content })),
        Err(error) => findings.push(Finding::Unreadable { block, why: error.to_string() }),
    }
    Ok(findings)
}

/// Who uses this disk or partition.
fn users(host: &Host, block: &str, mounts: &Mounts) -> Result<Vec<Finding>, PciError> {
    let directory = host.block(block);
    let device = text(&directory.join("dev"))?;
    let named = |mount_point: &str| Finding::Mounted { block: block.into(), mount_point: mount_point.into() };
    let mut findings: Vec<Finding> = mounts.mount_points(block, &device).map(named).collect();
    if mounts.swaps_to(block) {
        findings.push(Finding::Swap { block: block.into() });
    }
    let holders = names(&directory.join("holders"))?;
    findings.extend(holders.into_iter().map(|holder| Finding::Holder { block: block.into(), holder }));
    Ok(findings)
}

/// Proves that taking the controller harms nobody. While the descriptors that this answers are open, nobody can mount
/// a namespace or build on it.
///
/// # Errors
/// [`PciError::InUse`] with everything that was found; [`PciError::Read`] if sysfs or procfs is not as documented.
pub(super) fn require_idle(host: &Host, device: &PciDevice) -> Result<Vec<OwnedFd>, PciError> {
    let mounts = Mounts::read(host)?;
    let mut findings = Vec::new();
    let mut claims = Vec::new();
    if let Some(driver) = device.driver.as_ref().filter(|driver| *driver != KERNEL_DRIVER) {
        findings.push(Finding::OtherDriver { driver: driver.clone() });
    }
    for namespace in Controller::of(host, device.clone())?.namespaces {
        let block = namespace.block.clone();
        let claimed = host.kernel.claim(&host.node(&block));
        let mut found = find(host, &namespace, &mounts)?;
        match claimed {
            Ok(claim) => claims.push(claim),
            Err(error) => found.extend(unclaimed(block, &error, &found)),
        }
        findings.extend(found.into_iter().filter(Finding::forbids));
    }
    if findings.is_empty() {
        return Ok(claims);
    }
    let findings: Vec<String> = findings.iter().map(Finding::to_string).collect();
    Err(PciError::InUse { address: device.address, findings: findings.join("; ") })
}

/// What it means that a disk cannot be claimed, if what was found besides does not explain it.
fn unclaimed(block: String, error: &io::Error, found: &[Finding]) -> Option<Finding> {
    let explained = |finding: &Finding| {
        matches!(finding, Finding::Mounted { .. } | Finding::Swap { .. } | Finding::Holder { .. } | Finding::Unreadable { .. })
    };
    if found.iter().any(explained) {
        None
    } else if error.kind() == io::ErrorKind::ResourceBusy {
        Some(Finding::HeldOpen { block })
    } else {
        Some(Finding::Unreadable { block, why: error.to_string() })
    }
}
