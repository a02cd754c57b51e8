//! All functions of a machine, and how their buses hang together.
//!
//! A function's symbolic link in `bus/pci/devices` spells the way to it: the host bridge, then every bridge above. It is
//! read as text and never followed, so nothing in it can lead astray. Devices come and go while the tree is read: what
//! cannot be described is left out, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::config::{self, AccessControl, PortType};
use super::device::{hex, identifier};
use super::host::{link_name, malformed, names, text, text_if_there, unreadable};
use super::translation::{self, AddressSpace};
use super::{Host, PciAddress, PciError};

/// Functions looked at. Servers with every virtual function of their network cards have some thousands.
const FUNCTIONS_MAX: usize = 16 * 1024;

/// What is above a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parent {
    /// A host bridge, by its name: `pci0000:00`.
    Host(String),
    /// A bridge.
    Bridge(PciAddress),
}

/// A function in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeFunction {
    /// Where it is.
    pub address: PciAddress,
    /// What is above it.
    pub parent: Parent,
    /// Class, subclass and programming interface, a byte each.
    pub class: u32,
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub device: u16,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Bits of address that its driver has allowed; 32 where no driver has said anything.
    pub dma_bits: Option<u32>,
    /// What it is on PCI Express.
    pub port: PortType,
    /// Its access control.
    pub access_control: AccessControl,
    /// Where an IOMMU translates its addresses.
    pub translated: Option<AddressSpace>,
}

/// The functions of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// Those that are described. Every [`Parent::Bridge`] is one of them, and leads to a host bridge.
    pub functions: BTreeMap<PciAddress, TreeFunction>,
    /// Those that could not be described, and why.
    pub left_out: BTreeMap<PciAddress, String>,
}

impl Tree {
    /// Looks at every function; there are none where there is no PCI bus.
    ///
    /// # Errors
    /// [`PciError::Read`] if the list of devices cannot be read.
    pub fn read(host: &Host) -> Result<Self, PciError> {
        let mut tree = Tree::default();
        for address in names(&host.pci_bus().join("devices"))?.iter().filter_map(|name| name.parse().ok()).take(FUNCTIONS_MAX) {
            match TreeFunction::read(host, address) {
                Ok(function) => drop(tree.functions.insert(address, function)),
                Err(error) => drop(tree.left_out.insert(address, error.to_string())),
            }
        }
        tree.leave_out_strays();
        Ok(tree)
    }

    /// Functions whose way up does not lead to a host bridge.
    fn leave_out_strays(&mut self) {
        let rooted = self.rooted();
        let strays: Vec<PciAddress> = self.functions.keys().copied().filter(|address| !rooted.contains(address)).collect();
        for address in strays {
            self.functions.remove(&address);
            self.left_out.insert(address, "a bridge above it has gone, or could not be described".into());
        }
    }

    fn rooted(&self) -> BTreeSet<PciAddress> {
        let mut below: BTreeMap<PciAddress, Vec<PciAddress>> = BTreeMap::new();
        let mut found = Vec::new();
        for function in self.functions.values() {
            match &function.parent {
                Parent::Host(_) => found.push(function.address),
                Parent::Bridge(bridge) => below.entry(*bridge).or_default().push(function.address),
            }
        }
        let mut rooted = BTreeSet::new();
        while let Some(address) = found.pop() {
            rooted.insert(address);
            found.extend(below.remove(&address).into_iter().flatten());
        }
        rooted
    }
}

impl TreeFunction {
    fn read(host: &Host, address: PciAddress) -> Result<Self, PciError> {
        let directory = host.function(address);
        let class = directory.join("class");
        let registers = config::read(&directory.join("config"));
        let dma_bits = text_if_there(&directory.join("dma_mask_bits"))?;
        Ok(TreeFunction {
            address,
            parent: parent(host, address)?,
            class: hex(&class, &text(&class)?)?,
            vendor: identifier(&directory.join("vendor"))?,
            device: identifier(&directory.join("device"))?,
            driver: link_name(&directory.join("driver"))?,
            dma_bits: dma_bits.and_then(|bits| bits.parse().ok()).filter(|bits| (1..=64).contains(bits)),
            port: registers.port,
            access_control: registers.access_control,
            translated: translation::read(&directory)?,
        })
    }
}

/// The last host bridge on the way counts: controllers such as Intel's VMD have one of their own below a device.
fn parent(host: &Host, address: PciAddress) -> Result<Parent, PciError> {
    let path = host.function(address);
    let target = fs::read_link(&path).map_err(unreadable(&path))?;
    let mut above = None;
    for component in target.parent().into_iter().flat_map(|way| way.iter()).filter_map(|component| component.to_str()) {
        if is_host_bridge(component) {
            above = Some(Parent::Host(component.to_owned()));
        } else if let (Some(_), Ok(bridge)) = (&above, component.parse()) {
            above = Some(Parent::Bridge(bridge));
        }
    }
    above.ok_or_else(|| malformed(&path, &target.to_string_lossy()))
}

/// `pciDDDD:BB`.
fn is_host_bridge(component: &str) -> bool {
    let number = component.strip_prefix("pci").and_then(|number| number.split_once(':'));
    number.is_some_and(|(domain, bus)| {
        (4..=8).contains(&domain.len()) && bus.len() == 2 && [domain, bus].iter().all(|part| is_hex(part))
    })
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bridges_are_told_from_other_components() {
        assert!(["pci0000:00", "pci10000:e0"].iter().all(|name| is_host_bridge(name)));
        assert!(
            ["pci", "pci0000", "pci0000:0", "pci0000:000", "pcix000:00", "0000:00:00.0"].iter().all(|name| !is_host_bridge(name))
        );
    }
}
