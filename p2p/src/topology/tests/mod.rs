mod machine;
mod machines;

use peerfs_abi::{Reason, ReasonSet};

use super::*;

const FIXTURE: &str = include_str!("../../../topology-example.json");

fn topology() -> Topology {
    Topology::parse(FIXTURE).expect("the fixture holds together")
}

fn at(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

const STORAGE: &str = "0000:43:00.0";

fn reasons(importer: &str, dma_bits: u32) -> Vec<Reason> {
    topology().refusing_reasons(at(importer), dma_bits).iter().collect()
}

#[test]
fn ways_follow_the_tree() {
    let topology = topology();
    let route = |from, to| topology.route(at(from), at(to));
    let across = Through::Bridge(at("0000:41:00.0"));
    assert_eq!(route("0000:44:00.0", STORAGE), Ok(Route { distance: 4, through: across }));
    let port = Through::Bridge(at("0000:42:01.0"));
    assert_eq!(route("0000:44:00.0", "0000:44:00.1"), Ok(Route { distance: 2, through: port }));
    assert_eq!(route(STORAGE, STORAGE), Ok(Route { distance: 0, through: Through::Itself }));
    // ACS sends it up; the host bridge forwards it. As for the kernel, what it passes on its way up and down does not count.
    let host = Through::Host { from: "pci0000:40".into(), to: "pci0000:40".into() };
    assert_eq!(route("0000:45:00.0", STORAGE), Ok(Route { distance: 4, through: host.clone() }));
    assert_eq!(route("0000:46:00.0", STORAGE), Ok(Route { distance: 6, through: host }));
    let hosts = Through::Host { from: "pci0000:c0".into(), to: "pci0000:40".into() };
    assert_eq!(route("0000:c1:00.0", STORAGE), Ok(Route { distance: 6, through: hosts }));
}

#[test]
fn refusals_name_the_hop() {
    let topology = topology();
    let hop = |from, to| topology.route(at(from), at(to)).map_err(|refusal| (refusal.reason, refusal.hop));
    let silent = Err((Reason::NoPeerPath, "pci0000:00".to_owned()));
    assert_eq!(hop("0000:01:00.0", "0000:02:00.0"), silent);
    assert_eq!(hop("0000:01:00.0", STORAGE), silent);
    assert_eq!(hop("0000:81:00.0", STORAGE), Err((Reason::NoPeerPath, "pci0000:80".to_owned())));
    assert_eq!(hop("0000:77:00.0", STORAGE), Err((Reason::NoPeerPath, "0000:77:00.0".to_owned())));
}

#[test]
fn addresses_are_judged_where_the_request_turns() {
    // By bus address: across the switch no IOMMU helps.
    assert_eq!(reasons("0000:44:00.0", 64), []);
    assert_eq!(reasons("0000:44:00.0", 40), [Reason::DmaMaskExceeded], "what the importer says of itself counts too");
    assert_eq!(reasons("0000:44:00.1", 64), [Reason::DmaMaskExceeded]);
    // Through the IOMMU, which has nothing to give below 4 GiB.
    assert_eq!(reasons("0000:45:00.0", 64), []);
    assert_eq!(reasons("0000:46:00.0", 64), [Reason::DmaMaskExceeded]);
    assert_eq!(reasons("0000:c1:00.0", 64), [Reason::IommuRejected]);
    // No way, and too narrow for the way there would be.
    assert_eq!(reasons("0000:81:00.0", 32), [Reason::NoPeerPath, Reason::DmaMaskExceeded]);
    assert_eq!(reasons("0000:01:00.0", 32), [Reason::NoPeerPath]);
    assert_eq!(reasons("0000:77:00.0", 64), [Reason::NoPeerPath]);
}

#[test]
fn without_a_storage_device_nothing_reaches_it() {
    let text = FIXTURE.replace("\"storage\"", "\"ignored\"");
    assert!(Topology::parse(&text).is_err(), "unknown fields are refused");
    let mut topology = topology();
    topology.storage = None;
    assert_eq!(topology.refusing_reasons(at("0000:44:00.0"), 64), ReasonSet::EMPTY.with(Reason::NoPeerPath));
    assert!(topology.is_grantable());
}

#[test]
fn an_iommu_that_maps_no_peers_rejects() {
    let text = FIXTURE.replace("\"name\": \"dmar1\",", "\"name\": \"dmar1\", \"maps_peers\": false,");
    let topology = Topology::parse(&text).expect("valid");
    assert_eq!(topology.refusing_reasons(at("0000:45:00.0"), 64), ReasonSet::EMPTY.with(Reason::IommuRejected));
    assert_eq!(topology.refusing_reasons(at("0000:44:00.0"), 64), ReasonSet::EMPTY, "across the switch it is not asked");
}

#[test]
fn the_report_has_every_pair() {
    let report = topology().report(Scope::Usual);
    let count = report.endpoints.len();
    assert_eq!(report.pairs.len(), count * (count - 1));
    for pair in &report.pairs {
        assert!(pair.distance.is_some() || !pair.refusals.is_empty(), "{pair:?}");
        assert!(pair.refusals.iter().all(|refusal| !refusal.why.is_empty()));
    }
}

#[test]
fn what_does_not_hold_together_is_refused_with_its_name() {
    let cases = [
        ("{", "EOF"),
        ("{\"host_bridges\":[],\"endpoints\":[],\"surplus\":1}", "surplus"),
        (&FIXTURE.replace("\"above\": \"0000:42:00.0\"", "\"above\": \"0000:4f:00.0\""), "0000:4f:00.0"),
        (&FIXTURE.replace("\"above\": \"0000:40:01.0\"", "\"above\": \"0000:42:00.0\""), "leads back"),
        (&FIXTURE.replace("\"address\": \"0000:44:00.1\"", "\"address\": \"0000:44:00.0\""), "same address"),
        (&FIXTURE.replace("\"name\": \"pci0000:80\"", "\"name\": \"pci0000:40\""), "twice"),
        (&FIXTURE.replace("\"iommu\": \"dmar1\"", "\"iommu\": \"dmar9\""), "dmar9"),
        (&FIXTURE.replace("\"dma_bits\": 32", "\"dma_bits\": 65"), "65"),
        (&FIXTURE.replace("0x4000000\"", "0xzz\""), "0xzz"),
        (&FIXTURE.replace("\"bytes\": \"0x4000000\"", "\"bytes\": 0"), "empty"),
        (&FIXTURE.replace("{ \"first\": 0, \"last\": \"0xffffff\" }", "{ \"first\": 5, \"last\": 4 }"), "before it begins"),
        (
            &FIXTURE
                .replace("\"address\": \"0000:43:00.0\",\n    \"aperture\"", "\"address\": \"0000:99:00.0\",\n    \"aperture\""),
            "0000:99:00.0",
        ),
    ];
    let many = format!("\"ranges\": [{}", "{ \"first\": 0, \"last\": 1 }, ".repeat(2000));
    let cases = cases.into_iter().chain([(FIXTURE.replace("\"ranges\": [", &many).leak() as &str, "more than")]);
    for (text, what) in cases {
        let error = Topology::parse(text).expect_err(what);
        assert!(error.contains(what), "{what}: {error}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(500))]

    /// Whatever a file says, it is refused or gives a report.
    #[test]
    fn damaged_descriptions_never_panic(edits in proptest::collection::vec((0usize..4096, 0u8..128), 1..4)) {
        let mut bytes = FIXTURE.as_bytes().to_vec();
        for (at, byte) in edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let text = String::from_utf8(bytes).expect("ASCII");
        if let Ok(topology) = Topology::parse(&text) {
            let report = topology.report(Scope::Usual);
            proptest::prop_assert_eq!(report.pairs.len(), report.endpoints.len() * (report.endpoints.len() - 1));
        }
    }
}
