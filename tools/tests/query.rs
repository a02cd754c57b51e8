//! `peerfs query` on a real mount: what it explains.

mod common;
#[path = "common/stopped.rs"]
mod stopped;
#[allow(dead_code, reason = "shared with other tests")]
mod web;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use common::{Scratch, fail, succeed};
use serde_json::Value;
use stopped::Stopped;
use web::Running;

const MIB: usize = 1 << 20;

/// A volume with a file of three decisions: 1 MiB of data, 1 MiB preallocated, 2 MiB of nothing.
fn mounted(arguments: &[&str]) -> (Scratch, String) {
    let scratch = Scratch::new();
    let (image, mnt) = (scratch.text("v.img"), scratch.mnt());
    succeed(&["mkfs", &image, "--size", "64M"]);
    succeed(&[&["mount", image.as_str(), mnt.as_str()], arguments].concat());
    let file = File::create(scratch.join("mnt/file")).expect("the mount takes files");
    file.write_all_at(&vec![7; MIB], 0).expect("room");
    nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), MIB as i64, MIB as i64).expect("room");
    file.set_len(4 * MIB as u64).and_then(|()| file.sync_all()).expect("room");
    let file = scratch.text("mnt/file");
    (scratch, file)
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(&[arguments, &["--json"]].concat())).expect("JSON")
}

#[test]
fn every_decision_is_in_the_bar_and_every_refusal_has_rule_object_and_remedy() {
    let (scratch, file) = mounted(&["--cmb", "8M"]);
    let told = succeed(&["query", &file]);
    let bar = told.lines().find(|line| line.starts_with('[')).expect("a bar");
    assert_eq!(bar.len(), 80, "as wide as a terminal is that is none: {told}");
    // A quarter each of data and preallocated blocks, then half of nothing.
    let expected = format!("[{}{}{}]", "#".repeat(20), "_".repeat(19), ".".repeat(39));
    let count = |bar: &str, letter| bar.matches(letter).count().abs_diff(expected.matches(letter).count());
    assert!(['#', '_', '.'].iter().all(|letter| count(bar, *letter) <= 1) && !bar.contains('\x1b'), "{bar}\n{expected}");
    for expected in [
        " #  direct-window    1.0 MiB",
        " _  Unwritten        1.0 MiB",
        " .  Hole             2.0 MiB",
        "Hole (2.0 MiB): no blocks are allocated here",
        &format!("  what    bytes 2097152 to 4194304 of {file}"),
        "  rule    SEMANTICS.md, \"Mapping\"; peerfs conformance --case reason-hole",
        "  remedy  write the range first",
        &format!("          dd if=/dev/zero of={file} bs=4096 seek=512 count=512 conv=notrunc"),
        "the direct part could be revoked when (the importer has 100 ms then)",
        "  Truncate         a program shortens the file",
    ] {
        assert!(told.contains(expected), "{expected:?} is missing in\n{told}");
    }
    succeed(&["umount", &scratch.mnt()]);
}

/// The remedies are tried: after each command the refusal is gone.
#[test]
fn the_commands_help() {
    let (scratch, file) = mounted(&["--cmb", "8M"]);
    let before = fs::read(&file).expect("readable");
    for reason in ["Hole", "Unwritten"] {
        let refusal = refusal(&json(&["query", &file]), reason).expect("refused");
        let command = refusal["command"].as_str().expect("a command");
        let ran = std::process::Command::new("sh").args(["-c", command]).output().expect("a shell");
        assert!(ran.status.success(), "{command}: {ran:?}");
        assert_eq!(self::refusal(&json(&["query", &file]), reason), None, "{command}");
    }
    assert_eq!(json(&["query", &file])["bytes_fallback"], 0);
    assert_eq!(fs::read(&file).expect("readable"), before, "the same bytes");
    succeed(&["umount", &scratch.mnt()]);
}

fn refusal(answer: &Value, reason: &str) -> Option<Value> {
    answer["refusals"].as_array()?.iter().find(|refusal| refusal["reason"] == reason).cloned()
}

#[test]
fn who_refuses_is_named() {
    let (scratch, file) = mounted(&["--cmb", "8M", "-o", "pin_quota=512K"]);
    let writer = File::options().write(true).open(&file).expect("writable");
    let object = |arguments: &[&str], reason: &str| {
        let answer = json(&[&["query", file.as_str()], arguments].concat());
        let refusal = refusal(&answer, reason).unwrap_or_else(|| panic!("no {reason}: {answer:#}"));
        refusal["object"].as_str().expect("text").to_owned()
    };
    let me = format!("process {} (", std::process::id());
    assert!(object(&["--pin"], "CpuWriter").starts_with(&me));
    drop(writer);
    assert!(object(&["--pin"], "PinQuota").contains("of 512.0 KiB pinned"));
    assert!(object(&["--importer", "cpu@0000:01:00.0"], "NoPeerPath").starts_with("importer cpu@0000:01:00.0, storage image:"));
    assert!(fail(1, &["query", &scratch.text("mnt/missing")]).contains("mnt/missing"));
    peerfs_sys::set_xattr(&scratch.join("mnt/file"), "user.peerfs.direct", b"never").expect("the owner may");
    assert!(object(&[], "Policy").starts_with("user.peerfs.direct=never of "));
    succeed(&["umount", &scratch.mnt()]);
}

/// Looking for who has the file open must not ask for the files that others have open.
#[test]
fn a_dead_mount_holds_up_no_explanation() {
    let ((scratch, file), (dead, other)) = (mounted(&["--cmb", "8M"]), mounted(&[]));
    // Descriptors are looked at by number: this one first.
    let elsewhere = File::options().write(true).open(&other).expect("writable");
    let writer = File::options().write(true).open(&file).expect("writable");
    // The kernel does not know the file's time any more, and would have to ask.
    elsewhere.write_all_at(&[1], 0).expect("room");
    let stopped = Stopped::new(&dead.mnt());
    let mut query = Running::new(&["query", &file, "--pin"]);
    assert_eq!(query.ends().code(), Some(0));
    let said = query.says("  what    process");
    assert!(said.contains(&format!("process {} (", std::process::id())), "{said}");
    drop((stopped, elsewhere, writer));
    succeed(&["umount", &dead.mnt()]);
    succeed(&["umount", &scratch.mnt()]);
}
