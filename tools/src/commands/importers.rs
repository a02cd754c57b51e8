//! `peerfs importers`: who can ask for mappings, and who has registered.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use peerfs_abi::names::{CUDA_PREFIX, IMPORTERS};
use serde_json::{Value, json};

use super::server_info;
use crate::args::MountpointArgs;
use crate::output;

/// What is special of the importers that `query` knows without anybody having registered them.
fn about(name: &str) -> &'static str {
    match name {
        "cpu" => "the processor, in the client's process: honours revocation, reads, writes, does atomic operations",
        "static" => "cannot honour revocation: pins only",
        "readonly" => "honours revocation, cannot write",
        "nonatomic" => "honours revocation, reads and writes, no atomic operations",
        _ if name.starts_with(CUDA_PREFIX) => "a GPU, in the client's process: reads and writes, pins only",
        _ => "registered by a client",
    }
}

pub fn run(args: MountpointArgs) -> Result<ExitCode> {
    let ledger = server_info::mappings(&args.mountpoint)?;
    let info = server_info::info(&args.mountpoint)?;
    let mut contexts: BTreeMap<&str, u64> = IMPORTERS.iter().map(|(name, _)| (*name, 0)).collect();
    let driven: BTreeMap<&str, String> = list(&info["importers"])
        .iter()
        .map(|importer| {
            let (name, blocks) = (importer["name"].as_str().unwrap_or("?"), importer["blocks"].as_u64().unwrap_or(0));
            let about = format!(
                "driven by the server, for peerfs copy: {} with {blocks} logical blocks of {} bytes, {} transfers under way",
                importer["namespace"].as_str().unwrap_or("?"),
                importer["block_bytes"],
                importer["transfers_in_flight"]
            );
            (name, about)
        })
        .collect();
    contexts.extend(driven.keys().map(|name| (*name, 0)));
    for context in list(&ledger["contexts"]) {
        *contexts.entry(context["importer"].as_str().unwrap_or("?")).or_default() += 1;
    }
    let about = |name: &str| driven.get(name).cloned().unwrap_or_else(|| about(name).to_owned());
    if args.json {
        let list: Vec<Value> =
            contexts.iter().map(|(name, count)| json!({ "importer": name, "contexts": count, "about": about(name) })).collect();
        output::print_json(&json!({ "importers": list }))?;
    } else {
        let mut table = output::table(&["importer", "contexts", "about"], &[1]);
        for (name, count) in &contexts {
            table.add_row([(*name).to_owned(), count.to_string(), about(name)]);
        }
        output::print(&output::render(&table))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
