//! `peerfs nvme`: the controllers of this machine, and who has them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use peerfs_blockdev::pci::{Bar, BarKind, Binding, Controller, Finding, Host, PciError, controllers, examine, unbind};
use serde_json::{Value, json};

use crate::args::{NvmeBindArgs, NvmeCommand, NvmeListArgs, NvmeUnbindArgs};
use crate::output;

/// A server that was just told to end lets go of its controller within this.
const LOCK_WAIT: Duration = Duration::from_secs(2);

pub fn run(command: NvmeCommand) -> Result<ExitCode> {
    match command {
        NvmeCommand::List(args) => list(&args),
        NvmeCommand::Bind(args) => bind(&args),
        NvmeCommand::Unbind(args) => give_back(&args),
    }
}

fn bind(args: &NvmeBindArgs) -> Result<ExitCode> {
    let binding = Binding::bind(&Host::system(), args.address, args.force, LOCK_WAIT)?;
    let (address, group, already) = (args.address.to_string(), binding.group(), binding.was_bound());
    let former = binding.former_driver().map(str::to_owned);
    binding.keep();
    if args.json {
        let report = json!({
            "address": address, "driver": "vfio-pci", "iommu_group": group, "already": already, "former_driver": former,
        });
        output::print_json(&report)?;
    } else if already {
        output::print(&format!("{address}: vfio-pci has had it already, IOMMU group {group}\n"))?;
    } else {
        let before = former.map_or_else(String::new, |driver| format!(", before {driver}"));
        output::print(&format!("{address}: vfio-pci has it{before}, IOMMU group {group}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn give_back(args: &NvmeUnbindArgs) -> Result<ExitCode> {
    let driver = unbind(&Host::system(), args.address, LOCK_WAIT)?;
    let address = args.address.to_string();
    if args.json {
        output::print_json(&json!({ "address": address, "driver": driver }))?;
    } else {
        let now =
            driver.map_or_else(|| "no driver: the kernel found none for it".to_owned(), |driver| format!("driver {driver}"));
        output::print(&format!("{address}: {now}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &NvmeListArgs) -> Result<ExitCode> {
    let host = Host::system();
    let found = controllers(&host)?;
    let records: Result<Vec<Value>, PciError> = found.iter().map(|controller| record(&host, controller)).collect();
    let records = records?;
    if args.json {
        output::print_json(&json!({ "controllers": records }))?;
    } else if records.is_empty() {
        output::print("no NVMe controllers on this machine's PCI bus\n")?;
    } else {
        output::print(&text(&records))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn record(host: &Host, controller: &Controller) -> Result<Value, PciError> {
    let device = &controller.device;
    let namespaces = controller.namespaces.iter().map(|namespace| {
        let findings = examine(host, namespace)?;
        Ok(json!({
            "block": namespace.block,
            "size_bytes": namespace.size_bytes,
            "partitions": namespace.partitions,
            "in_use": findings.iter().any(Finding::forbids),
            "findings": findings.iter().map(Finding::to_string).collect::<Vec<_>>(),
        }))
    });
    let namespaces = namespaces.collect::<Result<Vec<Value>, PciError>>()?;
    Ok(json!({
        "address": device.address.to_string(),
        "vendor": format!("{:04x}", device.vendor),
        "device": format!("{:04x}", device.device),
        "model": controller.model,
        "serial": controller.serial,
        "driver": device.driver,
        "iommu_group": device.group.as_ref().map(|group| group.number),
        "group_members": device.group.iter().flat_map(|group| &group.members).map(|member| &member.name).collect::<Vec<_>>(),
        "namespaces": namespaces,
        "bars": device.bars.iter().map(bar).collect::<Vec<_>>(),
    }))
}

fn bar(bar: &Bar) -> Value {
    let kind = match bar.kind {
        BarKind::Io => "io",
        BarKind::Memory32 => "memory32",
        BarKind::Memory64 => "memory64",
    };
    json!({
        "index": bar.index,
        "size_bytes": bar.bytes,
        "kind": kind,
        "prefetchable": bar.prefetchable,
        "may_be_cmb_or_pmr": bar.may_be_aperture(),
    })
}

fn text(records: &[Value]) -> String {
    let mut table = output::table(&["address", "driver", "group", "model", "serial", "BARs for CMB or PMR"], &[2]);
    for record in records {
        let word = |name: &str| record[name].as_str().unwrap_or("-").to_owned();
        let identifiers = || format!("{}:{}", word("vendor"), word("device"));
        table.add_row([
            word("address"),
            word("driver"),
            record["iommu_group"].as_u64().map_or_else(|| "-".to_owned(), |group| group.to_string()),
            record["model"].as_str().map_or_else(identifiers, str::to_owned),
            word("serial"),
            bars(&record["bars"]),
        ]);
    }
    let mut text = output::render(&table);
    let namespaces = namespace_table(records);
    if namespaces.row_count() > 0 {
        text.push('\n');
        text.push_str(&output::render(&namespaces));
    }
    text
}

fn bars(bars: &Value) -> String {
    let candidates: Vec<String> = list_of(bars)
        .iter()
        .filter(|bar| bar["may_be_cmb_or_pmr"] == true)
        .map(|bar| format!("BAR{} {}", bar["index"], output::bytes(bar["size_bytes"].as_u64().unwrap_or(0))))
        .collect();
    if candidates.is_empty() { "-".to_owned() } else { candidates.join(", ") }
}

fn namespace_table(records: &[Value]) -> comfy_table::Table {
    let mut table = output::table(&["namespace", "address", "size", "found"], &[2]);
    for record in records {
        for namespace in list_of(&record["namespaces"]) {
            let findings: Vec<&str> = list_of(&namespace["findings"]).iter().filter_map(Value::as_str).collect();
            table.add_row([
                namespace["block"].as_str().unwrap_or_default().to_owned(),
                record["address"].as_str().unwrap_or_default().to_owned(),
                output::bytes(namespace["size_bytes"].as_u64().unwrap_or(0)),
                if findings.is_empty() { "nothing".to_owned() } else { findings.join("; ") },
            ]);
        }
    }
    table
}

fn list_of(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_with_and_without_a_driver() {
        let bars = json!([{ "index": 0, "size_bytes": 16384, "may_be_cmb_or_pmr": false },
                          { "index": 4, "size_bytes": 268_435_456, "may_be_cmb_or_pmr": true }]);
        let records = [
            json!({ "address": "0000:01:00.0", "vendor": "1b36", "device": "0010", "model": "QEMU NVMe Ctrl", "serial": "A",
                    "driver": "nvme", "iommu_group": 7, "bars": [],
                    "namespaces": [{ "block": "nvme0n1", "size_bytes": 1_048_576,
                                     "findings": ["nvme0n1 is mounted at /srv", "nvme0n1 holds an xfs filesystem"] }] }),
            json!({ "address": "0000:02:00.0", "vendor": "1b36", "device": "0010", "model": null, "serial": null,
                    "driver": null, "iommu_group": null, "bars": bars, "namespaces": [] }),
        ];
        let lines: Vec<String> =
            text(&records).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[1], "0000:01:00.0 nvme 7 QEMU NVMe Ctrl A -");
        assert_eq!(lines[2], "0000:02:00.0 - - 1b36:0010 - BAR4 256.0 MiB");
        assert_eq!(lines[5], "nvme0n1 0000:01:00.0 1.0 MiB nvme0n1 is mounted at /srv; nvme0n1 holds an xfs filesystem");
    }
}
