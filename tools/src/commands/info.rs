//! `peerfs info`: a mount as its server sees it, or an unmounted volume.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use peerfs_fs::server::LOCK_WAIT;
use peerfs_fs::store::{Summary, probe};
use serde_json::{Value, json};

use super::server_info;
use crate::args::InfoArgs;
use crate::{config, controller, output, volume_check};

pub fn run(args: InfoArgs) -> Result<ExitCode> {
    let path = Path::new(&args.target);
    // A dead mount cannot be looked at, but it is there: let the server's absence be the answer.
    let is_mount =
        std::fs::metadata(path).map_or_else(|error| error.kind() == std::io::ErrorKind::NotConnected, |found| found.is_dir());
    let text = if args.metrics {
        server_info::metrics(path)?
    } else if is_mount {
        let info = server_info::info(path).map_err(anyhow::Error::from).with_context(|| format!("info {}", path.display()))?;
        if args.json { format!("{info:#}\n") } else { mount_text(&info) }
    } else {
        let device = config::device(&args.target)?;
        let _held = controller::hold(&device, LOCK_WAIT)?;
        let summary = probe(&volume_check::open_for_reading(&device)?)?;
        if args.json {
            format!(
                "{:#}\n",
                json!({ "device": device.to_string(), "mounted": false, "volume": serde_json::to_value(&summary)? })
            )
        } else {
            volume_text(&device.to_string(), &summary)
        }
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn volume_text(device: &str, summary: &Summary) -> String {
    let last = match (summary.clean, summary.same_host) {
        (true, true) => "closed in order",
        (true, false) => "closed in order, on another machine",
        (false, true) => "not closed in order: in use, or its server died",
        (false, false) => "not closed in order, on another machine",
    };
    lines(&[
        ("device", device.to_owned()),
        ("volume", format!("{} \"{}\", UUID {}", summary.format, summary.label, summary.uuid)),
        ("size", format!("{}, of which {} metadata", output::bytes(summary.size_bytes), output::bytes(summary.metadata_bytes))),
        ("last mount", format!("{last}; {} so far", output::count(summary.mount_count, "mount"))),
    ])
}

fn lines(pairs: &[(&str, String)]) -> String {
    pairs.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<12} {value}");
        text
    })
}

fn mount_text(info: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let bytes = |value: &Value| output::bytes(value.as_u64().unwrap_or(0));
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let (device, volume) = (&info["device"], &info["volume"]);
    let access = if info["read_only"] == true { "read-only" } else { "read-write" };
    let io = if device["direct_io"] == true { "direct I/O" } else { "through the page cache" };
    let mut text = lines(&[
        ("mount", format!("{}, {access}, server {}", text(&info["mountpoint"]), number(&info["server_pid"]))),
        ("device", format!("{}, {}, {io}", text(&device["name"]), bytes(&device["size_bytes"]))),
        ("volume", format!("\"{}\", UUID {}", text(&volume["label"]), text(&volume["uuid"]))),
        (
            "space",
            format!(
                "{} free of {}, {} metadata, {} in quarantine",
                bytes(&volume["free_bytes"]),
                bytes(&volume["capacity_bytes"]),
                bytes(&volume["metadata_bytes"]),
                bytes(&volume["quarantined_bytes"])
            ),
        ),
        ("aperture", aperture(&info["aperture"])),
        ("topology", topology(&info["topology"])),
        (
            "mapping",
            format!(
                "policy {}, grants by {}, deadline {} ms",
                text(&info["direct"]),
                text(&info["grants"]),
                number(&info["deadline_ms"])
            ),
        ),
        (
            "metrics",
            info["metrics"].as_str().map_or_else(|| "not served".to_owned(), |address| format!("http://{address}/metrics")),
        ),
        (
            "in use",
            format!(
                "{}, {}, {}, {} ({} held for write-back), {}",
                output::count(number(&info["sessions"]), "session"),
                output::count(number(&info["contexts"]), "context"),
                output::count(number(&info["mappings"]), "mapping"),
                output::count(number(&info["windows"]), "window"),
                number(&info["windows_held"]),
                output::count(number(&info["pins"]), "pin"),
            ),
        ),
    ]);
    text.push_str(&pins(info));
    text.push_str(&device_memory(&info["device_memory"]));
    text.push_str(&revocations(&info["revocations"]));
    text.push_str(&moved(info));
    text.push_str(&limits(&info["limits"]));
    text
}

fn limits(limits: &Value) -> String {
    let limits = limits.as_array().map_or(&[][..], Vec::as_slice);
    if limits.is_empty() {
        return lines(&[("limits", "none".to_owned())]);
    }
    let mut text = String::new();
    for limit in limits {
        let word = |key: &str| limit[key].as_str().unwrap_or("?");
        text.push_str(&lines(&[
            ("limit", format!("{}: {}", word("name"), word("what"))),
            ("", format!("{}; {}", word("why"), word("remedy"))),
        ]));
    }
    text
}

fn topology(topology: &Value) -> String {
    let endpoints = output::count(topology["endpoints"].as_u64().unwrap_or(0), "device");
    let source = if topology["source"] == "file" { "a file (-o topology=)" } else { "the machine's PCI bus" };
    let storage = match topology["storage"].as_str() {
        Some(address) => format!("the storage device is {address}"),
        None => "the storage device is not among them".to_owned(),
    };
    format!("{endpoints}, from {source}; {storage}")
}

fn aperture(aperture: &Value) -> String {
    let Some(name) = aperture["name"].as_str() else { return "none: mount with --cmb SIZE to get one".to_owned() };
    let bytes = |name: &str| output::bytes(aperture[name].as_u64().unwrap_or(0));
    let lent =
        if aperture["grantable"] == false { ", for importers in the server only (--cmb SIZE adds a software CMB)" } else { "" };
    format!(
        "{name}, {}, {}, {} of {} used in {}{lent}",
        aperture["kind"].as_str().unwrap_or("?"),
        aperture["path"].as_str().unwrap_or("?"),
        bytes("used_bytes"),
        bytes("capacity_bytes"),
        output::count(aperture["windows"].as_u64().unwrap_or(0), "window")
    )
}

fn pins(info: &Value) -> String {
    let bytes = |name: &str| output::bytes(info[name].as_u64().unwrap_or(0));
    let kind = if info["dmabuf_pins"] == true { "writable ones are dma-bufs" } else { "memory files (no /dev/udmabuf)" };
    let text = format!(
        "{} of {} used, {} for each user; {kind}",
        bytes("pinned_bytes"),
        bytes("pin_quota_bytes"),
        bytes("pin_quota_user_bytes")
    );
    lines(&[("pins", text)])
}

fn device_memory(memory: &Value) -> String {
    let bytes = |name: &str| output::bytes(memory[name].as_u64().unwrap_or(0));
    let Some(allocations) = memory["allocations"].as_u64() else { return String::new() };
    let text = format!(
        "{} free of {}, {}, {} of them in main memory",
        bytes("free_bytes"),
        bytes("device_bytes"),
        output::count(allocations, "allocation"),
        bytes("main_bytes_used")
    );
    lines(&[("devmem", text)])
}

fn moved(info: &Value) -> String {
    let (moved, refused) = (&info["moved"], &info["refused"]);
    let bytes = |name: &str| output::bytes(moved[name].as_u64().unwrap_or(0));
    let mut parts = vec![format!("{} direct-window", bytes("direct-window")), format!("{} direct-bar", bytes("direct-bar"))];
    for (reason, bytes) in moved["fallback"].as_object().into_iter().flatten() {
        parts.push(format!("{} fallback ({reason})", output::bytes(bytes.as_u64().unwrap_or(0))));
    }
    let refusals = refused.as_object().into_iter().flatten().map(|(reason, count)| format!("{count} {reason}"));
    let refusals: Vec<String> = refusals.collect();
    let refused = if refusals.is_empty() { "nothing".to_owned() } else { refusals.join(", ") };
    lines(&[("moved", parts.join(", ")), ("refused", refused)])
}

fn revocations(records: &Value) -> String {
    let records = records.as_array().map_or(&[][..], Vec::as_slice);
    if records.is_empty() {
        return lines(&[("revocations", "none".to_owned())]);
    }
    let mut table = output::table(
        &["revocations", "grants", "enforced", "cut p50", "p99", "max", "write-back p50", "p99", "max"],
        &[1, 2, 3, 4, 5, 6, 7, 8],
    );
    for record in records {
        let time = |what: &str, name: &str| output::nanoseconds(record[what][name].as_u64().unwrap_or(0));
        table.add_row([
            record["trigger"].as_str().unwrap_or("?").to_owned(),
            record["revoked"].to_string(),
            record["enforced"].to_string(),
            time("cut", "p50_ns"),
            time("cut", "p99_ns"),
            time("cut", "max_ns"),
            time("write_back", "p50_ns"),
            time("write_back", "p99_ns"),
            time("write_back", "max_ns"),
        ]);
    }
    output::render(&table)
}
