//! The path between devices on a real mount: a described PCI topology, software importers with addresses in it, and
//! what the storage side of the description takes away.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::process::{Command, Output};

use peerfs_client::{File, ImporterSpec, MapFlags, Reason, Session};
use peerfs_tests::{ScratchMount, peerfs};
use serde_json::Value;
use tempfile::TempDir;

const EXAMPLE: &str = include_str!("../../p2p/topology-example.json");
const MIB: usize = 1 << 20;
const NONE: MapFlags = MapFlags::empty();

/// A mount with a file of one MiB, and the folder with its topology.
struct Scene {
    mount: ScratchMount,
    _folder: TempDir,
}

impl Scene {
    fn new(topology: &str) -> Scene {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("topology.json");
        std::fs::write(&path, topology).expect("a topology");
        let options = format!("topology={}", path.display());
        let mount = ScratchMount::new("32M", &["--cmb", "8M", "-o", &options]).expect("a mount");
        std::fs::write(mount.join("file"), vec![7; MIB]).expect("a file");
        Scene { mount, _folder: folder }
    }

    fn file(&self) -> File {
        File::open_with(self.mount.join("file"), OpenOptions::new().read(true).write(true)).expect("open")
    }

    /// What a map by an importer at this address is refused with, and everything that a query by it says.
    fn asked(&self, spec: ImporterSpec, flags: MapFlags) -> (Option<Reason>, BTreeSet<Reason>) {
        let session = Session::open(self.mount.path(), spec).expect("a session");
        let file = self.file();
        let mapping = session.map(&file, .., flags).expect("map");
        let refused = mapping.segments().iter().find_map(|segment| segment.reason);
        let mut bytes = vec![0; MIB];
        let moved = mapping.read_at(0, &mut bytes).expect("read");
        assert!(bytes.iter().all(|byte| *byte == 7), "the bytes come either way");
        assert_eq!(moved.fallback == 0, refused.is_none(), "{moved:?}");
        let table = session.query(&file, .., flags).expect("query");
        (refused, table.refusals().into_iter().map(|refused| refused.0).collect())
    }

    fn at(&self, address: &str) -> (Option<Reason>, BTreeSet<Reason>) {
        self.asked(on_bus(address), NONE)
    }
}

fn on_bus(address: &str) -> ImporterSpec {
    ImporterSpec { name: "dev".into(), pci_address: Some(address.into()), ..ImporterSpec::cpu() }
}

fn all(reasons: &[Reason]) -> BTreeSet<Reason> {
    reasons.iter().copied().collect()
}

fn command(arguments: &[&str], path: &std::path::Path) -> Output {
    Command::new(peerfs()).args(arguments).arg(path).output().expect("peerfs")
}

#[test]
fn importers_on_the_bus_need_a_way() {
    let scene = Scene::new(EXAMPLE);
    let refused = |reason| (Some(reason), all(&[reason]));
    assert_eq!(scene.at("0000:44:00.0"), (None, all(&[])), "across the switch");
    assert_eq!(scene.at("0000:45:00.0"), (None, all(&[])), "through the host bridge");
    assert_eq!(scene.at("0000:01:00.0"), refused(Reason::NoPeerPath));
    assert_eq!(scene.at("0000:44:00.1"), refused(Reason::DmaMaskExceeded));
    assert_eq!(scene.at("0000:46:00.0"), refused(Reason::DmaMaskExceeded));
    assert_eq!(scene.at("0000:c1:00.0"), refused(Reason::IommuRejected));
    assert_eq!(scene.at("0000:99:00.0"), refused(Reason::NoPeerPath));
    let narrow = ImporterSpec { dma_bits: 32, ..on_bus("0000:81:00.0") };
    assert_eq!(scene.asked(narrow, NONE), (Some(Reason::NoPeerPath), all(&[Reason::NoPeerPath, Reason::DmaMaskExceeded])));
    assert_eq!(scene.asked(ImporterSpec::cpu(), NONE), (None, all(&[])), "software needs no way");
}

#[test]
fn a_volume_that_is_no_pci_device_has_no_way_and_shows_the_machine() {
    let mount = ScratchMount::new("32M", &["--cmb", "8M"]).expect("a mount");
    std::fs::write(mount.join("file"), vec![7; MIB]).expect("a file");
    let file = File::open(mount.join("file")).expect("open");
    let table = file.query(.., NONE, "cpu@0000:44:00.0").expect("query");
    assert_eq!(table.refusals(), [(Reason::NoPeerPath, MIB as u64)]);
    let report = |arguments: &[&str]| -> Value {
        let output = Command::new(peerfs()).arg("topology").args(arguments).arg("--json").output().expect("peerfs");
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let of_mount = report(&[mount.path().to_str().expect("UTF-8")]);
    assert_eq!((&of_mount["topology"]["source"], &of_mount["topology"]["storage"]), (&Value::from("sysfs"), &Value::Null));
    assert_eq!(of_mount, report(&[]), "the mount goes by the machine");
    let count = |report: &Value| report["topology"]["endpoints"].as_array().map(Vec::len);
    assert!(count(&report(&["--all"])) >= count(&of_mount));
    let info = String::from_utf8(command(&["info"], &mount.path()).stdout).expect("text");
    assert!(info.contains("from the machine's PCI bus; the storage device is not among them"), "{info}");
    assert!(Session::open(mount.path(), on_bus("nonsense")).is_err(), "EINVAL");
}

#[test]
fn what_the_description_takes_from_the_aperture() {
    let with = |field: &str| EXAMPLE.replace("\"bytes\": \"0x4000000\"", &format!("\"bytes\": \"0x4000000\", {field}"));
    let cpu = ImporterSpec::cpu;
    let scene = Scene::new(&with("\"grantable\": false"));
    assert_eq!(scene.asked(cpu(), NONE), (Some(Reason::NoGrantObject), all(&[Reason::NoGrantObject])));
    drop(scene);
    let scene = Scene::new(&with("\"writable\": false, \"atomic\": false"));
    assert_eq!(scene.asked(cpu(), NONE), (None, all(&[])));
    assert_eq!(scene.asked(cpu(), MapFlags::WRITE), (Some(Reason::WriteForbidden), all(&[Reason::WriteForbidden])));
    let both = all(&[Reason::WriteForbidden, Reason::AtomicUnsupported]);
    assert_eq!(scene.asked(cpu(), MapFlags::ATOMIC), (Some(Reason::WriteForbidden), both), "atomic operations write");
}

#[test]
fn the_commands_show_the_tree_and_the_hop_that_refuses() {
    let scene = Scene::new(EXAMPLE);
    let path = scene.mount.path();
    let report: Value = serde_json::from_slice(&command(&["topology", "--json"], &path).stdout).expect("JSON");
    let pairs = report["topology"]["pairs"].as_array().expect("pairs");
    let pair = pairs.iter().find(|pair| pair["from"] == "0000:01:00.0" && pair["to"] == "0000:43:00.0").expect("the pair");
    assert_eq!((&pair["distance"], &pair["refusals"][0]["hop"]), (&Value::Null, &Value::from("pci0000:00")));
    assert!(pair["refusals"][0]["remedy"].as_str().is_some_and(|remedy| remedy.contains("below one PCIe switch")));
    let text = String::from_utf8(command(&["topology"], &path).stdout).expect("text");
    assert!(
        text.contains("0000:01:00.0 -> 0000:02:00.0: NoPeerPath at pci0000:00: ACS")
            || text.contains("0000:01:00.0 -> 0000:02:00.0: NoPeerPath at pci0000:00: both"),
        "{text}"
    );

    let file = scene.mount.join("file");
    let table = |importer: &str| -> Value {
        serde_json::from_slice(&command(&["query", "--json", "--importer", importer], &file).stdout).expect("JSON")
    };
    assert_eq!(table("cpu@0000:01:00.0")["segments"][0]["refusals"], serde_json::json!(["NoPeerPath"]));
    assert_eq!(table("cpu@0000:44:00.0")["bytes_direct"], MIB);
    let mapped = command(&["map", "--json", "--importer", "static@0000:01:00.0"], &file);
    let mapped: Value = serde_json::from_slice(&mapped.stdout).expect("JSON");
    assert_eq!(mapped["segments"][0]["reason"], "NoPeerPath");
}

#[test]
fn a_bad_description_is_refused_with_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("topology.json");
    std::fs::write(&path, EXAMPLE.replace("\"above\": \"0000:42:00.0\"", "\"above\": \"nowhere\"")).expect("a topology");
    for options in [format!("topology={}", path.display()), "topology=/nonexistent/file".into()] {
        let error = ScratchMount::new("32M", &["-o", &options]).err().expect("refused").to_string();
        assert!(error.contains("nowhere") || error.contains("/nonexistent/file"), "{error}");
    }
}
