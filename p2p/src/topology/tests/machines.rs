//! Machines as their sysfs describes them: ways, distances, and the hop of every refusal.

use std::fs;
use std::os::unix::fs::symlink;

use peerfs_blockdev::BusPlace;
use proptest::prelude::*;

use super::machine::*;
use super::*;
use crate::topology::{Refusal, Scope, Source, TopologyError};

const BRIDGE: u32 = 0x06_04_00;
const HOST: u32 = 0x06_00_00;
const NVME: u32 = 0x01_08_02;
const GPU: u32 = 0x03_02_00;
const NIC: u32 = 0x02_00_00;
const USB: u32 = 0x0c_03_30;

const PORT: (u16, u16) = (0x8086, 0x1901);
const BROADCOM: (u16, u16) = (0x1000, 0xc030);
const SAMSUNG: (u16, u16) = (0x144d, 0xa80a);
const NVIDIA: (u16, u16) = (0x10de, 0x2330);
const MELLANOX: (u16, u16) = (0x15b3, 0x1021);

fn distance(topology: &Topology, from: &str, to: &str) -> Result<u32, Refusal> {
    topology.route(at(from), at(to)).map(|route| route.distance)
}

fn refused(topology: &Topology, from: &str, to: &str) -> Refusal {
    topology.route(at(from), at(to)).expect_err("refused")
}

/// A desktop: two root ports, a GPU below one and a drive below the other.
fn desktop(machine: &Machine, host_device: (u16, u16)) {
    machine.add("pci0000:00/0000:00:00.0", HOST, host_device, Express::Endpoint);
    machine.add("pci0000:00/0000:00:01.0", BRIDGE, PORT, Express::RootPort);
    machine.add("pci0000:00/0000:00:1d.0", BRIDGE, PORT, Express::RootPort);
    machine.add("pci0000:00/0000:00:14.0", USB, (0x8086, 0xa36d), Express::Endpoint);
    machine.add("pci0000:00/0000:00:01.0/0000:01:00.0", GPU, NVIDIA, Express::Endpoint).driver("nvidia", 47);
    machine.add("pci0000:00/0000:00:01.0/0000:01:00.1", 0x04_03_00, (0x10de, 0x10fa), Express::Endpoint);
    machine.add("pci0000:00/0000:00:1d.0/0000:02:00.0", NVME, SAMSUNG, Express::Endpoint).driver("vfio-pci", 32);
}

/// A switch below a root port, with a GPU, a drive and a NIC.
fn switch(machine: &Machine, acs_of_gpu: u16, acs_of_drive: u16) {
    let up = "pci0000:40/0000:40:01.1/0000:41:00.0";
    machine.add("pci0000:40/0000:40:00.0", HOST, (0x8086, 0x3e30), Express::Endpoint);
    machine.add("pci0000:40/0000:40:01.1", BRIDGE, PORT, Express::RootPort).acs(Express::RootPort, REDIRECT);
    machine.add(up, BRIDGE, BROADCOM, Express::Upstream);
    let port = |number: u8, acs: u16| {
        machine.add(&format!("{up}/0000:42:0{number}.0"), BRIDGE, BROADCOM, Express::Downstream).acs(Express::Downstream, acs);
    };
    port(0, acs_of_gpu);
    port(1, acs_of_drive);
    port(2, 0);
    machine.add(&format!("{up}/0000:42:00.0/0000:43:00.0"), GPU, NVIDIA, Express::Endpoint);
    machine.add(&format!("{up}/0000:42:01.0/0000:44:00.0"), NVME, SAMSUNG, Express::Endpoint);
    machine.add(&format!("{up}/0000:42:02.0/0000:45:00.0"), NIC, MELLANOX, Express::Endpoint);
}

/// Two sockets with a host bridge each.
fn sockets(machine: &Machine, first: (u16, u16)) {
    for (domain, root, below) in [("pci0000:17", "0000:17", "0000:18"), ("pci0000:d7", "0000:d7", "0000:d8")] {
        machine.add(&format!("{domain}/{root}:00.0"), BRIDGE, first, Express::RootPort);
        machine.add(&format!("{domain}/{root}:02.0"), BRIDGE, first, Express::RootPort);
        machine.add(&format!("{domain}/{root}:00.0/{below}:00.0"), NVME, SAMSUNG, Express::Endpoint);
        machine.add(&format!("{domain}/{root}:02.0/{below}:1f.0"), GPU, NVIDIA, Express::Endpoint);
    }
}

#[test]
fn a_desktop_does_not_forward_between_its_root_ports() {
    let machine = Machine::intel();
    desktop(&machine, (0x8086, 0x3e30));
    let topology = machine.topology("0000:02:00.0");
    let refusal = refused(&topology, "0000:01:00.0", "0000:02:00.0");
    assert_eq!((refusal.reason, refusal.hop.as_str()), (Reason::NoPeerPath, "pci0000:00"));
    assert!(refusal.why.contains("8086:3e30 at 0000:00:00.0"), "{}", refusal.why);
    assert!(refusal.remedy.contains("one PCIe switch"), "{}", refusal.remedy);
    assert_eq!(distance(&topology, "0000:01:00.0", "0000:01:00.1"), Ok(2), "functions of one device meet at its port");
    assert_eq!(topology.refusing_reasons(at("0000:01:00.0"), 64), ReasonSet::EMPTY.with(Reason::NoPeerPath));
}

#[test]
fn host_bridges_that_are_known_forward() {
    let machine = Machine::intel();
    desktop(&machine, (0x8086, 0x2f00));
    let topology = machine.topology("0000:02:00.0");
    assert_eq!(distance(&topology, "0000:01:00.0", "0000:02:00.0"), Ok(4));
    // The aperture lies above what the GPU's driver says it reaches only if it says less.
    assert_eq!(topology.refusing_reasons(at("0000:01:00.0"), 64), ReasonSet::EMPTY);
    assert_eq!(topology.refusing_reasons(at("0000:01:00.0"), 32), ReasonSet::EMPTY.with(Reason::DmaMaskExceeded));
    let report = topology.report(Scope::Usual);
    let storage = report.storage.expect("in the tree");
    assert_eq!((storage.aperture_first, storage.aperture_last), (BAR + (1 << 20), BAR + (65 << 20) - 1));
    let width = |address: &str| report.endpoints.iter().find(|found| found.address == address).map(|found| found.dma_bits);
    assert_eq!(width("0000:01:00.0"), Some(47), "what its driver says");
    assert_eq!(width("0000:02:00.0"), Some(64), "vfio-pci says nothing");
}

#[test]
fn below_a_switch_requests_go_across() {
    let machine = Machine::intel();
    switch(&machine, 0, 0);
    let topology = machine.topology("0000:44:00.0");
    let across = Route { distance: 4, through: Through::Bridge(at("0000:41:00.0")) };
    assert_eq!(topology.route(at("0000:43:00.0"), at("0000:44:00.0")), Ok(across), "the root port's ACS is above the turn");
    assert_eq!(topology.refusing_reasons(at("0000:43:00.0"), 64), ReasonSet::EMPTY);
}

#[test]
fn a_port_that_redirects_is_the_hop_that_refuses() {
    let machine = Machine::intel();
    switch(&machine, REDIRECT, REDIRECT);
    let topology = machine.topology("0000:44:00.0");
    let refusal = refused(&topology, "0000:43:00.0", "0000:44:00.0");
    assert_eq!((refusal.reason, refusal.hop.as_str()), (Reason::NoPeerPath, "0000:42:00.0"));
    assert!(refusal.why.starts_with("ACS on the switch port 0000:42:00.0 sends requests up to pci0000:40"), "{}", refusal.why);
    for part in ["pci=disable_acs_redir=0000:42:00.0;0000:42:01.0", "setpci -s 0000:42:01.0 ECAP_ACS+6.w=0:2c"] {
        assert!(refusal.remedy.contains(part), "{}", refusal.remedy);
    }
    assert_eq!(refused(&topology, "0000:45:00.0", "0000:44:00.0").hop, "0000:42:01.0", "also on the far side");
    assert_eq!(refused(&topology, "0000:45:00.0", "0000:43:00.0").hop, "0000:42:00.0");
}

#[test]
fn redirected_requests_pass_a_host_bridge_that_forwards() {
    let machine = Machine::new("AuthenticAMD", 25);
    switch(&machine, REDIRECT, 0);
    let host = Through::Host { from: "pci0000:40".into(), to: "pci0000:40".into() };
    let route = machine.topology("0000:44:00.0").route(at("0000:43:00.0"), at("0000:44:00.0"));
    assert_eq!(route, Ok(Route { distance: 4, through: host }), "the kernel counts to where they would have met");
}

#[test]
fn functions_have_access_control_of_their_own() {
    let machine = Machine::intel();
    machine.add("pci0000:00/0000:00:01.0", BRIDGE, PORT, Express::RootPort);
    let below = "pci0000:00/0000:00:01.0";
    machine.add(&format!("{below}/0000:01:00.0"), NIC, MELLANOX, Express::Endpoint).acs(Express::Endpoint, 0x04);
    machine.add(&format!("{below}/0000:01:00.1"), NVME, SAMSUNG, Express::Endpoint);
    assert_eq!(refused(&machine.topology("0000:01:00.1"), "0000:01:00.0", "0000:01:00.1").hop, "0000:01:00.0");
}

#[test]
fn what_an_ordinary_user_cannot_see_refuses_and_says_so() {
    for shown in [64, 256] {
        let machine = Machine::intel();
        switch(&machine, 0, 0);
        let path = machine.link("0000:42:00.0").join("config");
        fs::write(&path, &fs::read(&path).expect("there")[..shown]).expect("room");
        let topology = machine.topology("0000:44:00.0");
        let refusal = refused(&topology, "0000:43:00.0", "0000:44:00.0");
        assert_eq!((refusal.reason, refusal.hop.as_str()), (Reason::NoPeerPath, "0000:42:00.0"));
        assert!(refusal.why.contains("cannot be read") && refusal.remedy.contains("as root"), "{refusal:?}");
        assert_eq!(distance(&topology, "0000:45:00.0", "0000:44:00.0"), Ok(4), "others are known");
    }
}

#[test]
fn two_sockets_forward_to_each_other_if_both_are_known_to() {
    // (First root port, below one host bridge, between two.)
    for (device, same, between) in [(0x2030, true, true), (0x3c01, true, false), (0x1901, false, false)] {
        let machine = Machine::intel();
        sockets(&machine, (0x8086, device));
        let topology = machine.topology("0000:18:00.0");
        let way = |from: &str| topology.route(at(from), at("0000:18:00.0"));
        assert_eq!(way("0000:18:1f.0").is_ok(), same, "{device:04x}");
        match way("0000:d8:1f.0") {
            Ok(route) => assert!(between && route.distance == 4, "{device:04x}: {route:?}"),
            Err(refusal) => assert!(!between && refusal.hop == "pci0000:d7", "{device:04x}: {refusal:?}"),
        }
    }
}

#[test]
fn the_first_device_speaks_for_its_host_bridge_only_as_device_zero_or_root_port() {
    let machine = Machine::intel();
    machine.add("pci0000:80/0000:80:02.0", 0x08_80_00, (0x8086, 0x2020), Express::Endpoint);
    machine.add("pci0000:80/0000:80:03.0", NVME, SAMSUNG, Express::Endpoint);
    let topology = machine.topology("0000:80:03.0");
    assert_eq!(refused(&topology, "0000:80:02.0", "0000:80:03.0").hop, "pci0000:80");
}

#[test]
fn a_virtual_machine_forwards_as_its_processor_does() {
    let guest = |vendor: &str, family: u32| {
        let machine = Machine::new(vendor, family);
        machine.add("pci0000:00/0000:00:00.0", HOST, (0x8086, 0x29c0), Express::Endpoint);
        machine.add("pci0000:00/0000:00:04.0", NVME, (0x1b36, 0x0010), Express::Endpoint).group(
            3,
            "DMA",
            "0x00000000fee00000 0x00000000feefffff msi\n",
        );
        machine.add("pci0000:00/0000:00:05.0", NVME, (0x1b36, 0x0010), Express::Endpoint).group(
            4,
            "DMA",
            "0x0000000000000000 0xffffffffffdfffff reserved\n0xffffffffffe00001 0xffffffffffffffff reserved\n",
        );
        machine.topology("0000:00:04.0").route(at("0000:00:05.0"), at("0000:00:04.0")).map_err(|refusal| refusal.hop)
    };
    let through = Through::Host { from: "pci0000:00".into(), to: "pci0000:00".into() };
    assert_eq!(guest("AuthenticAMD", 23), Ok(Route { distance: 2, through }), "-cpu EPYC");
    assert_eq!(guest("GenuineIntel", 6), Err("pci0000:00".into()), "-cpu max on another machine");
    assert_eq!(guest("HygonGenuine", 24), Err("pci0000:00".into()));
}

#[test]
fn an_iommu_group_gives_what_is_not_reserved() {
    let low = "0x0000000000000000 0xffffffffffdfffff direct\n0xffffffffffe00001 0xffffffffffffffff reserved\n";
    let msi = "0x00000000fee00000 0x00000000feefffff msi\n";
    for (kind, reserved, dma_bits, expected) in [
        ("DMA", msi, 32, None),
        ("DMA-FQ", "", 20, Some(Reason::DmaMaskExceeded)),
        ("DMA", low, 64, Some(Reason::IommuRejected)),
        // Passed through: the address of the BAR itself counts, and what is reserved does not.
        ("identity", low, 64, None),
        ("identity", msi, 32, Some(Reason::DmaMaskExceeded)),
    ] {
        let machine = Machine::new("AuthenticAMD", 23);
        machine.add("pci0000:00/0000:00:04.0", NVME, SAMSUNG, Express::Endpoint);
        machine.add("pci0000:00/0000:00:05.0", GPU, NVIDIA, Express::Endpoint).group(9, kind, reserved);
        let refusals = machine.topology("0000:00:04.0").refusals(at("0000:00:05.0"), dma_bits);
        assert_eq!(refusals.first().map(|refusal| refusal.reason), expected, "{kind} {reserved} {dma_bits}");
    }
}

#[test]
fn controllers_with_a_bus_of_their_own_have_a_host_bridge_of_their_own() {
    let machine = Machine::intel();
    machine.add("pci0000:00/0000:00:00.0", HOST, (0x8086, 0x09a2), Express::Endpoint);
    let controller = "pci0000:00/0000:00:0e.0";
    machine.add(controller, 0x01_04_00, (0x8086, 0x467f), Express::Endpoint);
    machine.add(&format!("{controller}/pci10000:e0/10000:e0:06.0"), BRIDGE, PORT, Express::RootPort);
    machine.add(&format!("{controller}/pci10000:e0/10000:e0:06.0/10000:e1:00.0"), NVME, SAMSUNG, Express::Endpoint);
    let topology = machine.topology("10000:e1:00.0");
    assert_eq!(refused(&topology, "0000:00:0e.0", "10000:e1:00.0").hop, "pci10000:e0");
}

#[test]
fn a_report_leaves_out_what_is_of_no_interest_and_says_so() {
    let machine = Machine::intel();
    desktop(&machine, (0x8086, 0x2f00));
    let topology = machine.topology("0000:02:00.0");
    let usual = topology.report(Scope::Usual);
    let addresses: Vec<&str> = usual.endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect();
    assert_eq!(addresses, ["0000:01:00.0", "0000:02:00.0"]);
    assert_eq!((usual.source, usual.pairs.len(), usual.left_out.other_classes), (Source::Sysfs, 2, 2));
    let all = topology.report(Scope::All);
    assert_eq!((all.endpoints.len(), all.left_out.other_classes), (4, 0), "host bridges and ports are no endpoints");
    assert_eq!(usual.endpoints[0].name, "display 10de:2330, driver nvidia");
}

#[test]
fn a_big_server_is_described_and_its_report_is_not_too_long() {
    let machine = Machine::new("AuthenticAMD", 25);
    for bus in 1..=2 {
        machine.add(&format!("pci0000:00/0000:00:0{bus}.0"), BRIDGE, PORT, Express::RootPort);
        for number in 0..=255 {
            let address = format!("0000:{bus:02x}:{:02x}.{}", number / 8, number % 8);
            machine.add(&format!("pci0000:00/0000:00:0{bus}.0/{address}"), NIC, MELLANOX, Express::Endpoint);
        }
    }
    let storage = "0000:02:1f.7";
    let topology = machine.topology(storage);
    let report = topology.report(Scope::Usual);
    assert_eq!((report.endpoints.len(), report.left_out.beyond_limit), (256, 256));
    assert!(report.endpoints.iter().any(|endpoint| endpoint.address == storage), "the storage device is always there");
    assert_eq!(topology.refusing_reasons(at("0000:02:1f.6"), 64), ReasonSet::EMPTY, "who is left out is known all the same");
}

#[test]
fn what_cannot_be_described_is_left_out_with_the_reason() {
    let machine = Machine::intel();
    switch(&machine, 0, 0);
    let missing = |name: &str, file: &str| fs::remove_file(machine.link(name).join(file)).expect("there");
    missing("0000:45:00.0", "class");
    machine.put("sys/devices/pci0000:40/0000:40:05.0/class", "nonsense");
    symlink("../../../devices/pci0000:40/0000:40:05.0", machine.link("0000:40:05.0")).expect("room");
    // It has gone while its link was still there; two that lead to each other, and to themselves; one without a host bridge.
    symlink("../../../devices/pci0000:40/0000:40:06.0", machine.link("0000:40:06.0")).expect("room");
    symlink("0000:50:00.1", machine.link("0000:50:00.0")).expect("room");
    symlink("0000:50:00.0", machine.link("0000:50:00.1")).expect("room");
    fs::create_dir(machine.link("0000:51:00.0")).expect("room");
    let topology = machine.topology("0000:44:00.0");
    assert_eq!(distance(&topology, "0000:43:00.0", "0000:44:00.0"), Ok(4), "the others are described");
    let left_out = topology.report(Scope::All).left_out.undescribed;
    let expected = ["0000:40:05.0", "0000:40:06.0", "0000:45:00.0", "0000:50:00.0", "0000:50:00.1", "0000:51:00.0"];
    assert_eq!(left_out.keys().map(String::as_str).collect::<Vec<_>>(), expected, "{left_out:?}");
    let refusal = refused(&topology, "0000:45:00.0", "0000:44:00.0");
    assert!(refusal.why.contains("class"), "{}", refusal.why);
}

#[test]
fn a_way_up_that_leads_nowhere_or_in_a_circle_is_none() {
    let machine = Machine::intel();
    switch(&machine, 0, 0);
    fs::remove_file(machine.link("0000:41:00.0")).expect("there");
    machine.add("pci0000:60/0000:61:00.0/0000:62:00.0", BRIDGE, PORT, Express::Upstream);
    machine.add("pci0000:60/0000:62:00.0/0000:61:00.0", BRIDGE, PORT, Express::Upstream);
    let topology = Topology::of_machine(&machine.host(), None).expect("a topology");
    let left_out = topology.report(Scope::All).left_out.undescribed;
    assert_eq!(left_out.len(), 8, "{left_out:?}");
    assert!(left_out["0000:44:00.0"].contains("a bridge above it"), "{left_out:?}");
    assert_eq!(topology.endpoint_count(), 0);
}

#[test]
fn a_bar_that_is_not_there_is_an_error() {
    let machine = Machine::intel();
    switch(&machine, 0, 0);
    let place = |address: &str, bar, length| BusPlace { address: at(address), bar, offset: 0, length };
    let read = |place| Topology::of_machine(&machine.host(), Some(place));
    assert!(read(place("0000:44:00.0", 4, BAR_BYTES)).is_ok());
    for bad in [place("0000:44:00.0", 2, 4096), place("0000:44:00.0", 4, BAR_BYTES + 1), place("0000:44:00.0", 4, 0)] {
        assert!(matches!(read(bad), Err(TopologyError::NoSuchBar(_))), "{bad:?}");
    }
    assert!(matches!(read(place("0000:7f:00.0", 4, 4096)), Err(TopologyError::Machine(_))));
}

#[test]
fn a_machine_without_a_bus_has_an_empty_topology() {
    let machine = Machine::intel();
    fs::remove_dir_all(machine.path("sys")).expect("there");
    let topology = Topology::of_machine(&machine.host(), None).expect("nothing is no error");
    assert_eq!(topology, Topology::empty());
    assert!(topology.report(Scope::All).pairs.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a port's configuration space holds: a way across is found only if it says so.
    #[test]
    fn damaged_configuration_space_never_panics(edits in proptest::collection::vec((0usize..4096, any::<u8>()), 1..64), length in 0usize..=4096) {
        let machine = Machine::new("GenuineIntel", 6);
        switch(&machine, 0, 0);
        let path = machine.link("0000:42:00.0").join("config");
        let mut bytes = fs::read(&path).expect("there");
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        bytes.truncate(length);
        fs::write(&path, &bytes).expect("room");
        let topology = machine.topology("0000:44:00.0");
        match topology.route(at("0000:43:00.0"), at("0000:44:00.0")) {
            Ok(route) => prop_assert_eq!(route.distance, 4),
            Err(refusal) => prop_assert_eq!(refusal.hop, "0000:42:00.0"),
        }
        if length < 0x74 {
            prop_assert!(bytes.get(6).is_some_and(|status| status & 0x10 == 0) || topology.route(at("0000:43:00.0"), at("0000:44:00.0")).is_err());
        }
    }
}
