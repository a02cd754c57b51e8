//! Where diagnostics go, and how they look.

#[allow(dead_code, reason = "shared with other tests")]
mod common;

use std::fs::{self, File};
use std::io::Write;

use common::{Scratch, fail, peerfs, succeed};
use serde_json::Value;

/// Mounts with these options for logs, makes the server warn, unmounts; what is in the log then.
fn logged(options: &[&str]) -> String {
    let scratch = Scratch::new();
    let (image, log) = (scratch.text("v.img"), scratch.text("log"));
    succeed(&["mkfs", &image, "--size", "64M"]);
    let mount = peerfs(&[&["mount", &image, &scratch.mnt(), "-o", "faults", "--log", &log], options].concat());
    assert_eq!((mount.code, mount.stderr.as_str()), (Some(0), ""), "what the background says is in its log");
    let mut file = File::create(scratch.join("mnt/file")).expect("room");
    fs::write(scratch.join("mnt/.peerfs/faults"), "write-error 0 64M\n").expect("a command");
    file.write_all(&[1; 8192]).and_then(|()| file.sync_all()).expect_err("as told");
    fs::write(scratch.join("mnt/.peerfs/faults"), "recover\n").expect("a command");
    drop(file);
    succeed(&["umount", &scratch.mnt()]);
    fs::read_to_string(log).expect("a log")
}

#[test]
fn a_server_in_the_background_logs_to_its_file() {
    let text = logged(&[]);
    assert!(text.lines().any(|line| line.contains(" WARN ") && line.contains("operation failed")), "{text}");
    assert!(!text.contains(" INFO "), "{text}");
}

#[test]
fn json_lines_have_level_target_and_fields() {
    let text = logged(&["--log-format", "json", "--log-level", "warn,peerfs=info"]);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let found =
        |message: &str| lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("{message}: {text}"));
    let failed = found("operation failed");
    assert_eq!((&failed["level"], failed["operation"].is_string()), (&Value::from("WARN"), true), "{failed}");
    assert!(failed["timestamp"].is_string() && failed["target"].as_str().is_some_and(|target| target.starts_with("peerfs_fs")));
    assert!(found("mounted")["mountpoint"].is_string());
    assert_eq!(found("closed")["level"], "INFO");
}

#[test]
fn levels_are_checked() {
    for bad in ["", "loud", "peerfs_fs=loud"] {
        assert!(fail(2, &["info", "/", "--log-level", bad]).contains("log-level"), "{bad}");
    }
    assert!(fail(2, &["info", "/", "--log-format", "xml"]).contains("log-format"));
}
