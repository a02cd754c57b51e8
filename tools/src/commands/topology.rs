//! `peerfs topology`: which devices reach each other's memory, and which hop refuses the others.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::server_info;
use crate::args::MountpointArgs;
use crate::output;

pub fn run(args: MountpointArgs) -> Result<ExitCode> {
    let topology = server_info::topology(&args.mountpoint)?;
    if args.json {
        output::print_json(&json!({ "topology": topology }))?;
    } else if topology.is_null() {
        bail!(
            "{}: no topology is known to this mount, so importers on a bus get NoPeerPath; mount with -o topology=FILE",
            args.mountpoint.display()
        );
    } else {
        output::print(&text(&topology))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(topology: &Value) -> String {
    let mut text = matrix(topology);
    text.push_str("links passed from the row's device to the column's memory; -: refused; !: reached, but refused otherwise\n");
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
