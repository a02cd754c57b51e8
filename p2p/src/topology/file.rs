//! A topology as a JSON file. The format is described in `p2p/TOPOLOGY.md`.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use peerfs_blockdev::BusPlace;
use peerfs_blockdev::pci::PciError;
use serde::{Deserialize, Deserializer};

use super::ranges::without;
use super::report::ENDPOINTS_MAX;
use super::{
    Above, AccessControl, Bridge, Endpoint, Forwarding, HostBridge, Iommu, PciAddress, PortType, Source, Storage, Topology,
};

const FILE_BYTES_MAX: u64 = 1 << 20;
/// Of each kind but endpoints.
const PARTS_MAX: usize = 1024;

/// Why a topology cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file cannot be read.
    #[error("topology {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The machine's description in sysfs cannot be read.
    #[error(transparent)]
    Machine(#[from] PciError),
    /// Nothing tells where the aperture is on the bus.
    #[error("{address}: BAR {bar} has no {length} bytes at {offset:#x} in sysfs, so nothing tells where the aperture is on the bus", address = .0.address, bar = .0.bar, length = .0.length, offset = .0.offset)]
    NoSuchBar(BusPlace),
    /// The file is not of the documented form.
    #[error("topology {path}: {reason}; p2p/TOPOLOGY.md describes the format", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    host_bridges: Vec<HostDescription>,
    #[serde(default)]
    iommus: Vec<IommuDescription>,
    #[serde(default)]
    bridges: Vec<BridgeDescription>,
    endpoints: Vec<EndpointDescription>,
    storage: Option<StorageDescription>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostDescription {
    name: String,
    peer_to_peer: Forwarding,
    iommu: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IommuDescription {
    name: String,
    #[serde(default = "yes")]
    maps_peers: bool,
    ranges: Vec<RangeDescription>,
    #[serde(default)]
    reserved: Vec<RangeDescription>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeDescription {
    #[serde(deserialize_with = "number")]
    first: u64,
    #[serde(deserialize_with = "number")]
    last: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BridgeDescription {
    address: String,
    above: String,
    #[serde(default)]
    acs_redirect: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndpointDescription {
    address: String,
    above: String,
    #[serde(default)]
    name: String,
    #[serde(default = "all_bits")]
    dma_bits: u32,
    #[serde(default)]
    acs_redirect: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StorageDescription {
    address: String,
    aperture: ApertureDescription,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApertureDescription {
    #[serde(deserialize_with = "number")]
    bus_address: u64,
    #[serde(deserialize_with = "number")]
    bytes: u64,
    #[serde(default = "yes")]
    grantable: bool,
    #[serde(default = "yes")]
    writable: bool,
    #[serde(default = "yes")]
    atomic: bool,
}

fn yes() -> bool {
    true
}

fn all_bits() -> u32 {
    64
}

/// A JSON number, or a string with a decimal or hexadecimal one.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    let text = match Either::deserialize(deserializer)? {
        Either::Number(number) => return Ok(number),
        Either::Text(text) => text,
    };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no number: write 4096 or \"0x1000\"")))
}

impl Topology {
    /// Reads a description.
    ///
    /// # Errors
    /// The file cannot be read, or what is in it does not hold together; the message names the part.
    pub fn read(path: &Path) -> Result<Topology, TopologyError> {
        let unreadable = |source| TopologyError::Unreadable { path: path.to_owned(), source };
        let malformed = |reason| TopologyError::Malformed { path: path.to_owned(), reason };
        let mut text = String::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(malformed(format!("it is longer than {FILE_BYTES_MAX} bytes")));
        }
        Topology::parse(&text).map_err(malformed)
    }

    /// The topology that a JSON text describes, or what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Topology, String> {
        let description: Description = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let lengths = [description.host_bridges.len(), description.iommus.len(), description.bridges.len()];
        if lengths.iter().any(|length| *length > PARTS_MAX) || description.endpoints.len() > ENDPOINTS_MAX {
            return Err(format!("more than {ENDPOINTS_MAX} endpoints, or {PARTS_MAX} parts of another kind"));
        }
        let ranges = |iommu: &IommuDescription| iommu.ranges.len() + iommu.reserved.len();
        if description.iommus.iter().map(ranges).sum::<usize>() > PARTS_MAX {
            return Err(format!("the iommus have more than {PARTS_MAX} ranges"));
        }
        let iommus = description.iommus.into_iter().map(iommu).collect::<Result<Vec<_>, _>>()?;
        let translating = translating(&description.host_bridges, &iommus)?;
        let hosts: Vec<HostBridge> = description.host_bridges.into_iter().map(host).collect();
        let names = names(&hosts, &description.bridges, &description.endpoints)?;
        let bridges = bridges(description.bridges, &names)?;
        let mut endpoints = endpoints(description.endpoints, &names)?;
        for endpoint in endpoints.values_mut() {
            endpoint.iommu = translating[host_above(endpoint.above, &bridges)];
        }
        let storage = description.storage.map(|storage| self::storage(storage, &endpoints)).transpose()?;
        let undescribed = BTreeMap::new();
        Ok(Topology { source: Source::File, hosts, bridges, iommus, endpoints, storage, undescribed })
    }
}

fn address(text: &str) -> Result<PciAddress, String> {
    text.parse::<PciAddress>().map_err(|error| error.to_string())
}

fn iommu(description: IommuDescription) -> Result<Iommu, String> {
    let IommuDescription { name, maps_peers, ranges, reserved } = description;
    if let Some(range) = ranges.iter().chain(&reserved).find(|range| range.first > range.last) {
        return Err(format!("iommu {name}: a range ends at {:#x} before it begins at {:#x}", range.last, range.first));
    }
    let pairs = |ranges: Vec<RangeDescription>| ranges.into_iter().map(|range| (range.first, range.last)).collect::<Vec<_>>();
    let usable = without(pairs(ranges), &pairs(reserved));
    Ok(Iommu { name, maps_peers, usable })
}

fn host(HostDescription { name, peer_to_peer, .. }: HostDescription) -> HostBridge {
    HostBridge { name, forwards: peer_to_peer, about: String::new() }
}

/// For each host bridge the IOMMU that translates what comes up to it.
fn translating(hosts: &[HostDescription], iommus: &[Iommu]) -> Result<Vec<Option<usize>>, String> {
    let of_host = |host: &HostDescription| {
        let index = |wanted: &String| {
            let found = iommus.iter().position(|iommu| iommu.name == *wanted);
            found.ok_or_else(|| format!("host bridge {}: there is no iommu {wanted}", host.name))
        };
        host.iommu.as_ref().map(index).transpose()
    };
    hosts.iter().map(of_host).collect()
}

/// Index of the host bridge at the end of the way up, which is there.
fn host_above(mut above: Above, bridges: &[Bridge]) -> usize {
    loop {
        match above {
            Above::Host(host) => return host,
            Above::Bridge(bridge) => above = bridges[bridge].above,
        }
    }
}

fn access_control(redirects: bool) -> AccessControl {
    if redirects { AccessControl::Redirects } else { AccessControl::Direct }
}

/// What `above` may name. Endpoints are there to find a name that is used twice.
fn names(
    hosts: &[HostBridge],
    bridges: &[BridgeDescription],
    endpoints: &[EndpointDescription],
) -> Result<HashMap<String, Above>, String> {
    let mut names = HashMap::new();
    for (index, host) in hosts.iter().enumerate() {
        if names.insert(host.name.clone(), Above::Host(index)).is_some() {
            return Err(format!("{} is there twice", host.name));
        }
    }
    let mut taken = HashMap::new();
    for (index, bridge) in bridges.iter().enumerate() {
        taken.insert(address(&bridge.address)?, ());
        names.insert(address(&bridge.address)?.to_string(), Above::Bridge(index));
    }
    for endpoint in endpoints {
        taken.insert(address(&endpoint.address)?, ());
    }
    if taken.len() < bridges.len() + endpoints.len() {
        return Err("two devices have the same address".into());
    }
    Ok(names)
}

fn above(device: PciAddress, text: &str, names: &HashMap<String, Above>) -> Result<Above, String> {
    let canonical = text.parse::<PciAddress>().map_or_else(|_| text.to_owned(), |address| address.to_string());
    names.get(&canonical).copied().ok_or_else(|| format!("{device}: `above` names {text}, which is no host bridge and no bridge"))
}

fn bridges(descriptions: Vec<BridgeDescription>, names: &HashMap<String, Above>) -> Result<Vec<Bridge>, String> {
    let bridge = |description: BridgeDescription| {
        let address = address(&description.address)?;
        let above = above(address, &description.above, names)?;
        Ok(Bridge { address, above, port: PortType::Other, access_control: access_control(description.acs_redirect) })
    };
    let bridges = descriptions.into_iter().map(bridge).collect::<Result<Vec<_>, String>>()?;
    for bridge in &bridges {
        let mut at = bridge.above;
        let mut steps = 0;
        while let Above::Bridge(index) = at {
            steps += 1;
            if steps > bridges.len() {
                return Err(format!("{}: what is above it leads back to it, and to no host bridge", bridge.address));
            }
            at = bridges[index].above;
        }
    }
    Ok(bridges)
}

fn endpoints(
    descriptions: Vec<EndpointDescription>,
    names: &HashMap<String, Above>,
) -> Result<BTreeMap<PciAddress, Endpoint>, String> {
    let endpoint = |description: EndpointDescription| {
        let EndpointDescription { address: text, above: parent, name, dma_bits, acs_redirect } = description;
        let address = address(&text)?;
        if !(1..=64).contains(&dma_bits) {
            return Err(format!("{address}: {dma_bits} dma_bits; give 1 to 64"));
        }
        let above = above(address, &parent, names)?;
        let access_control = access_control(acs_redirect);
        Ok((address, Endpoint { name, above, dma_bits, access_control, iommu: None, is_of_interest: true }))
    };
    descriptions.into_iter().map(endpoint).collect()
}

fn storage(description: StorageDescription, endpoints: &BTreeMap<PciAddress, Endpoint>) -> Result<Storage, String> {
    let StorageDescription { address: text, aperture } = description;
    let address = address(&text)?;
    if !endpoints.contains_key(&address) {
        return Err(format!("the storage device {address} is none of the endpoints"));
    }
    let last = aperture.bytes.checked_sub(1).and_then(|length| aperture.bus_address.checked_add(length));
    let Some(last) = last else { return Err("the aperture is empty or reaches beyond 64 bits of address".into()) };
    let ApertureDescription { bus_address: first, grantable, writable, atomic, .. } = aperture;
    Ok(Storage { address, first, last, grantable, writable, atomic })
}
