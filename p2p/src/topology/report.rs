//! The distance matrix: every pair of devices, and what refuses it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Endpoint, PciAddress, Refusal, Route, Source, Through, Topology};

/// The report has a line for each pair.
pub(super) const ENDPOINTS_MAX: usize = 256;
/// Functions that could not be described, named in a report.
const UNDESCRIBED_MAX: usize = 64;

/// Which endpoints a report is to have. At most 256; the storage device is always one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those that store, compute or communicate.
    Usual,
    /// All.
    All,
}

/// The state of a topology.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopologyReport {
    /// Where it comes from.
    pub source: Source,
    /// Endpoints, by address.
    pub endpoints: Vec<EndpointRecord>,
    /// The storage device, if it is in the tree.
    pub storage: Option<StorageRecord>,
    /// Every ordered pair of different endpoints.
    pub pairs: Vec<PairRecord>,
    /// What is not in the matrix.
    pub left_out: LeftOutRecord,
}

/// What a report does not have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOutRecord {
    /// Endpoints that were not asked for.
    pub other_classes: usize,
    /// Endpoints for which there was no room.
    pub beyond_limit: usize,
    /// Functions that could not be described, by address, and why; not more than 64 of them.
    pub undescribed: BTreeMap<String, String>,
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
    /// Links between the two as the kernel counts them; `None` when there is no way.
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
    /// What a person can do about it.
    pub remedy: String,
}

impl Topology {
    /// The distance matrix.
    pub fn report(&self, scope: Scope) -> TopologyReport {
        let (shown, left_out) = self.shown(scope);
        let pairs = shown.iter().flat_map(|from| shown.iter().filter(move |to| to.0 != from.0).map(|to| (*from.0, *to.0)));
        TopologyReport {
            source: self.source,
            endpoints: shown
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
            left_out,
        }
    }

    /// The endpoints of a report, by address, and what is left out.
    fn shown(&self, scope: Scope) -> (BTreeMap<PciAddress, &Endpoint>, LeftOutRecord) {
        let storage = self.storage();
        let wanted = |endpoint: &Endpoint| scope == Scope::All || endpoint.is_of_interest;
        let (first, others): (Vec<_>, Vec<_>) = self.endpoints.iter().partition(|(address, _)| storage == Some(**address));
        let candidates: Vec<_> = first.into_iter().chain(others.into_iter().filter(|(_, endpoint)| wanted(endpoint))).collect();
        let undescribed = self.undescribed.iter().take(UNDESCRIBED_MAX);
        let left_out = LeftOutRecord {
            other_classes: self.endpoints.len() - candidates.len(),
            beyond_limit: candidates.len().saturating_sub(ENDPOINTS_MAX),
            undescribed: undescribed.map(|(address, why)| (address.to_string(), why.clone())).collect(),
        };
        (candidates.into_iter().take(ENDPOINTS_MAX).map(|(address, endpoint)| (*address, endpoint)).collect(), left_out)
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

fn record(Refusal { reason, hop, why, remedy }: Refusal) -> RefusalRecord {
    RefusalRecord { reason: reason.name(), hop, why, remedy }
}
