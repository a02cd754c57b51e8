//! The metrics as Prometheus gets them, and what the documents say of them.

#[allow(dead_code, reason = "shared with other tests")]
mod common;
#[allow(dead_code, reason = "shared with other tests")]
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use common::{Scratch, fail, peerfs, succeed};
use serde_json::Value;
use web::{Answer, Running, get, http};

fn document(name: &str) -> String {
    let path = format!("{}/../{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A mount that serves metrics, and the address.
fn mounted(options: &[&str]) -> (Scratch, String) {
    let scratch = Scratch::new();
    succeed(&["mkfs", &scratch.text("v.img"), "--size", "64M"]);
    succeed(&[&["mount", &scratch.text("v.img"), &scratch.mnt()], options].concat());
    let info: Value = serde_json::from_str(&succeed(&["info", &scratch.mnt(), "--json"])).expect("JSON");
    let address = info["metrics"].as_str().expect("an address").to_owned();
    (scratch, address)
}

fn scrape(address: &str) -> String {
    let Answer { status, body, .. } = get(address, "/metrics");
    assert_eq!(status, 200, "{body}");
    body
}

/// Samples by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("`{line}` is no sample"));
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("`{line}` has no number")))
    };
    lines.map(sample).collect()
}

/// Type of each metric.
fn types(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.filter_map(|line| line.split_once(' ')).map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// A mount that has a bit of everything, revocations among them, and whoever holds a mapping.
fn busy() -> (Scratch, String, Running) {
    let (scratch, address) = mounted(&["--cmb", "16M", "-o", "devmem=4M,metrics=0"]);
    let file = scratch.text("mnt/secret-name");
    fs::write(&file, vec![3; 2 << 20]).expect("room");
    fs::File::options().write(true).open(&file).and_then(|file| file.set_len(3 << 20)).expect("a hole");
    succeed(&["map", &file, "--checksum"]);
    let mut holder = Running::new(&["map", &file, "--hold", "600"]);
    holder.says("mapping ");
    succeed(&["revoke", &file]);
    (scratch, address, holder)
}

#[test]
fn what_is_served_is_what_info_shows() {
    let (scratch, address, holder) = busy();
    let answer = get(&address, "/metrics");
    assert!(answer.head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{}", answer.head);
    let (served, shown) = (samples(&answer.body), samples(&succeed(&["info", &scratch.mnt(), "--metrics"])));
    assert_eq!(served.keys().collect::<Vec<_>>(), shown.keys().collect::<Vec<_>>());
    // Looking costs requests.
    let steady = |name: &&String| !name.starts_with("peerfs_requests_total");
    for name in served.keys().filter(steady) {
        assert_eq!(served[name], shown[name], "{name}");
    }
    let info: Value = serde_json::from_str(&succeed(&["info", &scratch.mnt(), "--json"])).expect("JSON");
    let expected = [
        ("peerfs_aperture_capacity_bytes", &info["aperture"]["capacity_bytes"]),
        ("peerfs_volume_free_bytes", &info["volume"]["free_bytes"]),
        ("peerfs_moved_bytes_total{path=\"direct-window\"}", &info["moved"]["direct-window"]),
        ("peerfs_fallback_bytes_total{reason=\"Hole\"}", &info["moved"]["fallback"]["Hole"]),
        ("peerfs_refused_total{reason=\"Hole\"}", &info["refused"]["Hole"]),
        ("peerfs_revoked_grants_total{trigger=\"Administrator\"}", &info["revocations"][0]["revoked"]),
        ("peerfs_device_memory_capacity_bytes", &info["device_memory"]["device_bytes"]),
    ];
    for (name, value) in expected {
        assert_eq!(served.get(name).copied(), value.as_f64(), "{name}");
        assert!(value.as_f64() > Some(0.0), "{name} shows nothing");
    }
    for (name, least) in [("requests_total{operation=\"write\"}", 2.0), ("storage_bytes_total{operation=\"write\"}", 2e6)] {
        assert!(served[&format!("peerfs_{name}")] >= least, "{name}: {served:?}");
    }
    assert!(!answer.body.contains("secret-name") && !answer.body.contains("uid") && !answer.body.contains("pid"));
    let given_back = info["revocations"].as_array().into_iter().flatten().find(|record| record["trigger"] == "Unmap");
    assert!(given_back.is_some_and(|record| record["revoked"].as_u64() > Some(0)), "{info}");
    assert!(!answer.body.contains("trigger=\"Unmap\""), "what a client gives back is no revocation");
    drop(holder);
    succeed(&["umount", &scratch.mnt()]);
    assert!(std::net::TcpStream::connect(&address).is_err(), "nobody listens after the unmount");
}

#[test]
fn failures_of_the_storage_are_counted() {
    let (scratch, address) = mounted(&["-o", "faults", "--metrics", "0"]);
    let file = fs::File::create(scratch.join("mnt/file")).expect("room");
    let faults = scratch.join("mnt/.peerfs/faults");
    fs::write(&faults, "write-error 0 64M\n").expect("a command");
    std::io::Write::write_all(&mut &file, &[1; 8192]).and_then(|()| file.sync_all()).expect_err("as told");
    fs::write(&faults, "recover\n").expect("a command");
    fs::write(&faults, "reset\n").expect("a command");
    let found = samples(&scrape(&address));
    assert!(found["peerfs_storage_errors_total{operation=\"write\"}"] >= 1.0);
    assert_eq!(found["peerfs_device_events_total{event=\"reset\"}"], 1.0);
    drop(file);
    fs::write(&faults, "recover\n").expect("a command");
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn who_may_ask_and_how() {
    let (scratch, address) = mounted(&["--metrics", "127.0.0.1:0"]);
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert!(succeed(&["info", &scratch.mnt()]).contains(&format!("http://{address}/metrics")));
    assert_eq!(get(&address, "/").status, 404);
    let named = |host: &str| http(&address, &format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n")).status;
    assert_eq!((named("attacker.example"), named("localhost")), (403, 200));
    succeed(&["umount", &scratch.mnt()]);

    let (scratch, address) = mounted(&["--metrics", "0.0.0.0:0"]);
    let port = address.strip_prefix("0.0.0.0:").expect("as written out");
    let anybody = http(&format!("127.0.0.1:{port}"), "GET /metrics HTTP/1.1\r\nHost: machine.example\r\n\r\n");
    assert_eq!(anybody.status, 200, "{}", anybody.body);
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn other_addresses_come_with_a_warning_and_taken_ones_are_refused_before_the_mount() {
    let (scratch, address) = mounted(&["--metrics", "0"]);
    fs::create_dir(scratch.join("other")).expect("room");
    let other = scratch.text("other");
    let said = fail(1, &["mount", "mem:32M", &other, "--metrics", &address]);
    assert!(said.contains(&address) && said.contains("another port"), "{said}");
    assert!(fail(1, &["info", &other]).contains("not on a peerfs mount"));
    for bad in ["x", "127.0.0.1", "99999"] {
        assert!(fail(2, &["mount", "mem:32M", &other, "--metrics", bad]).contains("PORT"), "{bad}");
        assert!(fail(2, &["mount", "mem:32M", &other, "-o", &format!("metrics={bad}")]).contains("metrics"), "{bad}");
    }
    let outcome = peerfs(&["mount", "mem:32M", &other, "--metrics", "0.0.0.0:0", "--log-format", "json"]);
    let warning: Value = serde_json::from_str(outcome.stderr.trim()).expect("one line of JSON");
    assert_eq!((outcome.code, &warning["level"]), (Some(0), &Value::from("WARN")), "{warning}");
    succeed(&["umount", &other]);
    succeed(&["umount", &scratch.mnt()]);
}

/// `docs/metrics.md` has a row for each metric: name, type, unit, labels, meaning.
#[test]
fn every_metric_is_documented_and_no_other() {
    let text = document("docs/metrics.md");
    let rows = text.lines().filter(|line| line.starts_with("| `peerfs_"));
    let mut documented = BTreeMap::new();
    let mut labels = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{row}");
        let name = cells[0].trim_matches('`');
        let unit = cells[2];
        assert_eq!(unit == "bytes", name.contains("_bytes"), "{row}");
        assert_eq!(unit == "seconds", name.ends_with("_seconds"), "{row}");
        documented.insert(name.to_owned(), cells[1].to_owned());
        labels.insert(name.to_owned(), cells[3].trim_matches('`').to_owned());
    }
    let (scratch, address, holder) = busy();
    let served = scrape(&address);
    assert_eq!(types(&served), documented);
    for sample in samples(&served).keys() {
        let (full, rest) = sample.split_once('{').unwrap_or((sample, ""));
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| full.strip_suffix(end)).unwrap_or(full);
        let name = if documented.contains_key(full) { full } else { name };
        let label = rest.split('=').next().unwrap_or_default();
        let expected = if labels[name] == "none" { "" } else { labels[name].as_str() };
        assert_eq!(label, expected, "{sample}");
    }
    drop(holder);
    succeed(&["umount", &scratch.mnt()]);
}

/// Every panel of the Grafana dashboard asks for metrics that are served, and each metric that is worth a panel has one.
#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let dashboard: Value = serde_json::from_str(&document("tools/grafana/peerfs.json")).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(target["expr"].as_str().expect("a query").to_owned());
        }
    }
    let documented: BTreeSet<String> = document("docs/metrics.md")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
        .filter(|name| name.starts_with("peerfs_"))
        .collect();
    let is_part = |character: char| !character.is_ascii_alphanumeric() && character != '_';
    let asked: BTreeSet<String> = queries
        .iter()
        .flat_map(|query| query.split(is_part))
        .filter(|word| word.starts_with("peerfs_"))
        .map(|word| if documented.contains(word) { word } else { word.trim_end_matches("_bucket") }.to_owned())
        .collect();
    assert!(asked.len() > 15, "{asked:?}");
    assert_eq!(asked.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new());
}
