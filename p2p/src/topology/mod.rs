//! Which devices reach each other's memory without passing through main memory.
//!
//! A pure model of the PCI tree and of what stands in the way of a transfer
//! between two of its functions: access control (ACS), host bridges that do not
//! forward, address widths, IOMMUs. A file fills it ([`Topology::read`]); where
//! the devices are real, sysfs holds the same facts.

mod file;
mod report;
mod route;

use std::collections::BTreeMap;

use peerfs_blockdev::ApertureInfo;
use peerfs_blockdev::pci::PciAddress;

pub use file::TopologyError;
pub use report::{EndpointRecord, PairRecord, RefusalRecord, StorageRecord, TopologyReport};
pub use route::{Refusal, Route, Through};

/// A validated tree: every link leads to something that exists, and up to a host bridge.
#[derive(Debug)]
pub struct Topology {
    hosts: Vec<HostBridge>,
    bridges: Vec<Bridge>,
    iommus: Vec<Iommu>,
    endpoints: BTreeMap<PciAddress, Endpoint>,
    storage: Option<Storage>,
}

/// Where requests enter and leave the root of a PCI tree.
#[derive(Debug)]
struct HostBridge {
    name: String,
    forwards: Forwarding,
    /// Index of the IOMMU that translates what comes up to it.
    iommu: Option<usize>,
}

/// Which peer-to-peer requests a host bridge lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Forwarding {
    /// None.
    No,
    /// Between devices below itself.
    Same,
    /// Also to devices below another host bridge that does.
    Any,
}

/// A root port, or a port of a switch.
#[derive(Debug)]
struct Bridge {
    address: PciAddress,
    above: Above,
    /// ACS sends peer-to-peer requests up instead of across.
    acs_redirect: bool,
}

/// A device function.
#[derive(Debug)]
struct Endpoint {
    name: String,
    above: Above,
    dma_bits: u32,
}

/// What is above a bridge or endpoint: an index into the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Above {
    Host(usize),
    Bridge(usize),
}

/// What translates addresses of devices.
#[derive(Debug)]
struct Iommu {
    name: String,
    /// It maps memory of other devices.
    maps_peers: bool,
    /// Addresses that devices can be given: inclusive, sorted, apart from each other and from what is reserved.
    usable: Vec<(u64, u64)>,
}

/// The storage device and what is known of its aperture beyond what it says itself.
#[derive(Debug)]
struct Storage {
    address: PciAddress,
    /// First and last byte of the aperture on the bus.
    first: u64,
    last: u64,
    /// The kernel has an object that hands aperture memory to a process and takes it back.
    grantable: bool,
    writable: bool,
    atomic: bool,
}

impl Topology {
    /// An aperture as the description limits it.
    pub fn limit(&self, info: ApertureInfo) -> ApertureInfo {
        match &self.storage {
            Some(storage) => {
                ApertureInfo { writable: info.writable && storage.writable, atomic: info.atomic && storage.atomic, ..info }
            }
            None => info,
        }
    }

    /// Memory of the aperture may be handed to processes.
    pub fn is_grantable(&self) -> bool {
        self.storage.as_ref().is_none_or(|storage| storage.grantable)
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests;
