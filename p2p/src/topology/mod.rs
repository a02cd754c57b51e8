//! Which devices reach each other's memory without passing through main memory.
//!
//! A pure model of the PCI tree and of what stands in the way of a transfer
//! between two of its functions: access control (ACS), host bridges that do not
//! forward, address widths, IOMMUs. The machine's sysfs fills it
//! ([`Topology::of_machine`]), or a file ([`Topology::read`]).

mod file;
mod forwarding;
mod ranges;
mod remedies;
mod report;
mod route;
mod sysfs;

use std::collections::BTreeMap;

use peerfs_blockdev::ApertureInfo;
use peerfs_blockdev::pci::{AccessControl, PciAddress, PortType};

pub use file::TopologyError;
pub use report::{EndpointRecord, LeftOutRecord, PairRecord, RefusalRecord, Scope, StorageRecord, TopologyReport};
pub use route::{Refusal, Route, Through};

/// A validated tree: every link leads to something that exists, and up to a host bridge.
#[derive(Debug, PartialEq, Eq)]
pub struct Topology {
    source: Source,
    hosts: Vec<HostBridge>,
    bridges: Vec<Bridge>,
    iommus: Vec<Iommu>,
    endpoints: BTreeMap<PciAddress, Endpoint>,
    storage: Option<Storage>,
    /// Functions that could not be described, and why.
    undescribed: BTreeMap<PciAddress, String>,
}

/// Where a topology comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A file that describes it.
    File,
    /// The machine's sysfs.
    Sysfs,
}

/// Where requests enter and leave the root of a PCI tree.
#[derive(Debug, PartialEq, Eq)]
struct HostBridge {
    name: String,
    forwards: Forwarding,
    /// What it is, for people; may be empty.
    about: String,
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
#[derive(Debug, PartialEq, Eq)]
struct Bridge {
    address: PciAddress,
    above: Above,
    port: PortType,
    access_control: AccessControl,
}

/// A device function.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    name: String,
    above: Above,
    dma_bits: u32,
    access_control: AccessControl,
    /// Index of the IOMMU that translates what it asks for beyond its host bridge.
    iommu: Option<usize>,
    /// It is of a class that stores, computes or communicates.
    is_of_interest: bool,
}

/// What is above a bridge or endpoint: an index into the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Above {
    Host(usize),
    Bridge(usize),
}

/// What translates addresses of devices.
#[derive(Debug, PartialEq, Eq)]
struct Iommu {
    name: String,
    /// It maps memory of other devices.
    maps_peers: bool,
    /// Addresses that devices can be given: inclusive, sorted, apart from each other and from what is reserved.
    usable: Vec<(u64, u64)>,
}

/// The storage device and what is known of its aperture beyond what it says itself.
#[derive(Debug, PartialEq, Eq)]
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
    /// A machine of which nothing is known: nobody reaches anything.
    pub fn empty() -> Topology {
        Topology {
            source: Source::Sysfs,
            hosts: Vec::new(),
            bridges: Vec::new(),
            iommus: Vec::new(),
            endpoints: BTreeMap::new(),
            storage: None,
            undescribed: BTreeMap::new(),
        }
    }

    /// Where it comes from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The storage device, if it is in the tree.
    pub fn storage(&self) -> Option<PciAddress> {
        self.storage.as_ref().map(|storage| storage.address)
    }

    /// Endpoints in it.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

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
