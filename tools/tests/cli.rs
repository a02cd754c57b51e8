//! The command line's contract: exit codes, one line for every failure, and
//! refusals that leave everything as it was. Nothing here mounts.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use common::{Scratch, fail, peerfs, succeed};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Makes a sparse file of this size.
fn sparse(scratch: &Scratch, name: &str, size: u64) -> String {
    File::create(scratch.join(name)).and_then(|file| file.set_len(size)).expect("a file");
    scratch.text(name)
}

#[test]
fn wrong_command_lines_exit_with_2() {
    let lines: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["mkfs"],
        &["mkfs", "x", "--size", "5Q"],
        &["mkfs", ""],
        &["mkfs", "image:"],
        &["mount", "x"],
        &["mount", "mem:0", "/mnt"],
        &["mount", "mem:64M", "/mnt", "-o", "deadline_ms=0"],
        &["mount", "mem:64M", "/mnt", "--cmb", "-1"],
        &["query", "/", "--length", "0"],
        &["query", "/", "--offset", "18446744073709551615", "--length", "2"],
        &["map", "/", "--repeat", "0"],
        &["revoke", "/", "--all", "--length", "1"],
    ];
    for line in lines {
        fail(2, line);
    }
    let said = fail(2, &["mount", "mem:64M", "/mnt", "-o", "ro,nonsense=3"]);
    assert!(said.contains("nonsense"), "{said}");
}

#[test]
fn importers_that_are_not_known_or_not_built_in_say_what_to_do() {
    for name in ["gpu", "cuda:", "cuda:01", "cuda:x"] {
        assert!(fail(1, &["map", "/", "--importer", name]).contains("use cpu, static"));
    }
    #[cfg(not(feature = "cuda"))]
    assert!(fail(1, &["map", "/", "--importer", "cuda:0"]).contains("cargo build --release -p peerfs --features cuda"));
}

#[test]
fn help_and_version_go_to_stdout() {
    assert!(succeed(&["--help"]).contains("mkfs"));
    assert!(succeed(&["mount", "--help"]).contains("deadline_ms"));
    assert!(succeed(&["--version"]).starts_with("peerfs "));
}

#[test]
fn mkfs_takes_the_size_of_what_is_there_or_the_one_it_is_told() {
    let scratch = Scratch::new();
    let image = sparse(&scratch, "a.img", 32 * MIB);
    let made: Value = serde_json::from_str(&succeed(&["mkfs", &image, "--label", "first", "--json"])).expect("JSON");
    assert_eq!(made["volume"]["label"], "first");
    assert_eq!(made["volume"]["size_bytes"], 32 * MIB);
    let seen: Value = serde_json::from_str(&succeed(&["info", &image, "--json"])).expect("JSON");
    assert_eq!(seen["volume"], made["volume"]);
    assert!(succeed(&["info", &format!("image:{image}")]).contains("first"));

    let told = scratch.text("b.img");
    succeed(&["mkfs", &told, "--size", "16M"]);
    assert_eq!(fs::metadata(&told).expect("made").len(), 16 * MIB);
    assert!(succeed(&["fsck", &told]).contains("clean"));
    let report: Value = serde_json::from_str(&succeed(&["fsck", &told, "--json"])).expect("JSON");
    assert_eq!(report["problem_count"], 0);
}

#[test]
fn mkfs_refuses_and_leaves_things_as_they_were() {
    let scratch = Scratch::new();
    let missing = scratch.text("missing.img");
    assert!(fail(1, &["mkfs", &missing]).contains("--size"));
    fail(1, &["mkfs", &missing, "--size", "1M"]);
    assert!(!scratch.join("missing.img").exists());
    fail(1, &["mkfs", &scratch.text("no/such/directory.img"), "--size", "64M"]);
    fail(1, &["mkfs", &sparse(&scratch, "small.img", MIB)]);
    fail(1, &["mkfs", &sparse(&scratch, "empty.img", 0)]);
    fail(1, &["mkfs", &scratch.mnt()]);
    fail(1, &["mkfs", "mem:64M"]);
    fail(1, &["mkfs", "nvme:0000:01:00.0"]);
    fail(1, &["mkfs", &missing, "--size", "64M", "--label", &"x".repeat(1000)]);
    assert!(!scratch.join("missing.img").exists());
}

#[test]
fn mkfs_does_not_overwrite_unless_forced() {
    let scratch = Scratch::new();
    let image = sparse(&scratch, "foreign.img", 16 * MIB);
    let file = File::options().read(true).write(true).open(&image).expect("just made");
    // The magic number of ext4.
    file.write_all_at(&[0x53, 0xef], 1024 + 56).expect("room");
    let said = fail(1, &["mkfs", &image]);
    assert!(said.contains("ext4") && said.contains("--force"), "{said}");
    // Not even its size changes.
    fail(1, &["mkfs", &image, "--size", "64M"]);
    assert_eq!(fs::metadata(&image).expect("still there").len(), 16 * MIB);
    let mut magic = [0; 2];
    file.read_exact_at(&mut magic, 1024 + 56).expect("still there");
    assert_eq!(magic, [0x53, 0xef]);

    succeed(&["mkfs", &image, "--force", "--size", "64M"]);
    let said = fail(1, &["mkfs", &image]);
    assert!(said.contains("peerfs volume"), "{said}");
}

#[test]
fn what_is_no_volume_is_refused_by_every_command() {
    let scratch = Scratch::new();
    let garbage = scratch.text("garbage.img");
    let bytes: Vec<u8> = (0..16 * MIB).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect();
    fs::write(&garbage, bytes).expect("room");
    let empty = sparse(&scratch, "empty.img", 0);
    let zeros = sparse(&scratch, "zeros.img", 16 * MIB);
    let missing = scratch.text("missing.img");
    let truncated = scratch.text("truncated.img");
    succeed(&["mkfs", &truncated, "--size", "32M"]);
    File::options().write(true).open(&truncated).and_then(|file| file.set_len(16 * MIB)).expect("just made");
    for image in [&garbage, &empty, &zeros, &missing, &truncated] {
        fail(1, &["info", image]);
        fail(1, &["fsck", image]);
        fail(1, &["mount", image, &scratch.mnt()]);
    }
    assert!(fail(1, &["info", &truncated]).contains("truncated"));
    assert!(fail(1, &["info", &zeros]).contains("mkfs"));
}

#[test]
fn damaged_metadata_is_reported_in_one_line_and_never_hangs() {
    let scratch = Scratch::new();
    let image = scratch.text("damaged.img");
    let seed = 20_261_121_u64;
    println!("seed {seed}");
    let mut state = seed;
    let mut refused = 0;
    for _ in 0..12 {
        succeed(&["mkfs", &image, "--size", "16M", "--force"]);
        let file = File::options().write(true).open(&image).expect("just made");
        for _ in 0..200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Behind the superblock copies, where the database begins.
            file.write_all_at(&[(state >> 56) as u8], 8192 + (state >> 20) % (256 << 10)).expect("room");
        }
        let checked = peerfs(&["fsck", &image]);
        assert!(matches!(checked.code, Some(0 | 1)), "{}", checked.stderr);
        if checked.code == Some(1) {
            refused += 1;
            assert_eq!(checked.stderr.lines().count(), 1, "{}", checked.stderr);
        }
    }
    assert!(refused > 0, "no damage was noticed");
}

#[test]
fn mount_points_must_be_empty_directories() {
    let scratch = Scratch::new();
    let image = scratch.text("v.img");
    succeed(&["mkfs", &image, "--size", "16M"]);
    let said = fail(1, &["mount", &image, &scratch.text("nowhere")]);
    assert!(said.contains("no such directory"), "{said}");
    let said = fail(1, &["mount", &image, &image]);
    assert!(said.contains("not a directory"), "{said}");
    fs::write(scratch.join("mnt/file"), "x").expect("room");
    let said = fail(1, &["mount", &image, &scratch.mnt()]);
    assert!(said.contains("not empty"), "{said}");
    // The refused mounts closed the volume in order.
    let seen: Value = serde_json::from_str(&succeed(&["info", &image, "--json"])).expect("JSON");
    assert_eq!(seen["volume"]["clean"], true);
}

#[test]
fn commands_on_what_is_not_mounted_say_so() {
    let scratch = Scratch::new();
    let file = sparse(&scratch, "file", 4096);
    let mnt = scratch.mnt();
    for line in [
        &["umount", mnt.as_str()][..],
        &["umount", "--force", &mnt],
        &["info", &mnt],
        &["mappings", &mnt],
        &["importers", &mnt],
        &["query", &file],
        &["query", &mnt],
        &["map", &file],
        &["revoke", &file],
        &["revoke", "--all", &mnt],
    ] {
        let said = fail(1, line);
        assert!(said.contains("peerfs mount"), "{line:?}: {said}");
    }
    for command in ["umount", "info", "mappings", "query", "map", "revoke"] {
        fail(1, &[command, &scratch.text("nothing/here")]);
    }
    fail(1, &["fsck", &file, "--repair"]);
    fail(1, &["demo", "--size", "1M"]);
    fail(1, &["demo", "--dir", &scratch.text("nowhere")]);
}

#[test]
fn nvme_controllers_are_listed_and_wrong_ones_refused() {
    let report: Value = serde_json::from_str(&succeed(&["nvme", "list", "--json"])).expect("JSON");
    let controllers = report["controllers"].as_array().expect("a list");
    let listed = succeed(&["nvme", "list"]);
    if controllers.is_empty() {
        assert_eq!(listed, "no NVMe controllers on this machine's PCI bus\n");
    }
    for controller in controllers {
        assert!(listed.contains(controller["address"].as_str().expect("an address")), "{listed}");
    }
    for wrong in [&["nvme"][..], &["nvme", "bind"], &["nvme", "bind", "1:2"], &["nvme", "unbind", "0000:01:20.0"]] {
        fail(2, wrong);
    }
    // No machine has all of its domains.
    for missing in
        [&["nvme", "bind", "fffe:fe:1f.7"][..], &["nvme", "bind", "fffe:fe:1f.7", "--force"], &["nvme", "unbind", "fffe:fe:1f.7"]]
    {
        let said = fail(1, missing);
        assert!(said.contains("fffe:fe:1f.7: no such PCI device"), "{said}");
    }
}
