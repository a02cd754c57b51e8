//! The way between two devices, as the kernel's PCI peer-to-peer DMA code finds it.
//!
//! Below a common bridge requests go across and keep their bus addresses, unless
//! ACS on the way sends them up. What goes up passes through a host bridge, which
//! must forward it, and through its IOMMU.

use peerfs_abi::{Reason, ReasonSet};

use super::remedies::{self, Hop};
use super::{Above, AccessControl, Endpoint, Forwarding, Iommu, PciAddress, PortType, Topology};
use crate::api::CHUNK_BYTES;

/// How requests get from one device to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Through {
    /// It is the same function.
    Itself,
    /// Across this bridge, by bus address.
    Bridge(PciAddress),
    /// Up through the host bridges of the two; one if they share it.
    Host {
        /// Of the device that asks.
        from: String,
        /// Of the device that answers.
        to: String,
    },
}

/// A way that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Links between the two as the kernel counts them, to compare ways: a request that goes up passes more.
    pub distance: u32,
    /// Where it turns.
    pub through: Through,
}

/// Why there is no way, or why memory at its end cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `NoPeerPath`, `DmaMaskExceeded` or `IommuRejected`.
    pub reason: Reason,
    /// What refuses: an address, or the name of a host bridge or IOMMU.
    pub hop: String,
    /// Why, for people.
    pub why: String,
    /// What a person can do about it.
    pub remedy: String,
}

/// Which addresses the asking device has to put out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addressing {
    Bus,
    /// Index of the IOMMU.
    Iommu(usize),
}

impl Topology {
    /// The way from one endpoint to another.
    ///
    /// # Errors
    /// The hop that refuses.
    pub fn route(&self, from: PciAddress, to: PciAddress) -> Result<Route, Refusal> {
        let (a, b) = (self.known(from)?, self.known(to)?);
        if from == to {
            return Ok(Route { distance: 0, through: Through::Itself });
        }
        let (up_a, up_b) = (self.ancestors(a.above), self.ancestors(b.above));
        let common = up_a.bridges.iter().position(|bridge| up_b.bridges.contains(bridge));
        let Some(at_a) = common else {
            let distance = (up_a.bridges.len() + up_b.bridges.len() + 2) as u32;
            return self.through_hosts((up_a.host, up_b.host), distance, &[]);
        };
        let meeting = up_a.bridges[at_a];
        let at_b = up_b.bridges.iter().position(|bridge| *bridge == meeting).unwrap_or(0);
        let distance = (at_a + at_b + 2) as u32;
        let ports = up_a.bridges[..=at_a].iter().chain(&up_b.bridges[..at_b]).map(|bridge| &self.bridges[*bridge]);
        // The devices have access control of their own where they have several functions.
        let below = [(from, a.access_control), (to, b.access_control)];
        let hops = ports.map(|port| (port.address, port.access_control)).chain(below);
        let redirecting: Vec<Hop> = hops.filter(|hop| hop.1 != AccessControl::Direct).collect();
        if redirecting.is_empty() {
            return Ok(Route { distance, through: Through::Bridge(self.bridges[meeting].address) });
        }
        self.through_hosts((up_a.host, up_b.host), distance, &redirecting)
    }

    /// Everything that keeps this importer from the storage device's aperture; empty when it reaches it.
    /// `dma_bits`: what the importer says of itself; the narrower of it and the endpoint's counts.
    pub fn refusals(&self, importer: PciAddress, dma_bits: u32) -> Vec<Refusal> {
        let Some(storage) = &self.storage else {
            return vec![remedies::no_storage()];
        };
        let route = self.route(importer, storage.address);
        let mut refusals: Vec<Refusal> = route.as_ref().err().cloned().into_iter().collect();
        if let Some(endpoint) = self.endpoints.get(&importer) {
            let bits = dma_bits.min(endpoint.dma_bits);
            let addressing = self.addressing(endpoint, &route);
            refusals.extend(self.addresses(importer, bits, addressing, storage.last).err());
        }
        refusals
    }

    /// The reasons among [`Topology::refusals`].
    pub fn refusing_reasons(&self, importer: PciAddress, dma_bits: u32) -> ReasonSet {
        self.refusals(importer, dma_bits).iter().map(|refusal| refusal.reason).collect()
    }

    fn known(&self, address: PciAddress) -> Result<&Endpoint, Refusal> {
        self.endpoints.get(&address).ok_or_else(|| remedies::unknown_device(address, self.undescribed.get(&address)))
    }

    fn ancestors(&self, above: Above) -> Ancestors {
        let mut bridges = Vec::new();
        let mut at = above;
        loop {
            match at {
                Above::Host(host) => return Ancestors { bridges, host },
                Above::Bridge(bridge) => {
                    bridges.push(bridge);
                    at = self.bridges[bridge].above;
                }
            }
        }
    }

    /// `redirecting`: what sends the request up, where it could have gone across.
    fn through_hosts(&self, (from, to): (usize, usize), distance: u32, redirecting: &[Hop]) -> Result<Route, Refusal> {
        let (a, b) = (&self.hosts[from], &self.hosts[to]);
        let wanted = |forwards: Forwarding| if from == to { forwards != Forwarding::No } else { forwards == Forwarding::Any };
        match [a, b].into_iter().find(|host| !wanted(host.forwards)) {
            None => Ok(Route { distance, through: Through::Host { from: a.name.clone(), to: b.name.clone() } }),
            Some(host) if from != to => Err(remedies::between_hosts(a, b, host)),
            Some(host) => Err(match redirecting.first() {
                None => remedies::silent_host(host),
                Some(first) => remedies::redirected(*first, self.port(first.0), redirecting, host),
            }),
        }
    }

    /// What a bridge is on PCI Express.
    fn port(&self, address: PciAddress) -> PortType {
        self.bridges.iter().find(|bridge| bridge.address == address).map_or(PortType::Other, |bridge| bridge.port)
    }

    /// A way that is refused would have gone up.
    fn addressing(&self, endpoint: &Endpoint, route: &Result<Route, Refusal>) -> Addressing {
        if let Ok(Route { through: Through::Bridge(_) | Through::Itself, .. }) = route {
            return Addressing::Bus;
        }
        endpoint.iommu.map_or(Addressing::Bus, Addressing::Iommu)
    }

    /// The importer can put out addresses that lead to the aperture, which ends at `last` on the bus.
    fn addresses(&self, importer: PciAddress, bits: u32, addressing: Addressing, last: u64) -> Result<(), Refusal> {
        let mask = if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        match addressing {
            Addressing::Bus if last <= mask => Ok(()),
            Addressing::Bus => Err(remedies::narrow_for_bus(importer, bits, last)),
            Addressing::Iommu(index) => self.iommus[index].admits(importer, bits, mask),
        }
    }
}

/// What is above an endpoint: bridges from the nearest on, then the host bridge.
struct Ancestors {
    bridges: Vec<usize>,
    host: usize,
}

impl Iommu {
    fn admits(&self, importer: PciAddress, bits: u32, mask: u64) -> Result<(), Refusal> {
        let fits = |mask: u64| self.usable.iter().any(|range| holds_chunk(*range, mask));
        if !self.maps_peers {
            return Err(remedies::no_peers_mapped(&self.name));
        }
        if !fits(u64::MAX) {
            return Err(remedies::full_iommu(&self.name));
        }
        if !fits(mask) {
            return Err(remedies::narrow_for_iommu(importer, bits, &self.name));
        }
        Ok(())
    }
}

/// An aligned grant fits into the range below the mask. Both inclusive.
fn holds_chunk((first, last): (u64, u64), mask: u64) -> bool {
    let last = last.min(mask);
    first
        .checked_next_multiple_of(CHUNK_BYTES)
        .and_then(|start| start.checked_add(CHUNK_BYTES - 1))
        .is_some_and(|end| end <= last)
}
