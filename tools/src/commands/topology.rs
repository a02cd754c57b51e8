//! `peerfs topology`: which devices reach each other's memory, and which hop refuses the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Result;
use peerfs_blockdev::pci::Host;
use peerfs_p2p::topology::{Scope, Topology};
use serde_json::{Value, json};

use super::server_info;
use crate::args::TopologyArgs;
use crate::output;

pub fn run(args: TopologyArgs) -> Result<ExitCode> {
    let topology = match &args.mountpoint {
        Some(mountpoint) => server_info::topology(mountpoint)?,
        None => machine(if args.all { Scope::All } else { Scope::Usual })?,
    };
    if args.json {
        output::print_json(&json!({ "topology": topology }))?;
    } else {
        output::print(&text(&topology))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn machine(scope: Scope) -> Result<Value> {
    let topology = Topology::of_machine(&Host::system(), None)?;
    Ok(serde_json::to_value(topology.report(scope))?)
}

fn text(topology: &Value) -> String {
    let mut text = matrix(topology);
    text.push_str("links from the row's device to the column's memory; -: refused; !: reached, but refused otherwise\n");
    text.push_str(&left_out(&topology["left_out"]));
    let refused =
        list(&topology["pairs"]).iter().flat_map(|pair| list(&pair["refusals"]).iter().map(move |refusal| (pair, refusal)));
    let lines: Vec<String> = refused
        .map(|(pair, refusal)| {
            let hop = word(&refusal["hop"]);
            format!(
                "{} -> {}: {} at {hop}: {}\n",
                word(&pair["from"]),
                word(&pair["to"]),
                word(&refusal["reason"]),
                word(&refusal["why"])
            )
        })
        .collect();
    if !lines.is_empty() {
        text.push('\n');
        lines.iter().for_each(|line| text.push_str(line));
        text.push_str(&remedies(topology));
    }
    text
}

/// What is not in the matrix.
fn left_out(left_out: &Value) -> String {
    let mut text = String::new();
    let count = |name: &str| left_out[name].as_u64().unwrap_or(0);
    if count("other_classes") > 0 {
        let devices = output::count(count("other_classes"), "device");
        let _ = writeln!(text, "left out: {devices} that neither store, compute nor communicate (peerfs topology --all)");
    }
    if count("beyond_limit") > 0 {
        let _ = writeln!(text, "left out: {}, for want of room", output::count(count("beyond_limit"), "device"));
    }
    for (address, why) in left_out["undescribed"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "left out: {address}: {}", word(why));
    }
    text
}

/// Each thing to do once, with the hop that it is for.
fn remedies(topology: &Value) -> String {
    let refusals = list(&topology["pairs"]).iter().flat_map(|pair| list(&pair["refusals"]));
    let remedies: BTreeSet<(&str, &str)> = refusals
        .map(|refusal| (word(&refusal["hop"]), word(&refusal["remedy"])))
        .filter(|(_, remedy)| !remedy.is_empty())
        .collect();
    let mut text = String::from("\nwhat to do:\n");
    for (hop, remedy) in remedies {
        let _ = writeln!(text, "{hop}: {remedy}");
    }
    text
}

fn matrix(topology: &Value) -> String {
    let endpoints = list(&topology["endpoints"]);
    let storage = word(&topology["storage"]["address"]);
    let cells: BTreeMap<(&str, &str), String> =
        list(&topology["pairs"]).iter().map(|pair| ((word(&pair["from"]), word(&pair["to"])), cell(pair))).collect();
    let mut titles = vec!["from \\ to"];
    titles.extend(endpoints.iter().map(|endpoint| word(&endpoint["address"])));
    titles.push("device");
    let right: Vec<usize> = (1..=endpoints.len()).collect();
    let mut table = output::table(&titles, &right);
    for endpoint in endpoints {
        let from = word(&endpoint["address"]);
        let mut row = vec![from.to_owned()];
        row.extend(endpoints.iter().map(|to| cells.get(&(from, word(&to["address"]))).cloned().unwrap_or_else(|| "0".into())));
        let mut about = word(&endpoint["name"]).to_owned();
        if from == storage {
            let _ = write!(about, "{}the storage device", if about.is_empty() { "" } else { ", " });
        }
        row.push(about);
        table.add_row(row);
    }
    output::render(&table)
}

fn cell(pair: &Value) -> String {
    match (pair["distance"].as_u64(), list(&pair["refusals"]).is_empty()) {
        (Some(distance), true) => distance.to_string(),
        (Some(distance), false) => format!("{distance}!"),
        (None, _) => "-".into(),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
