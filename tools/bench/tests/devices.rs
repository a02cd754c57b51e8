//! Jobs on a block device. Needs a loop device, and the right to set one up; says so where there is none.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Write, stderr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use common::bench;
use nix::fcntl::OFlag;

/// A loop device over a file of zeros.
struct LoopDevice(String);

impl LoopDevice {
    /// `None` where it cannot be made.
    fn new(image: &Path, bytes: u64) -> Option<LoopDevice> {
        File::create(image).expect("room").set_len(bytes).expect("room");
        let output = Command::new("losetup").args(["--find", "--show"]).arg(image).output().ok()?;
        output.status.success().then(|| LoopDevice(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !Command::new("losetup").args(["--detach", &self.0]).status().is_ok_and(|status| status.success()) {
            eprintln!("{} stays set up", self.0);
        }
    }
}

#[test]
fn a_device_in_use_is_read_but_not_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image");
    let Some(device) = LoopDevice::new(&image, 1 << 20) else {
        // Past the harness, which shows only what failing tests print.
        writeln!(stderr(), "skipped: no loop device can be set up").expect("stderr");
        return;
    };
    let filename = format!("--filename={}", device.0);
    let errors = |rw: &str| -> Vec<String> {
        let report = bench(&[&filename, "--name=a", rw, "--size=256k", "--numjobs=2", "--end_fsync=1"]);
        report.errors().map(|(_, error)| error.to_string()).collect()
    };
    // As a mount has it.
    let claim = OpenOptions::new().read(true).custom_flags(OFlag::O_EXCL.bits()).open(&device.0).expect("nobody has it");
    let said = format!("{} is mounted or in use, and nothing was written to it: name a device that nothing else has", device.0);
    assert_eq!(errors("--rw=randrw"), [said.as_str(); 2]);
    assert_eq!(errors("--rw=read"), [""; 0]);
    let is_untouched = || fs::read(&image).expect("readable").iter().all(|byte| *byte == 0);
    assert!(is_untouched());
    drop(claim);
    assert_eq!(errors("--rw=write"), [""; 0]);
    assert!(!is_untouched());
}
