//! Mounts for tests, as their servers report them.

use std::time::Duration;

use serde_json::{Value, json};

use super::model::Mapping;
use super::sample::Sample;

/// A mapping of a process.
pub fn mapping(number: u64, importer: &str, pid: u64) -> Mapping {
    Mapping {
        number,
        importer: importer.to_owned(),
        pid,
        uid: 0,
        object: "2".to_owned(),
        offset: 0,
        length: 4096,
        flags: 0,
        grants: 1,
        direct_bytes: 0,
        fallback_bytes: 0,
        age_ms: 0,
    }
}

fn record(number: u64) -> Value {
    json!({
        "mapping": number, "importer": "cpu", "pid": 4000 + number / 4, "uid": 0, "object": 2 + number % 3,
        "offset": number << 21, "length": 2 << 20, "flags": 2, "age_ms": 1500 * number, "grants": 1,
        "bytes_direct": number << 20, "bytes_fallback": 0,
    })
}

/// A mount with these mappings.
pub fn sample(mappings: &[u64]) -> Sample {
    Sample {
        at: Duration::from_secs(10),
        info: json!({
            "mountpoint": "/mnt/peer",
            "server_pid": 1234,
            "device": { "name": "image:/srv/vol.img" },
            "aperture": { "name": "software CMB", "capacity_bytes": 64 << 20, "used_bytes": mappings.len() << 21, "windows": mappings.len() },
            "revocations": [],
            "refused": {},
            "moved": { "direct-window": 0, "direct-bar": 0, "fallback": {} },
            "pins": 0, "pinned_bytes": 0, "pin_quota_bytes": 16 << 20,
            "importers": [],
            "device_memory": null,
        }),
        ledger: Ok(json!({
            "mappings": mappings.iter().map(|number| record(*number)).collect::<Vec<_>>(),
            "mappings_left_out": 0,
            "windows": mappings.iter().map(|number| json!({ "object": 2 + number % 3, "offset": number << 21, "length": 2 << 20 })).collect::<Vec<_>>(),
            "pins": [],
            "revocations": [],
        })),
        device_memory: Value::Null,
    }
}

/// Two looks, two seconds apart, at a mount on which something happens.
pub fn busy() -> [Sample; 2] {
    let mut before = sample(&[1, 2, 3, 4]);
    before.info["revocations"] = json!([{ "trigger": "Truncate", "revoked": 10, "enforced": 1, "cut": { "count": 10 } }]);
    before.info["refused"] = json!({ "Hole": 4, "Busy": 100 });
    before.info["moved"] = json!({ "direct-window": 1 << 20, "direct-bar": 0, "fallback": { "Hole": 4096 } });
    let mut now = before.clone();
    now.at += Duration::from_secs(2);
    now.info["revocations"] = json!([
        { "trigger": "Truncate", "revoked": 20, "enforced": 2, "cut": { "count": 16 } },
        { "trigger": "Unmap", "revoked": 500, "enforced": 0, "cut": { "count": 500 } },
    ]);
    now.info["refused"] = json!({ "Hole": 24, "Busy": 100 });
    now.info["moved"] = json!({ "direct-window": 9 << 20, "direct-bar": 2 << 20, "fallback": { "Hole": 8192 } });
    now.info["pins"] = 1.into();
    now.info["pinned_bytes"] = (1 << 20).into();
    now.info["importers"] =
        json!([{ "name": "nvme:0000:02:00.0", "namespace": "nvme:0000:02:00.0/ns1", "transfers_in_flight": 3 }]);
    now.device_memory = json!({
        "device_bytes": 8 << 20, "free_bytes": 6 << 20, "allocations": [{}],
        "processes": [{ "pid": 77, "device_bytes": 2 << 20 }],
    });
    if let Ok(ledger) = &mut now.ledger {
        let revocation = |number: u64, cut_ns: u64| json!({ "number": number, "trigger": "Truncate", "cut_ns": cut_ns });
        let revocations: Vec<Value> = (0..16).rev().map(|number| revocation(number, (number + 1) * 100_000)).collect();
        ledger["revocations"] = revocations.into();
        ledger["pins"] = json!([{
            "pin": 5, "importer": "static", "pid": 4001, "object": 2, "length": 1 << 20, "offset": 0, "kind": "memfd", "state": "live"
        }]);
    }
    [before, now]
}
