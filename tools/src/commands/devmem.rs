//! `peerfs devmem`: who holds how much device memory, and where it is.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use super::server_info;
use crate::args::MountpointArgs;
use crate::output;

pub fn run(args: MountpointArgs) -> Result<ExitCode> {
    let record = server_info::device_memory(&args.mountpoint)?;
    if args.json {
        output::print_json(&record)?;
    } else {
        output::print(&text(&record))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn number(record: &Value, name: &str) -> u64 {
    record[name].as_u64().unwrap_or(0)
}

fn list<'a>(record: &'a Value, name: &str) -> &'a [Value] {
    record[name].as_array().map_or(&[], Vec::as_slice)
}

fn text(record: &Value) -> String {
    let bytes = |name: &str| output::bytes(number(record, name));
    let mut text = String::new();
    let free = output::count(number(record, "free_runs"), "run");
    let _ = writeln!(text, "{:<12} {} free of {}, in {free}", "device", bytes("free_bytes"), bytes("device_bytes"));
    let _ = writeln!(
        text,
        "{:<12} {} of {} in use; {} moved out, {} moved back",
        "main memory",
        bytes("main_bytes_used"),
        bytes("main_bytes_max"),
        number(record, "moved_out"),
        number(record, "moved_in")
    );
    let _ = writeln!(text, "{:<12} {} per user, {} per process", "limits", bytes("user_bytes_max"), bytes("process_bytes_max"));
    for (title, name, who) in [("user", "users", "uid"), ("process", "processes", "pid")] {
        let accounts = list(record, name);
        if !accounts.is_empty() {
            text.push('\n');
            text.push_str(&output::render(&account_table(title, accounts, who)));
        }
    }
    let allocations = list(record, "allocations");
    if !allocations.is_empty() {
        text.push('\n');
        text.push_str(&output::render(&allocation_table(allocations)));
    }
    text
}

fn account_table(title: &str, accounts: &[Value], who: &str) -> comfy_table::Table {
    let mut table = output::table(&[title, "allocations", "on device", "migrated"], &[0, 1, 2, 3]);
    for account in accounts {
        table.add_row([
            number(account, who).to_string(),
            number(account, "allocations").to_string(),
            output::bytes(number(account, "device_bytes")),
            output::bytes(number(account, "migrated_bytes")),
        ]);
    }
    table
}

fn allocation_table(allocations: &[Value]) -> comfy_table::Table {
    let mut table =
        output::table(&["allocation", "process", "user", "mode", "size", "where", "pieces", "mapped"], &[1, 2, 3, 4, 6]);
    for allocation in allocations {
        table.add_row([
            peerfs_abi::devmem::device_memory_name(number(allocation, "id")),
            number(allocation, "pid").to_string(),
            number(allocation, "uid").to_string(),
            format!("{:03o}", number(allocation, "mode")),
            output::bytes(number(allocation, "bytes")),
            if allocation["migrated"] == true { "main memory" } else { "device" }.to_owned(),
            number(allocation, "pieces").to_string(),
            if allocation["mapped"] == true { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}
