//! `peerfs mappings`: the ledger.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use peerfs_abi::MapFlags;
use peerfs_abi::devmem::device_memory_name;
use peerfs_p2p::ObjectId;
use serde_json::Value;

use super::server_info;
use crate::args::MountpointArgs;
use crate::output;

pub fn run(args: MountpointArgs) -> Result<ExitCode> {
    let ledger = server_info::mappings(&args.mountpoint)?;
    if args.json {
        output::print_json(&ledger)?;
    } else {
        output::print(&text(&ledger))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list<'a>(ledger: &'a Value, name: &str) -> &'a [Value] {
    ledger[name].as_array().map_or(&[], Vec::as_slice)
}

fn text(ledger: &Value) -> String {
    let mut text = String::new();
    let mappings = list(ledger, "mappings");
    let _ = writeln!(text, "{}", output::count(mappings.len() as u64, "mapping"));
    if !mappings.is_empty() {
        text.push_str(&output::render(&mapping_table(mappings)));
    }
    let pins = list(ledger, "pins");
    if !pins.is_empty() {
        let _ = writeln!(text, "\n{}", output::count(pins.len() as u64, "pin"));
        text.push_str(&output::render(&pin_table(pins)));
    }
    match number(ledger, "mappings_left_out") {
        0 => {}
        left_out => {
            let _ = writeln!(text, "and {} that are not listed", output::count(left_out, "mapping"));
        }
    }
    text.push_str(&fallbacks(mappings));
    let refusals = list(ledger, "refusals");
    if !refusals.is_empty() {
        text.push_str("\nlast refusals\n");
        text.push_str(&output::render(&refusal_table(refusals)));
    }
    text
}

fn number(record: &Value, name: &str) -> u64 {
    record[name].as_u64().unwrap_or(0)
}

/// A file by its inode number, device memory by its name.
fn object(record: &Value) -> String {
    let object = ObjectId(number(record, "object"));
    object.allocation().map_or_else(|| object.0.to_string(), device_memory_name)
}

fn mapping_table(mappings: &[Value]) -> comfy_table::Table {
    let titles =
        ["mapping", "importer", "process", "user", "inode", "offset", "length", "flags", "segments", "direct", "fallback", "age"];
    let mut table = output::table(&titles, &[5, 6, 8, 9, 10, 11]);
    for mapping in mappings {
        let plain = |name: &str| number(mapping, name).to_string();
        let flags = MapFlags::from_bits_truncate(u32::try_from(number(mapping, "flags")).unwrap_or(0));
        table.add_row([
            plain("mapping"),
            mapping["importer"].as_str().unwrap_or("?").to_owned(),
            plain("pid"),
            plain("uid"),
            object(mapping),
            plain("offset"),
            output::bytes(number(mapping, "length")),
            flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join("+"),
            plain("segments"),
            output::bytes(number(mapping, "bytes_direct")),
            output::bytes(number(mapping, "bytes_fallback")),
            age(mapping),
        ]);
    }
    table
}

/// Why bytes of the listed mappings fell back.
fn fallbacks(mappings: &[Value]) -> String {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let counted = mappings.iter().filter_map(|mapping| mapping["moved"]["fallback"].as_object());
    for (reason, bytes) in counted.flatten() {
        *sums.entry(reason).or_default() += bytes.as_u64().unwrap_or(0);
    }
    let parts: Vec<String> = sums.iter().map(|(reason, bytes)| format!("{} {reason}", output::bytes(*bytes))).collect();
    if parts.is_empty() { String::new() } else { format!("by fallback: {}\n", parts.join(", ")) }
}

fn pin_table(pins: &[Value]) -> comfy_table::Table {
    let titles = ["pin", "importer", "process", "user", "inode", "offset", "length", "access", "kind", "state", "memory", "age"];
    let mut table = output::table(&titles, &[5, 6, 10, 11]);
    for pin in pins {
        let plain = |name: &str| number(pin, name).to_string();
        let text = |name: &str| pin[name].as_str().unwrap_or("?").to_owned();
        table.add_row([
            plain("pin"),
            text("importer"),
            plain("pid"),
            plain("uid"),
            plain("object"),
            plain("offset"),
            output::bytes(number(pin, "length")),
            if pin["write"] == true { "write".to_owned() } else { "read".to_owned() },
            text("kind"),
            text("state"),
            output::bytes(number(pin, "bytes")),
            age(pin),
        ]);
    }
    table
}

fn refusal_table(refusals: &[Value]) -> comfy_table::Table {
    let mut table = output::table(&["reason", "inode", "offset", "length", "ago"], &[2, 3, 4]);
    for refusal in refusals {
        table.add_row([
            refusal["reason"].as_str().unwrap_or("?").to_owned(),
            object(refusal),
            number(refusal, "offset").to_string(),
            output::bytes(number(refusal, "length")),
            age(refusal),
        ]);
    }
    table
}

fn age(record: &Value) -> String {
    let milliseconds = number(record, "age_ms");
    format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100)
}
