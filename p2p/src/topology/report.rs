//! The distance matrix: every pair of devices, and what refuses it.

use serde::Serialize;

use super::{PciAddress, Refusal, Route, Through, Topology};

/// The state of a topology.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopologyReport {
    /// Endpoints, by address.
    pub endpoints: Vec<EndpointRecord>,
    /// The storage device, if it is in the tree.
    pub storage: Option<StorageRecord>,
    /// Every ordered pair of different endpoints.
    pub pairs: Vec<PairRecord>,
}

/// A device function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndpointRecord {
    /// PCI address.
    pub address: String,
    /// Its name; may be empty.
    pub name: String,
    /// Bits of address it can put out.
    pub dma_bits: u32,
}

/// The storage device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StorageRecord {
    /// PCI address.
    pub address: String,
    /// First byte of the aperture on the bus.
    pub aperture_first: u64,
    /// Last byte of the aperture on the bus.
    pub aperture_last: u64,
    /// It may be handed to processes.
    pub grantable: bool,
    /// A peer may write to it.
    pub writable: bool,
    /// A peer may use atomic operations on it.
    pub atomic: bool,
}

/// What the first device of a pair meets on its way to memory of the second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PairRecord {
    /// Who asks.
    pub from: String,
    /// Whose memory it is.
    pub to: String,
    /// Links passed; `None` when there is no way.
    pub distance: Option<u32>,
    /// Where the way turns: the address of a bridge, or host bridges.
    pub through: Option<String>,
    /// Everything that refuses. Address widths and the IOMMU are known for the storage device's aperture only.
    pub refusals: Vec<RefusalRecord>,
}

/// One thing that refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusalRecord {
    /// Name of the reason.
    pub reason: &'static str,
    /// What refuses.
    pub hop: String,
    /// Why, for people.
    pub why: String,
}

impl Topology {
    /// The distance matrix.
    pub fn report(&self) -> TopologyReport {
        let addresses: Vec<PciAddress> = self.endpoints.keys().copied().collect();
        let pairs = addresses.iter().flat_map(|from| addresses.iter().filter(move |to| *to != from).map(|to| (*from, *to)));
        TopologyReport {
            endpoints: self
                .endpoints
                .iter()
                .map(|(address, endpoint)| EndpointRecord {
                    address: address.to_string(),
                    name: endpoint.name.clone(),
                    dma_bits: endpoint.dma_bits,
                })
                .collect(),
            storage: self.storage.as_ref().map(|storage| StorageRecord {
                address: storage.address.to_string(),
                aperture_first: storage.first,
                aperture_last: storage.last,
                grantable: storage.grantable,
                writable: storage.writable,
                atomic: storage.atomic,
            }),
            pairs: pairs.map(|(from, to)| self.pair(from, to)).collect(),
        }
    }

    fn pair(&self, from: PciAddress, to: PciAddress) -> PairRecord {
        let route = self.route(from, to);
        let refusals = match &self.storage {
            Some(storage) if storage.address == to => self.refusals(from, 64),
            _ => route.clone().err().into_iter().collect(),
        };
        let (distance, through) = match route {
            Ok(Route { distance, through }) => (Some(distance), Some(turn(&through))),
            Err(_) => (None, None),
        };
        let refusals = refusals.into_iter().map(record).collect();
        PairRecord { from: from.to_string(), to: to.to_string(), distance, through, refusals }
    }
}

fn turn(through: &Through) -> String {
    match through {
        Through::Itself => "itself".into(),
        Through::Bridge(address) => address.to_string(),
        Through::Host { from, to } if from == to => from.clone(),
        Through::Host { from, to } => format!("{from}, {to}"),
    }
}

fn record(Refusal { reason, hop, why }: Refusal) -> RefusalRecord {
    RefusalRecord { reason: reason.name(), hop, why }
}
