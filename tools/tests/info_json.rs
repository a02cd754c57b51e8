//! `docs/info-json.md` against what a mount says.

#[allow(dead_code, reason = "shared with other tests")]
mod common;
#[allow(dead_code, reason = "shared with other tests")]
mod web;

use std::collections::BTreeMap;
use std::fs;

use common::{Scratch, succeed};
use serde_json::Value;
use web::Running;

/// What a test without a controller cannot have.
const NOT_HERE: [&str; 5] = [
    "importers[].block_bytes",
    "importers[].blocks",
    "importers[].name",
    "importers[].namespace",
    "importers[].transfers_in_flight",
];

/// Keys below which names are counted.
const COUNTED: [(&str, &str); 5] = [
    ("moved.fallback", "REASON"),
    ("refused", "REASON"),
    ("requests", "OPERATION"),
    ("storage", "OPERATION"),
    ("device_events", "EVENT"),
];

/// What the document says of a key.
struct Row {
    kinds: String,
    unit: String,
}

fn documented() -> BTreeMap<String, Row> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/info-json.md");
    let text = fs::read_to_string(path).expect("a document");
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{line}");
        let row = Row { kinds: cells[1].to_owned(), unit: cells[2].to_owned() };
        assert!(rows.insert(cells[0].trim_matches('`').to_owned(), row).is_none(), "twice: {line}");
    }
    rows
}

/// Every key of a value with the kind of what it has. Objects that are always there are only the beginning of keys.
fn flatten(key: &str, value: &Value, found: &mut BTreeMap<String, &'static str>) {
    match value {
        Value::Object(members) => {
            let counted = COUNTED.iter().find(|counted| counted.0 == key).map(|counted| counted.1);
            for (name, member) in members {
                let name = counted.unwrap_or(name);
                flatten(&if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") }, member, found);
            }
            if ["aperture", "device_memory", "topology"].contains(&key) {
                found.insert(key.to_owned(), "object");
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| flatten(&format!("{key}[]"), element, found)),
        Value::Null => drop(found.insert(key.to_owned(), "null")),
        Value::Bool(_) => drop(found.insert(key.to_owned(), "boolean")),
        Value::Number(_) => drop(found.insert(key.to_owned(), "number")),
        Value::String(_) => drop(found.insert(key.to_owned(), "string")),
    }
}

fn keys(mountpoint: &str) -> BTreeMap<String, &'static str> {
    let info: Value = serde_json::from_str(&succeed(&["info", mountpoint, "--json"])).expect("JSON");
    let mut found = BTreeMap::new();
    flatten("", &info, &mut found);
    found
}

fn check_kinds(found: &BTreeMap<String, &'static str>, rows: &BTreeMap<String, Row>) {
    for (key, kind) in found {
        let row = rows.get(key).unwrap_or_else(|| panic!("{key} is not documented"));
        assert!(row.kinds.split(" or ").any(|documented| documented == *kind), "{key} is a {kind}, not {}", row.kinds);
    }
}

#[test]
fn every_key_is_documented_and_no_other() {
    let scratch = Scratch::new();
    succeed(&["mkfs", &scratch.text("v.img"), "--size", "64M"]);
    let topology = concat!(env!("CARGO_MANIFEST_DIR"), "/../p2p/topology-example.json");
    let options = format!("devmem=4M,metrics=0,grants=socket,topology={topology}");
    succeed(&["mount", &scratch.text("v.img"), &scratch.mnt(), "--cmb", "16M", "-o", &options]);
    let file = scratch.text("mnt/file");
    fs::write(&file, vec![1; 1 << 20]).expect("room");
    fs::File::options().write(true).open(&file).and_then(|file| file.set_len(2 << 20)).expect("a hole");
    let mut holder = Running::new(&["map", &file, "--hold", "600"]);
    holder.says("mapping ");
    succeed(&["revoke", &file]);

    let (found, rows) = (keys(&scratch.mnt()), documented());
    check_kinds(&found, &rows);
    let missing: Vec<&String> = rows.keys().filter(|key| !found.contains_key(*key)).collect();
    assert_eq!(missing, NOT_HERE, "documented, and not there");
    drop(holder);
    succeed(&["umount", &scratch.mnt()]);
}

/// A mount with as little as possible has the same keys, but for those below what is null or empty.
#[test]
fn keys_stay_where_there_is_nothing_to_say() {
    let scratch = Scratch::new();
    succeed(&["mkfs", &scratch.text("v.img"), "--size", "64M"]);
    succeed(&["mount", &scratch.text("v.img"), &scratch.mnt(), "--cmb", "0", "-o", "ro"]);
    let (found, rows) = (keys(&scratch.mnt()), documented());
    check_kinds(&found, &rows);
    let nothing = |key: &str| {
        key.contains("[]") || key.ends_with("REASON") || found.get(key.split('.').next().unwrap_or(key)) == Some(&"null")
    };
    let missing: Vec<&String> = rows.keys().filter(|key| !found.contains_key(*key) && !nothing(key)).collect();
    assert_eq!(missing, [""; 0]);
    assert_eq!((found["aperture"], found["device_memory"], found["metrics"]), ("null", "null", "null"));
    succeed(&["umount", &scratch.mnt()]);
}

/// What a mount cannot do is told by what it is asked for and what the machine has, and so it is here where root mounts.
#[test]
fn limits_are_those_of_the_mount() {
    let scratch = Scratch::new();
    succeed(&["mkfs", &scratch.text("v.img"), "--size", "64M"]);
    for (option, expected) in [("grants=socket", true), ("grants=passthrough", false)] {
        succeed(&["mount", &scratch.text("v.img"), &scratch.mnt(), "-o", option]);
        let info: Value = serde_json::from_str(&succeed(&["info", &scratch.mnt(), "--json"])).expect("JSON");
        let limits = info["limits"].as_array().expect("a list");
        let named = |name: &str| limits.iter().find(|limit| limit["name"] == name);
        assert_eq!(named("grants").is_some(), expected, "{option}: {limits:?}");
        if let Some(limit) = named("grants") {
            assert_eq!(limit["why"], "it was mounted with -o grants=socket");
        }
        for name in ["own-user", "access", "options", "locked-memory"] {
            assert_eq!(named(name), None, "root has no such limit");
        }
        assert_eq!(succeed(&["info", &scratch.mnt()]).contains("\nlimit        grants: "), expected);
        succeed(&["umount", &scratch.mnt()]);
    }
}

#[test]
fn units_are_in_the_names() {
    for (key, row) in documented() {
        let last = key.rsplit('.').next().unwrap_or(&key);
        let units = [("_bytes", "bytes"), ("_ns", "nanoseconds"), ("_ms", "milliseconds"), ("_seconds", "seconds")];
        for (end, unit) in units.into_iter().filter(|(end, _)| last.ends_with(end)) {
            assert_eq!(row.unit, unit, "{key} ends with {end}");
        }
    }
}
