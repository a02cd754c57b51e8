//! `peerfs bench`: its words, and the engine `peerfs` on a real mount. Needs /dev/fuse and the right to mount.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, fail, peerfs, succeed};
use serde_json::Value;

/// What the jobs move, bytes.
const SIZE: u64 = 8 << 20;

/// Longest that a run of two seconds may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A volume with this mount option, and the words that name a file of it.
fn mounted(option: &str) -> (Scratch, Vec<String>) {
    let scratch = Scratch::new();
    succeed(&["mount", "mem:64M", &scratch.mnt(), "-o", option]);
    let words = ["bench", "--output-format=json", "--ioengine=peerfs", "--size=8m"].map(str::to_owned);
    let words = words.into_iter().chain([format!("--filename={}", scratch.text("mnt/f"))]).collect();
    (scratch, words)
}

fn line<'w>(words: &'w [String], rest: &'w str) -> Vec<&'w str> {
    words.iter().map(String::as_str).chain(rest.split(' ')).collect()
}

/// Runs it; answers the first job.
fn job(words: &[String], rest: &str) -> Value {
    let report: Value = serde_json::from_str(&succeed(&line(words, rest))).expect("JSON");
    report["jobs"][0].clone()
}

#[test]
fn wrong_words_exit_with_2_and_name_the_place() {
    let scratch = Scratch::new();
    let file = scratch.text("x.fio");
    fs::write(&file, "[a]\nrw=read\niodeph=3\n").expect("room");
    assert!(fail(2, &["bench", &file]).contains(&format!("{file}:3: unknown option iodeph: did you mean iodepth?")));
    assert!(fail(2, &["bench", "--name=a", "--bs=4q"]).contains("command line: bs: \"4q\": expected a size"));
    let nowhere = scratch.text("no/such/out");
    assert!(fail(1, &["bench", "--name=a", "--output", &nowhere]).contains("cannot write"));
    fail(2, &["bench"]);
    fail(2, &["bench", "--bs=4k"]);
    assert!(fail(1, &["bench", &scratch.text("missing.fio")]).contains("cannot read the job file"));
    assert!(succeed(&["bench", "--help"]).contains("--path=direct"));
}

#[test]
fn reports_go_where_they_are_sent() {
    let scratch = Scratch::new();
    let (directory, output) = (format!("--directory={}", scratch.text("")), scratch.text("out"));
    let words = ["bench", &directory, "--name=a", "--rw=write", "--size=64k", "--output", &output, "--output-format=json,normal"];
    assert_eq!(succeed(&words), "");
    let text = fs::read_to_string(&output).expect("written");
    let (json, people) = text.split_once("\n}\n").expect("JSON first");
    let json: Value = serde_json::from_str(&format!("{json}\n}}")).expect("JSON");
    assert_eq!(json["jobs"][0]["write"]["io_bytes"], 64 << 10);
    assert!(people.contains("Run status group 0"), "{people}");
}

#[test]
fn bytes_go_the_way_that_is_asked_for_and_are_counted() {
    let (scratch, words) = mounted("noatime");
    for (choice, direct) in [("auto", true), ("direct", true), ("fallback", false)] {
        for kind in ["randread", "randwrite --verify=crc32c", "randrw --fsync=64"] {
            let job = job(&words, &format!("--name=a --bs=4k --path={choice} --rw={kind}"));
            let moved: u64 = ["read", "write"].iter().filter_map(|direction| job[direction]["io_bytes"].as_u64()).sum();
            assert!(moved >= SIZE, "{choice}, {kind}: {job:#}");
            let paths = &job["peerfs"];
            let expected = if direct { (moved, 0) } else { (0, moved) };
            let counted = ["bytes_direct", "bytes_fallback"].map(|key| paths[key].as_u64().expect("a count"));
            assert_eq!((counted[0], counted[1]), expected, "{choice}, {kind}: {paths}");
            assert_eq!(paths["fallback_reasons"].get("requested").is_some(), !direct, "{paths}");
        }
    }
    let text = succeed(&["bench", &words[4], "--name=a", "--ioengine=peerfs", "--size=1m"]);
    assert!(text.contains("paths        : direct-window=1024KiB, direct-bar=0B, fallback=0B"), "{text}");
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_refused_range_fails_only_where_direct_is_asked_for() {
    let (scratch, words) = mounted("direct=never");
    let said = fail(1, &line(&words, "--name=a --rw=read --path=direct"));
    assert!(said.contains("job a: path=direct: ") && said.contains("bytes from offset 0 on are not direct: Policy"), "{said}");
    let job = job(&words, "--name=a --rw=read --bs=64k --path=auto");
    assert_eq!(job["peerfs"]["fallback_reasons"]["Policy"], SIZE, "{job:#}");
    let said = fail(1, &line(&words, "--name=a --rw=read --importer=gpu"));
    assert!(said.contains("expected one of cpu, static"), "{said}");
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn importers_that_cannot_be_revoked_fall_back() {
    let (scratch, words) = mounted("noatime");
    let job = job(&words, "--name=a --rw=read --bs=64k --importer=static");
    assert_eq!(job["peerfs"]["fallback_reasons"]["NotifierRequired"], SIZE, "{job:#}");
    succeed(&["umount", &scratch.mnt()]);
}

/// A run of two seconds, under which `disturb` is called again and again while it answers true; answers its paths.
fn disturbed(choice: &str, disturb: impl Fn(&Scratch) -> bool) -> Value {
    let (scratch, words) = mounted("noatime");
    let rest = format!("--name=a --rw=randrw --bs=4k --time_based --runtime=2 --path={choice}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerfs"));
    let mut child = command.args(line(&words, &rest)).stdout(Stdio::piped()).spawn().expect("the binary starts");
    let deadline = Instant::now() + PATIENCE;
    let mut goes_on = true;
    while child.try_wait().expect("our child").is_none() {
        assert!(Instant::now() < deadline, "a run of 2 s does not end");
        goes_on = goes_on && disturb(&scratch);
    }
    let output = child.wait_with_output().expect("our child");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{choice}: {report:#}");
    succeed(&["umount", &scratch.mnt()]);
    report["jobs"][0]["peerfs"].clone()
}

/// Revokes the file's mappings, if there are any; answers how many.
fn revoke(scratch: &Scratch) -> u64 {
    // The file is not there before it is laid out.
    let outcome = peerfs(&["revoke", &scratch.text("mnt/f"), "--json"]);
    let said: Value = serde_json::from_str(&outcome.stdout).unwrap_or_default();
    said["grants"].as_u64().unwrap_or(0)
}

#[test]
fn what_is_revoked_under_way_is_mapped_again() {
    let again_and_again = |scratch: &Scratch| {
        revoke(scratch);
        true
    };
    let once = |scratch: &Scratch| revoke(scratch) == 0;
    for paths in [disturbed("auto", again_and_again), disturbed("direct", once)] {
        let count = |key: &str| paths[key].as_u64().expect("a count");
        assert!(count("bytes_direct") > 0 && count("remaps") > 0, "{paths}");
    }
}
