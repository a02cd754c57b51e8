//! A topology that changes under live mappings.

use std::sync::Arc;
use std::time::Duration;

use peerfs_abi::{MapFlags, Reason, Trigger};

use super::world::*;
use crate::api::*;
use crate::topology::Topology;
use crate::types::*;

const EXAMPLE: &str = include_str!("../../../topology-example.json");
/// Below the switch, and behind ACS: only through the host bridge.
const ACROSS: &str = "0000:44:00.0";
const THROUGH_HOST: &str = "0000:45:00.0";

/// Every device has its way.
fn open() -> Topology {
    Topology::parse(EXAMPLE).expect("valid")
}

/// The host bridge has stopped forwarding.
fn silent() -> Topology {
    Topology::parse(&EXAMPLE.replace("\"peer_to_peer\": \"any\", \"iommu\": \"dmar1\"", "\"peer_to_peer\": \"no\""))
        .expect("valid")
}

/// Nobody may write through the aperture.
fn read_only() -> Topology {
    let aperture = "\"bytes\": \"0x4000000\"";
    Topology::parse(&EXAMPLE.replace(aperture, &format!("{aperture}, \"writable\": false"))).expect("valid")
}

fn world() -> World {
    let world = World::with(EngineConfig { deadline: Duration::ZERO, ..EngineConfig::default() }, 64 * MIB);
    world.engine.attach_topology(open());
    world
}

fn peer_at(world: &World, address: &str) -> Peer {
    let pci_address = Some(address.parse().expect("an address"));
    world.peer_with(Arc::new(|| {}), Importer { pci_address, ..importer() })
}

fn silence_while_quiescing(world: &World) {
    world.hook_quiesce(|engine, _| {
        engine.attach_topology(silent());
    });
}

fn lives(world: &World, answer: &MapAnswer) -> bool {
    grants(answer).iter().all(|grant| world.engine.grant(grant.id).is_some())
}

fn chunk(number: u64) -> Range {
    Range::new(number * CHUNK_BYTES, 4096)
}

#[test]
fn mappings_end_whose_importer_has_lost_its_way_and_no_others() {
    let world = world();
    let (across, through, software) = (peer_at(&world, ACROSS), peer_at(&world, THROUGH_HOST), world.peer());
    let answers = [world.map(across, chunk(0)), world.map(through, chunk(1)), world.map(software, chunk(2))];
    assert!(answers.iter().all(|answer| grants(answer).len() == 1));
    assert_eq!(world.engine.attach_topology(open()).revoked, 0, "nothing has changed");

    assert_eq!(world.engine.attach_topology(silent()).revoked, 1);
    assert_eq!(answers.each_ref().map(|answer| lives(&world, answer)), [true, false, true]);
    let told = world.engine.events(through.session, 8);
    assert_eq!(told.iter().map(|event| event.trigger).collect::<Vec<_>>(), [Trigger::DeviceEvent.code()]);
    assert_eq!(refusal(&world.map(through, chunk(1))), Some(Reason::NoPeerPath));

    assert_eq!(world.engine.attach_topology(open()).revoked, 0, "what is allowed again takes nothing from others");
    assert_eq!(grants(&world.map(through, chunk(1))).len(), 1);
    world.engine.revoke(None, Range::ALL, Trigger::Administrator);
    world.assert_clean();
}

#[test]
fn holders_of_the_same_window_end_together() {
    let world = world();
    let (across, through) = (peer_at(&world, ACROSS), peer_at(&world, THROUGH_HOST));
    let answers = [world.map(across, chunk(0)), world.map(through, chunk(0))];
    assert_eq!(world.engine.attach_topology(silent()).revoked, 2);
    assert!(!answers.iter().any(|answer| lives(&world, answer)));
    assert_eq!(grants(&world.map(across, chunk(0))).len(), 1, "who has a way maps again");
}

#[test]
fn an_aperture_that_allows_less_ends_every_mapping() {
    let world = world();
    let software = world.peer();
    let answer = world.map_write(software, chunk(0));
    assert_eq!(world.engine.attach_topology(read_only()).revoked, 1);
    assert!(!lives(&world, &answer));
    assert_eq!(refusal(&world.map_write(software, chunk(0))), Some(Reason::WriteForbidden));
}

#[test]
fn a_map_under_way_does_not_outlive_the_way() {
    let world = world();
    let through = peer_at(&world, THROUGH_HOST);
    silence_while_quiescing(&world);
    assert_eq!(refusal(&world.map(through, chunk(0))), Some(Reason::NoPeerPath));
    world.assert_clean();
}

#[test]
fn a_live_window_is_not_joined_on_an_old_decision() {
    let world = world();
    let (software, through) = (world.peer(), peer_at(&world, THROUGH_HOST));
    let held = world.map(software, chunk(1));
    // Both chunks are decided before the first is quiesced; the second is there to be joined.
    silence_while_quiescing(&world);
    let answer = world.map_flags(through, FILE, Range::new(0, CHUNK_BYTES + 4096), MapFlags::empty());
    assert_eq!(refusal(&answer), Some(Reason::NoPeerPath), "{answer:?}");
    assert!(lives(&world, &held));
}
