//! What a view shows, from two looks at the mount. Pure: it asks nobody and knows no terminal.

use std::collections::BTreeMap;

use peerfs_abi::devmem::device_memory_name;
use peerfs_p2p::ObjectId;
use serde_json::Value;

use super::sample::Sample;
use crate::output;

/// What there is to see of a mount.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Picture {
    /// Mount point, device, server.
    pub title: String,
    /// `None`: the device has none.
    pub aperture: Option<Aperture>,
    /// Bytes of the aperture by file, those with most of it first.
    pub windows: Vec<(String, u64)>,
    /// The ledger's live mappings.
    pub mappings: Vec<Mapping>,
    /// How many there are, with those that the ledger does not list; for who may not see them, those that were made and not
    /// ended.
    pub mapping_count: u64,
    /// Mappings that have no grant any more, or never had one.
    pub fallen_back: u64,
    /// Mappings that the ledger does not list.
    pub left_out: u64,
    /// Why there is no ledger to see.
    pub no_ledger: Option<String>,
    /// What revocations cost.
    pub revocations: Revocations,
    /// Bytes moved since the mount, by path.
    pub moved: Paths,
    /// Bytes a second since the last look, by path; `None` at the first look at a server.
    pub rates: Option<Paths>,
    /// Refused stretches by reason, most frequent of late first.
    pub refusals: Vec<Refusals>,
    /// What is pinned.
    pub pins: Pins,
    /// Importers that the server drives.
    pub transfers: Vec<Transfers>,
    /// Device memory, in one line.
    pub device_memory: Option<String>,
}

/// The aperture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aperture {
    /// Its name.
    pub name: String,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Its size, bytes.
    pub capacity_bytes: u64,
    /// Live windows.
    pub windows: u64,
}

/// A live mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Its number in the ledger.
    pub number: u64,
    /// Importer's name.
    pub importer: String,
    /// Process.
    pub pid: u64,
    /// User.
    pub uid: u64,
    /// Inode number, or the name of device memory.
    pub object: String,
    /// Start of the range, bytes.
    pub offset: u64,
    /// Length, bytes.
    pub length: u64,
    /// Bits of the ABI.
    pub flags: u32,
    /// Live grants.
    pub grants: u64,
    /// Bytes moved directly, as reported.
    pub direct_bytes: u64,
    /// Bytes moved by fallback, as reported.
    pub fallback_bytes: u64,
    /// Age, milliseconds.
    pub age_ms: u64,
}

/// Amounts by path.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Paths {
    /// Through windows of main memory.
    pub window: f64,
    /// Through BARs.
    pub bar: f64,
    /// By fallback.
    pub fallback: f64,
}

/// What revocations cost of late.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Revocations {
    /// Since the mount, grants.
    pub grants: u64,
    /// Those of them that did not acknowledge.
    pub enforced: u64,
    /// Revocations a second since the last look.
    pub per_second: Option<f64>,
    /// Time to the cut of the last ones, nanoseconds, oldest first.
    pub cut_ns: Vec<u64>,
    /// Median of these.
    pub median_ns: u64,
    /// Their 99th percentile.
    pub p99_ns: u64,
    /// The trigger of the last one.
    pub last_trigger: Option<String>,
}

/// Refused stretches of one reason.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusals {
    /// Name of the reason.
    pub reason: String,
    /// Since the mount.
    pub total: u64,
    /// A second, since the last look.
    pub per_second: f64,
}

/// What is pinned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pins {
    /// Pins.
    pub count: u64,
    /// Bytes of the mount's quota in use.
    pub used_bytes: u64,
    /// The mount's quota, bytes.
    pub quota_bytes: u64,
    /// One line for each that the caller may see.
    pub lines: Vec<String>,
}

/// Transfers of an importer that the server drives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfers {
    /// Importer's name.
    pub importer: String,
    /// Its namespace.
    pub namespace: String,
    /// Under way.
    pub in_flight: u64,
}

impl Picture {
    /// What `now` shows; `before` is an earlier look, for what happened since.
    pub fn new(before: Option<&Sample>, now: &Sample) -> Picture {
        let (info, nothing) = (&now.info, Value::Null);
        let ledger = now.ledger.as_ref().unwrap_or(&nothing);
        // Counters of another server began anew.
        let before = before.filter(|before| before.info["server_pid"] == info["server_pid"] && before.at < now.at);
        let listed: Vec<Mapping> = list(ledger, "mappings").iter().map(mapping).collect();
        let (mappings, without): (Vec<Mapping>, Vec<Mapping>) = listed.into_iter().partition(|mapping| mapping.grants > 0);
        Picture {
            title: format!(
                "{}  {}  server {}",
                text(&info["mountpoint"]),
                text(&info["device"]["name"]),
                number(info, "server_pid")
            ),
            aperture: aperture(&info["aperture"]),
            mapping_count: match &now.ledger {
                Ok(ledger) => mappings.len() as u64 + number(ledger, "mappings_left_out"),
                Err(_) => number(info, "mappings"),
            },
            windows: windows(ledger),
            mappings,
            fallen_back: without.len() as u64,
            left_out: number(ledger, "mappings_left_out"),
            no_ledger: now.ledger.as_ref().err().cloned(),
            revocations: revocations(before, now, ledger),
            moved: moved(info),
            rates: before.map(|before| rates(before, now)),
            refusals: refusals(before, now),
            pins: pins(info, ledger),
            transfers: list(info, "importers").iter().map(transfers).collect(),
            device_memory: device_memory(&now.device_memory),
        }
    }
}

fn list<'a>(record: &'a Value, name: &str) -> &'a [Value] {
    record[name].as_array().map_or(&[], Vec::as_slice)
}

fn number(record: &Value, name: &str) -> u64 {
    record[name].as_u64().unwrap_or(0)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("?").to_owned()
}

fn aperture(aperture: &Value) -> Option<Aperture> {
    Some(Aperture {
        name: aperture["name"].as_str()?.to_owned(),
        used_bytes: number(aperture, "used_bytes"),
        capacity_bytes: number(aperture, "capacity_bytes"),
        windows: number(aperture, "windows"),
    })
}

/// A file by its inode number, device memory by its name.
fn object(record: &Value) -> String {
    let object = ObjectId(number(record, "object"));
    object.allocation().map_or_else(|| object.0.to_string(), device_memory_name)
}

fn is_device_memory(record: &Value) -> bool {
    ObjectId(number(record, "object")).allocation().is_some()
}

fn windows(ledger: &Value) -> Vec<(String, u64)> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    // Device memory has an aperture of its own.
    for window in list(ledger, "windows").iter().filter(|window| !is_device_memory(window)) {
        *sums.entry(object(window)).or_default() += number(window, "length");
    }
    let mut sums: Vec<(String, u64)> = sums.into_iter().collect();
    sums.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    sums
}

fn mapping(record: &Value) -> Mapping {
    Mapping {
        number: number(record, "mapping"),
        importer: text(&record["importer"]),
        pid: number(record, "pid"),
        uid: number(record, "uid"),
        object: object(record),
        offset: number(record, "offset"),
        length: number(record, "length"),
        flags: u32::try_from(number(record, "flags")).unwrap_or(0),
        grants: number(record, "grants"),
        direct_bytes: number(record, "bytes_direct"),
        fallback_bytes: number(record, "bytes_fallback"),
        age_ms: number(record, "age_ms"),
    }
}

fn moved(info: &Value) -> Paths {
    let moved = &info["moved"];
    let fallback = moved["fallback"].as_object().into_iter().flatten().filter_map(|(_, bytes)| bytes.as_u64());
    Paths {
        window: number(moved, "direct-window") as f64,
        bar: number(moved, "direct-bar") as f64,
        fallback: fallback.map(|bytes| bytes as f64).sum(),
    }
}

fn seconds(before: &Sample, now: &Sample) -> f64 {
    now.at.saturating_sub(before.at).as_secs_f64().max(1e-3)
}

fn rates(before: &Sample, now: &Sample) -> Paths {
    let (old, new, seconds) = (moved(&before.info), moved(&now.info), seconds(before, now));
    let rate = |old: f64, new: f64| (new - old).max(0.0) / seconds;
    Paths { window: rate(old.window, new.window), bar: rate(old.bar, new.bar), fallback: rate(old.fallback, new.fallback) }
}

fn revocations(before: Option<&Sample>, now: &Sample, ledger: &Value) -> Revocations {
    // What a client gives back itself is no revocation.
    let by_trigger = || list(&now.info, "revocations").iter().filter(|record| record["trigger"] != "Unmap");
    let total = |name: &str| by_trigger().map(|record| number(record, name)).sum();
    let last = list(ledger, "revocations");
    let cut_ns: Vec<u64> = last.iter().rev().map(|record| number(record, "cut_ns")).collect();
    let mut sorted = cut_ns.clone();
    sorted.sort_unstable();
    let percentile = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied().unwrap_or(0);
    Revocations {
        grants: total("revoked"),
        enforced: total("enforced"),
        per_second: before.map(|before| (count(now).saturating_sub(count(before))) as f64 / seconds(before, now)),
        median_ns: percentile(50),
        p99_ns: percentile(99),
        cut_ns,
        last_trigger: last.first().map(|record| text(&record["trigger"])),
    }
}

/// Revocations since the mount, whatever each of them ended.
fn count(sample: &Sample) -> u64 {
    let counted = list(&sample.info, "revocations").iter().filter(|record| record["trigger"] != "Unmap");
    counted.map(|record| number(&record["cut"], "count")).sum()
}

fn refusals(before: Option<&Sample>, now: &Sample) -> Vec<Refusals> {
    let counted = now.info["refused"].as_object().into_iter().flatten();
    let mut refusals: Vec<Refusals> = counted
        .map(|(reason, total)| {
            let total = total.as_u64().unwrap_or(0);
            let since = |before: &Sample| total.saturating_sub(number(&before.info["refused"], reason)) as f64;
            let per_second = before.map_or(0.0, |before| since(before) / seconds(before, now));
            Refusals { reason: reason.clone(), total, per_second }
        })
        .collect();
    refusals.sort_by(|left, right| right.per_second.total_cmp(&left.per_second).then(right.total.cmp(&left.total)));
    refusals
}

fn pins(info: &Value, ledger: &Value) -> Pins {
    let line = |pin: &Value| {
        format!(
            "pin {}  {}  process {}  {}{}  {} at {}  {}  {}",
            number(pin, "pin"),
            text(&pin["importer"]),
            number(pin, "pid"),
            if is_device_memory(pin) { "" } else { "inode " },
            object(pin),
            output::bytes(number(pin, "length")),
            number(pin, "offset"),
            text(&pin["kind"]),
            text(&pin["state"])
        )
    };
    Pins {
        count: number(info, "pins"),
        used_bytes: number(info, "pinned_bytes"),
        quota_bytes: number(info, "pin_quota_bytes"),
        lines: list(ledger, "pins").iter().map(line).collect(),
    }
}

fn transfers(importer: &Value) -> Transfers {
    Transfers {
        importer: text(&importer["name"]),
        namespace: text(&importer["namespace"]),
        in_flight: number(importer, "transfers_in_flight"),
    }
}

/// How much there is, and who holds most of it.
fn device_memory(memory: &Value) -> Option<String> {
    memory["device_bytes"].as_u64()?;
    let most = list(memory, "processes").iter().max_by_key(|process| number(process, "device_bytes"));
    let most = most.map(|process| {
        format!("; most: process {} with {}", number(process, "pid"), output::bytes(number(process, "device_bytes")))
    });
    Some(format!(
        "{} free of {}, {}{}",
        output::bytes(number(memory, "free_bytes")),
        output::bytes(number(memory, "device_bytes")),
        output::count(list(memory, "allocations").len() as u64, "allocation"),
        most.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::scenes;

    #[test]
    fn what_happened_between_two_looks_is_counted_by_the_second() {
        let [before, now] = scenes::busy();
        let picture = Picture::new(Some(&before), &now);
        let rates = picture.rates.expect("two looks");
        assert_eq!((rates.window, rates.bar, rates.fallback), (4.0 * 1048576.0, 1048576.0, 2048.0));
        let refusals: Vec<_> = picture.refusals.iter().map(|refusal| (refusal.reason.as_str(), refusal.total)).collect();
        assert_eq!(refusals, [("Hole", 24), ("Busy", 100)], "what is refused now comes first");
        assert_eq!((picture.refusals[0].per_second, picture.refusals[1].per_second), (10.0, 0.0));
        let revocations = &picture.revocations;
        // Unmap is none.
        assert_eq!((revocations.grants, revocations.enforced, revocations.per_second), (20, 2, Some(3.0)));
        assert_eq!((revocations.cut_ns[0], revocations.median_ns, revocations.p99_ns), (100_000, 800_000, 1_600_000));
        assert_eq!(picture.windows, [("3".to_owned(), 4 << 20), ("2".to_owned(), 2 << 20), ("4".to_owned(), 2 << 20)]);
    }

    #[test]
    fn another_server_begins_anew() {
        let [before, mut now] = scenes::busy();
        now.info["server_pid"] = 99.into();
        let picture = Picture::new(Some(&before), &now);
        assert_eq!((picture.rates, picture.revocations.per_second), (None, None));
        // So does a look that is no later.
        assert_eq!(Picture::new(Some(&before), &before).rates, None);
    }

    #[test]
    fn counters_that_go_back_and_answers_without_anything_are_survived() {
        let [before, now] = scenes::busy();
        let earlier = Sample { at: before.at, ..now.clone() };
        let later = Sample { at: now.at, ..before };
        assert_eq!(Picture::new(Some(&earlier), &later).rates, Some(Paths::default()));
        let nothing = Sample { at: now.at, info: Value::Null, ledger: Ok(Value::Null), device_memory: Value::Null };
        let picture = Picture::new(None, &nothing);
        assert_eq!((picture.aperture, picture.mappings.len(), picture.no_ledger), (None, 0, None));
    }

    #[test]
    fn device_memory_has_a_name_and_is_no_part_of_the_aperture() {
        let [_, mut now] = scenes::busy();
        let memory = ObjectId::device_memory(3).0;
        let files = Picture::new(None, &now);
        if let Ok(ledger) = &mut now.ledger {
            ledger["windows"][0]["object"] = memory.into();
            ledger["pins"][0]["object"] = memory.into();
        }
        let picture = Picture::new(None, &now);
        let bytes = |picture: &Picture| picture.windows.iter().map(|(_, bytes)| bytes).sum::<u64>();
        assert_eq!(bytes(&picture), bytes(&files) - (2 << 20));
        assert!(picture.pins.lines[0].contains("  devmem-3  "), "{:?}", picture.pins.lines);
        assert!(files.pins.lines[0].contains("  inode 2  "), "{:?}", files.pins.lines);
    }

    #[test]
    fn mappings_without_grants_are_counted_apart() {
        let mut sample = scenes::sample(&[1, 2, 3]);
        if let Ok(ledger) = &mut sample.ledger {
            ledger["mappings"][1]["grants"] = 0.into();
            ledger["mappings_left_out"] = 7.into();
        }
        let picture = Picture::new(None, &sample);
        assert_eq!(picture.mapping_count, 2 + 7, "those that are not listed count");
        let numbers: Vec<u64> = picture.mappings.iter().map(|mapping| mapping.number).collect();
        assert_eq!((numbers, picture.fallen_back, picture.left_out), (vec![1, 3], 1, 7));
    }
}
