//! What is told of each refusal: which hop, why, and what to do.

use peerfs_abi::Reason;
use peerfs_blockdev::pci::{AccessControl, PciAddress, PortType};

use super::{HostBridge, Refusal};
use crate::api::CHUNK_BYTES;

const SWITCH: &str = "put both devices below one PCIe switch";

/// A function on the way and its access control.
pub(super) type Hop = (PciAddress, AccessControl);

pub(super) fn no_storage() -> Refusal {
    Refusal {
        reason: Reason::NoPeerPath,
        hop: "storage".into(),
        why: "the storage device is in no PCI tree, so nothing on a bus reaches its aperture directly".into(),
        remedy: "use a volume in the memory of an NVMe controller (nvme:BDF/ns1 with a CMB, or nvme:BDF/pmr), or describe the \
                 tree with -o topology=FILE"
            .into(),
    }
}

/// `undescribed`: it is there, but could not be described.
pub(super) fn unknown_device(address: PciAddress, undescribed: Option<&String>) -> Refusal {
    let (why, remedy) = match undescribed {
        Some(why) => (format!("it cannot be described: {why}"), "run peerfs as root, with sysfs mounted"),
        None => ("no device with this address is in the topology".to_owned(), "name a device that `lspci -D` shows"),
    };
    Refusal { reason: Reason::NoPeerPath, hop: address.to_string(), why, remedy: remedy.into() }
}

/// The devices share a host bridge only.
pub(super) fn silent_host(host: &HostBridge) -> Refusal {
    Refusal {
        reason: Reason::NoPeerPath,
        hop: host.name.clone(),
        why: format!("both devices hang off different root ports of {}, which forwards no peer-to-peer requests", named(host)),
        remedy: format!("{SWITCH}, or use a machine whose host bridge forwards them (p2p/TOPOLOGY.md lists those)"),
    }
}

/// The devices share no host bridge, and `refusing` is one of theirs.
pub(super) fn between_hosts(from: &HostBridge, to: &HostBridge, refusing: &HostBridge) -> Refusal {
    Refusal {
        reason: Reason::NoPeerPath,
        hop: refusing.name.clone(),
        why: format!(
            "the devices are below {} and {}, and {} forwards no peer-to-peer requests from or to another host bridge",
            from.name,
            to.name,
            named(refusing)
        ),
        remedy: format!(
            "{SWITCH}, or both below the same host bridge (processor socket) if it forwards requests (p2p/TOPOLOGY.md)"
        ),
    }
}

/// A common bridge would have turned the request across, if nothing had sent it up to a host bridge that does not forward.
pub(super) fn redirected((address, control): Hop, port: PortType, all: &[Hop], host: &HostBridge) -> Refusal {
    let what = match port {
        PortType::RootPort => "the root port ",
        PortType::UpstreamPort | PortType::DownstreamPort => "the switch port ",
        PortType::ConventionalBridge => "the bridge ",
        PortType::Other => "",
    };
    let up = format!("up to {}, which forwards no peer-to-peer requests", named(host));
    let (why, remedy) = match control {
        AccessControl::Unknown => (
            format!("whether ACS on {what}{address} redirects cannot be read, so it counts as sending requests {up}"),
            format!(
                "run peerfs as root; if that does not help, the kernel does not reach its extended registers (MMCONFIG); or {SWITCH} that shows them"
            ),
        ),
        AccessControl::Direct | AccessControl::Redirects => {
            (format!("ACS on {what}{address} sends requests {up}"), switch_off(all))
        }
    };
    Refusal { reason: Reason::NoPeerPath, hop: address.to_string(), why, remedy }
}

fn switch_off(all: &[Hop]) -> String {
    let redirecting = all.iter().filter(|hop| hop.1 == AccessControl::Redirects);
    let addresses: Vec<String> = redirecting.map(|hop| hop.0.to_string()).collect();
    let registers: Vec<String> = addresses.iter().map(|address| format!("setpci -s {address} ECAP_ACS+6.w=0:2c")).collect();
    format!(
        "disable ACS redirect on {}: boot with pci=disable_acs_redir={}, or until the next boot {}; the devices below are then no \
         longer kept apart from each other",
        addresses.join(" and "),
        addresses.join(";"),
        registers.join(" && ")
    )
}

pub(super) fn narrow_for_bus(importer: PciAddress, bits: u32, last: u64) -> Refusal {
    Refusal {
        reason: Reason::DmaMaskExceeded,
        hop: importer.to_string(),
        why: format!("it puts out {bits} bits of address, and the aperture ends at {last:#x} on the bus"),
        remedy: "use an importer with a wider DMA mask, or have the firmware place BARs lower (switch off \"above 4G decoding\")"
            .into(),
    }
}

pub(super) fn narrow_for_iommu(importer: PciAddress, bits: u32, iommu: &str) -> Refusal {
    Refusal {
        reason: Reason::DmaMaskExceeded,
        hop: importer.to_string(),
        why: format!("it puts out {bits} bits of address, below which {iommu} has no {CHUNK_BYTES} bytes to give"),
        remedy: "use an importer with a wider DMA mask".into(),
    }
}

pub(super) fn no_peers_mapped(iommu: &str) -> Refusal {
    Refusal {
        reason: Reason::IommuRejected,
        hop: iommu.to_owned(),
        why: "it does not map memory of other devices".into(),
        remedy: format!("{SWITCH}, where requests do not pass through it"),
    }
}

pub(super) fn full_iommu(iommu: &str) -> Refusal {
    Refusal {
        reason: Reason::IommuRejected,
        hop: iommu.to_owned(),
        why: format!("no {CHUNK_BYTES} bytes of its address space are free of reserved ranges"),
        remedy: format!("{SWITCH}, where requests do not pass through it"),
    }
}

fn named(host: &HostBridge) -> String {
    match host.about.as_str() {
        "" => host.name.clone(),
        about => format!("{} ({about})", host.name),
    }
}
