//! The pages of `docs/` about JSON list exactly the keys that the commands print.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use common::{Scratch, fail, succeed};
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_client::{ImporterSpec, MapFlags, Session};
use serde_json::Value;

const MIB: usize = 1 << 20;

/// A volume with a file of three decisions: 1 MiB of data, 1 MiB preallocated, 2 MiB of nothing.
fn mounted() -> (Scratch, String) {
    let scratch = Scratch::new();
    succeed(&["mkfs", &scratch.text("v.img"), "--size", "64M"]);
    succeed(&["mount", &scratch.text("v.img"), &scratch.mnt(), "--cmb", "8M"]);
    let file = File::create(scratch.join("mnt/file")).expect("the mount takes files");
    file.write_all_at(&vec![7; MIB], 0).expect("room");
    fallocate(&file, FallocateFlags::empty(), MIB as i64, MIB as i64).expect("room");
    file.set_len(4 * MIB as u64).and_then(|()| file.sync_all()).expect("room");
    let file = scratch.text("mnt/file");
    (scratch, file)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(&[arguments, &["--json"]].concat())).expect("JSON")
}

/// Adds the keys of a document, as the pages write them. Objects in `open` have keys that are values, such as reasons.
fn keys(value: &Value, at: &str, open: &[&str], found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) if !open.contains(&at) => object.iter().for_each(|(key, value)| {
            keys(value, &if at.is_empty() { key.clone() } else { format!("{at}.{key}") }, open, found);
        }),
        Value::Array(list) => list.iter().for_each(|element| keys(element, &format!("{at}[]"), open, found)),
        _ => drop(found.insert(at.to_owned())),
    }
}

/// The keys of a page's table. Lists have no value of their own.
fn documented(page: &str) -> BTreeSet<String> {
    let rows: Vec<(&str, &str)> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|row| {
            let (key, rest) = row.split_once("` | ")?;
            Some((key, rest.split(" | ").next()?))
        })
        .collect();
    assert!(rows.len() > 10, "{rows:?}");
    rows.into_iter().filter(|(_, kind)| *kind != "list").map(|(key, _)| key.to_owned()).collect()
}

#[test]
fn what_query_prints_is_documented() {
    let (scratch, file) = mounted();
    let mut printed = BTreeSet::new();
    for more in [&[][..], &["--write", "--pin", "--atomic"], &["--importer", "cpu@0000:01:00.0"]] {
        keys(&json(&[&["query", file.as_str()], more].concat()), "", &[], &mut printed);
    }
    assert_eq!(printed, documented(include_str!("../../docs/query-json.md")));
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn what_mappings_prints_is_documented() {
    let (scratch, path) = mounted();
    let other = scratch.text("mnt/pinned");
    fs::write(&other, vec![7; MIB]).and_then(|()| File::open(&other)?.sync_all()).expect("room");
    let session = Session::open(scratch.mnt(), ImporterSpec::cpu()).expect("a session");
    let (file, pinned) = (peerfs_client::File::open(&path).expect("there"), peerfs_client::File::open(&other).expect("there"));
    let mapping = session.map(&file, .., MapFlags::empty()).expect("a mapping");
    file.revoke(..).expect("the owner may");
    let again = session.map(&file, .., MapFlags::empty()).expect("a mapping");
    let pin = session.map(&pinned, .., MapFlags::PIN).expect("a pin");
    let mut printed = BTreeSet::new();
    keys(&json(&["mappings", &scratch.mnt()]), "", &["mappings[].moved.fallback"], &mut printed);
    assert_eq!(printed, documented(include_str!("../../docs/mappings-json.md")));
    // What fails has a line on stderr, and no JSON.
    assert!(fail(1, &["mappings", &scratch.text(""), "--json"]).contains("not on a peerfs mount"));
    drop((mapping, again, pin, session, file, pinned));
    succeed(&["umount", &scratch.mnt()]);
}
