//! The topology of a machine, from the tree of its PCI functions.

use std::collections::{BTreeMap, HashMap, HashSet};

use peerfs_blockdev::BusPlace;
use peerfs_blockdev::pci::{AddressSpace, Host, Parent, PciDevice, PortType, Tree, TreeFunction};

use super::forwarding::{of_first_device, processor_forwards};
use super::ranges::without;
use super::{Above, Bridge, Endpoint, Forwarding, HostBridge, Iommu, PciAddress, Source, Storage, Topology, TopologyError};

// Class codes (PCI Code and ID Assignment): class, and for some the subclass.
const STORAGE: u32 = 0x01;
const NETWORK: u32 = 0x02;
const DISPLAY: u32 = 0x03;
const BRIDGE: u32 = 0x06;
const PROCESSOR: u32 = 0x0b;
const ACCELERATOR: u32 = 0x12;
const NVM_STORAGE: u32 = 0x01_08;
const PCI_BRIDGES: [u32; 3] = [0x06_04, 0x06_07, 0x06_09];
/// Non-transparent bridges and switches of accelerators, which ask for memory as endpoints do.
const OTHER_BRIDGE: u32 = 0x06_80;

/// The driver that says nothing of a device's width: programs use it, and know.
const VFIO: &str = "vfio-pci";

impl Topology {
    /// Reads the machine's tree. `storage`: where the aperture is on the bus, if it is in a BAR.
    ///
    /// # Errors
    /// The list of devices cannot be read, or the BAR is not there.
    pub fn of_machine(host: &Host, storage: Option<BusPlace>) -> Result<Topology, TopologyError> {
        let tree = Tree::read(host)?;
        let storage = storage.map(|place| aperture(host, place)).transpose()?;
        let forwards_all = host.cpuinfo().is_some_and(|cpuinfo| processor_forwards(&cpuinfo));
        let mut topology = Builder::default().build(&tree, forwards_all);
        topology.storage = storage.filter(|storage| topology.endpoints.contains_key(&storage.address));
        topology.undescribed = tree.left_out;
        Ok(topology)
    }
}

/// A BAR's addresses for the processor are those on the bus, too: on x86 they are the same.
fn aperture(host: &Host, place: BusPlace) -> Result<Storage, TopologyError> {
    let device = PciDevice::read(host, place.address)?;
    let found = device.bars.iter().find(|bar| bar.index == place.bar).and_then(|bar| {
        let end = place.offset.checked_add(place.length).filter(|end| place.length > 0 && *end <= bar.bytes)?;
        Some((bar.start.checked_add(place.offset)?, bar.start.checked_add(end - 1)?))
    });
    let (first, last) = found.ok_or(TopologyError::NoSuchBar(place))?;
    // What else limits it, the aperture says itself.
    Ok(Storage { address: place.address, first, last, grantable: true, writable: true, atomic: true })
}

/// Parts found so far, and where they are in their lists.
#[derive(Default)]
struct Builder {
    bridge_index: HashMap<PciAddress, usize>,
    host_index: BTreeMap<String, usize>,
    iommu_index: BTreeMap<u32, usize>,
    iommus: Vec<Iommu>,
}

impl Builder {
    fn build(mut self, tree: &Tree, forwards_all: bool) -> Topology {
        let functions = || tree.functions.values();
        let mut hosts = Vec::new();
        // By address, so that the first function below each host bridge is the first device of its bus.
        for function in functions() {
            if let Parent::Host(name) = &function.parent
                && !self.host_index.contains_key(name)
            {
                self.host_index.insert(name.clone(), hosts.len());
                hosts.push(host_bridge(name, function, forwards_all));
            }
        }
        let parents: HashSet<PciAddress> = functions().filter_map(bridge_above).collect();
        let ports: Vec<&TreeFunction> =
            functions().filter(|function| is_port(function) || parents.contains(&function.address)).collect();
        self.bridge_index = ports.iter().enumerate().map(|(index, port)| (port.address, index)).collect();
        let bridges = ports.iter().filter_map(|port| self.bridge(port)).collect();
        let others = functions().filter(|function| !self.bridge_index.contains_key(&function.address) && is_endpoint(function));
        let endpoints: Vec<&TreeFunction> = others.collect();
        let endpoints = endpoints.into_iter().filter_map(|function| self.endpoint(function)).collect();
        Topology {
            source: Source::Sysfs,
            hosts,
            bridges,
            iommus: self.iommus,
            endpoints,
            storage: None,
            undescribed: BTreeMap::new(),
        }
    }

    fn above(&self, function: &TreeFunction) -> Option<Above> {
        match &function.parent {
            Parent::Host(name) => self.host_index.get(name).copied().map(Above::Host),
            Parent::Bridge(address) => self.bridge_index.get(address).copied().map(Above::Bridge),
        }
    }

    fn bridge(&self, port: &TreeFunction) -> Option<Bridge> {
        let above = self.above(port)?;
        Some(Bridge { address: port.address, above, port: port.port, access_control: port.access_control })
    }

    fn endpoint(&mut self, function: &TreeFunction) -> Option<(PciAddress, Endpoint)> {
        let above = self.above(function)?;
        let iommu = function.translated.as_ref().map(|space| self.iommu(space));
        let by_kernel = function.driver.as_deref().is_some_and(|driver| driver != VFIO);
        let dma_bits = function.dma_bits.filter(|_| by_kernel).unwrap_or(64);
        let is_of_interest = kind(function.class).is_some();
        let access_control = function.access_control;
        Some((function.address, Endpoint { name: name(function), above, dma_bits, access_control, iommu, is_of_interest }))
    }

    fn iommu(&mut self, space: &AddressSpace) -> usize {
        *self.iommu_index.entry(space.group).or_insert_with(|| {
            let name = format!("IOMMU group {}", space.group);
            self.iommus.push(Iommu { name, maps_peers: true, usable: without(vec![(0, u64::MAX)], &space.reserved) });
            self.iommus.len() - 1
        })
    }
}

fn bridge_above(function: &TreeFunction) -> Option<PciAddress> {
    match function.parent {
        Parent::Bridge(address) => Some(address),
        Parent::Host(_) => None,
    }
}

/// As the kernel judges: by the first device of the bus, if that is the bus's device 0 or a root port.
fn host_bridge(name: &str, first: &TreeFunction, forwards_all: bool) -> HostBridge {
    let speaks_for_it = first.address.is_device_zero() || first.port == PortType::RootPort;
    let forwards = match (forwards_all, speaks_for_it) {
        (true, _) => Forwarding::Any,
        (false, true) => of_first_device(first.vendor, first.device),
        (false, false) => Forwarding::No,
    };
    let about = format!("{:04x}:{:04x} at {}", first.vendor, first.device, first.address);
    HostBridge { name: name.to_owned(), forwards, about }
}

fn is_port(function: &TreeFunction) -> bool {
    PCI_BRIDGES.contains(&(function.class >> 8))
}

fn is_endpoint(function: &TreeFunction) -> bool {
    function.class >> 16 != BRIDGE || function.class >> 8 == OTHER_BRIDGE
}

/// What devices of the classes are that store, compute or communicate.
fn kind(class: u32) -> Option<&'static str> {
    match (class >> 8, class >> 16) {
        (NVM_STORAGE, _) => Some("non-volatile memory"),
        (_, STORAGE) => Some("storage"),
        (_, NETWORK) => Some("network"),
        (_, DISPLAY) => Some("display"),
        (_, PROCESSOR) => Some("processor"),
        (_, ACCELERATOR) => Some("accelerator"),
        _ => None,
    }
}

fn name(function: &TreeFunction) -> String {
    let kind = kind(function.class).map_or_else(|| format!("class {:04x}", function.class >> 8), str::to_owned);
    let driver = function.driver.as_ref().map_or_else(|| "no driver".to_owned(), |driver| format!("driver {driver}"));
    format!("{kind} {:04x}:{:04x}, {driver}", function.vendor, function.device)
}
