//! The job files of `jobs/` under fio and under ours, on the same files: the same work, and JSON with the same keys.
//! `cargo test -p peerfs-bench --test fio -- --nocapture` prints a table; timings never fail.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::bench;
use serde_json::Value;

/// How far the shares of a mixed job may be apart, of all operations: four deviations of both generators together.
const MIX_TOLERANCE: f64 = 0.04;

/// How far mean block sizes may be apart where sizes are drawn: likewise.
const SIZE_TOLERANCE: f64 = 0.12;

fn job_files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let mut files: Vec<PathBuf> = fs::read_dir(directory).expect("jobs").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn fio(file: &Path, directory: &Path) -> Value {
    let mut command = Command::new("fio");
    command.arg(format!("--directory={}", directory.display())).arg("--output-format=json").arg(file).current_dir(directory);
    let output = command.output().expect("fio is missing: install the package fio");
    let text = String::from_utf8(output.stdout).expect("fio prints text");
    assert!(output.status.success(), "{}: {text}{}", file.display(), String::from_utf8_lossy(&output.stderr));
    // Notes come before the JSON.
    serde_json::from_str(&text[text.find('{').expect("JSON")..]).expect("JSON")
}

fn ours(file: &Path, directory: &Path) -> Value {
    let directory = format!("--directory={}", directory.display());
    let report = bench(&[&directory, file.to_str().expect("a plain name")]);
    assert_eq!(report.errors().count(), 0, "{report:?}");
    report.json()
}

fn jobs(report: &Value) -> &[Value] {
    report["jobs"].as_array().expect("jobs")
}

fn number(job: &Value, direction: &str, key: &str) -> u64 {
    job[direction][key].as_u64().unwrap_or_else(|| panic!("{direction}.{key}: {job}"))
}

/// `a.b.c` of every key, those left out whose names are data.
fn keys(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                found.insert(format!("{prefix}.{key}"));
                if !["global options", "job options", "disk_util", "peerfs"].contains(&key.as_str()) {
                    keys(inner, &format!("{prefix}.{key}"), found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, &format!("{prefix}[]"), found)),
        _ => {}
    }
}

fn key_set(report: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    keys(report, "", &mut found);
    found
}

fn compare_keys(name: &str, theirs: &Value, ours: &Value) {
    let (theirs, ours) = (key_set(theirs), key_set(ours));
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let added: Vec<_> = ours.difference(&theirs).collect();
    assert!(missing.is_empty(), "{name}: keys of fio that ours lacks: {missing:?}");
    assert_eq!(added, [".jobs[].peerfs"], "{name}: keys that fio does not have");
}

/// Compares a job's work in one direction.
fn compare_work(name: &str, theirs: &Value, ours: &Value, direction: &str) {
    let [theirs_bytes, ours_bytes] = [theirs, ours].map(|job| number(job, direction, "io_bytes"));
    let [theirs_ios, ours_ios] = [theirs, ours].map(|job| number(job, direction, "total_ios"));
    let all_ios: u64 = ["read", "write"].iter().map(|direction| number(theirs, direction, "total_ios")).sum();
    match name {
        "mixed" => {
            let apart = theirs_ios.abs_diff(ours_ios) as f64 / all_ios as f64;
            assert!(apart <= MIX_TOLERANCE, "{direction}: {theirs_ios} operations under fio, {ours_ios} under ours");
        }
        "bssplit" | "bsrange" => {
            // The last block may reach beyond the size, where blocks may come again.
            let slack = if name == "bssplit" { 64 << 10 } else { 0 };
            assert!(
                theirs_bytes.abs_diff(ours_bytes) <= slack,
                "{name}: {theirs_bytes} bytes under fio, {ours_bytes} under ours"
            );
            let mean = |bytes: u64, ios: u64| bytes as f64 / ios.max(1) as f64;
            let (theirs, ours) = (mean(theirs_bytes, theirs_ios), mean(ours_bytes, ours_ios));
            assert!((theirs - ours).abs() <= SIZE_TOLERANCE * theirs, "{name}: blocks of {theirs} and {ours} bytes");
        }
        _ => assert_eq!((theirs_bytes, theirs_ios), (ours_bytes, ours_ios), "{name}: {direction}"),
    }
}

fn compare_job(theirs: &Value, ours: &Value) {
    let name = theirs["jobname"].as_str().expect("a name");
    assert_eq!(ours["jobname"], name);
    for key in ["groupid", "error"] {
        assert_eq!(theirs[key], ours[key], "{name}: {key}");
    }
    // fio leaves a few out.
    for (option, value) in theirs["job options"].as_object().expect("options") {
        assert_eq!(&ours["job options"][option], value, "{name}: {option}");
    }
    for direction in ["read", "write", "trim"] {
        compare_work(name, theirs, ours, direction);
    }
    let total = |job: &Value| number(job, "read", "io_bytes") + number(job, "write", "io_bytes");
    if name == "mixed" {
        assert_eq!(total(theirs), total(ours), "both directions together");
    }
    assert_eq!(number(theirs, "sync", "total_ios"), number(ours, "sync", "total_ios"), "{name}: fsync");
}

fn print_row(theirs: &Value, ours: &Value) {
    for direction in ["read", "write"] {
        let [bytes, ios, rates] =
            ["io_bytes", "total_ios", "bw"].map(|key| [theirs, ours].map(|job| number(job, direction, key)));
        if bytes[0] > 0 {
            let name = theirs["jobname"].as_str().unwrap_or_default();
            let ratio = rates[1] as f64 / rates[0].max(1) as f64;
            println!(
                "| {name} | {direction} | {} | {} | {} | {} | {} | {} | {ratio:.2} |",
                bytes[0], bytes[1], ios[0], ios[1], rates[0], rates[1]
            );
        }
    }
}

#[test]
fn fio_and_ours_do_the_same_work_and_report_the_same_keys() {
    let files = job_files();
    assert!(files.len() >= 10, "{files:?}");
    println!("| job | | bytes (fio) | bytes (ours) | operations (fio) | (ours) | KiB/s (fio) | (ours) | ratio |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for file in files {
        let scratch = tempfile::tempdir().expect("a directory");
        let (theirs, ours) = (fio(&file, scratch.path()), ours(&file, scratch.path()));
        compare_keys(&file.display().to_string(), &theirs, &ours);
        assert_eq!(
            theirs["global options"].as_object().map(serde_json::Map::len),
            ours["global options"].as_object().map(serde_json::Map::len)
        );
        assert_eq!(jobs(&theirs).len(), jobs(&ours).len(), "{}", file.display());
        for (theirs, ours) in jobs(&theirs).iter().zip(jobs(&ours)) {
            print_row(theirs, ours);
            compare_job(theirs, ours);
        }
    }
}
