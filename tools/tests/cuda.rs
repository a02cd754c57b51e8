//! `peerfs map --importer cuda:N`, on a CUDA driver without a GPU (`libcuda.c`): the calls that are made, in which order
//! and with what, and what the command says. Needs a C compiler. No GPU is needed, and none is used.

#![cfg(feature = "cuda")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, fail, succeed};
use serde_json::Value;

const SIZE: usize = (1 << 20) + 1000;
/// CU_MEMHOSTREGISTER_PORTABLE, DEVICEMAP and READ_ONLY.
const FLAGS_READ: u32 = 1 | 2 | 8;
const FLAGS_WRITE: u32 = 1 | 2;
const PATIENCE: Duration = Duration::from_secs(30);

/// A mount with one file, and the driver.
struct Scene {
    scratch: Scratch,
    file: String,
    content: Vec<u8>,
}

impl Scene {
    fn new() -> Scene {
        let scratch = Scratch::new();
        let library = scratch.text("libcuda.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/libcuda.c");
        let options = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o", &library, source];
        assert!(Command::new("cc").args(options).status().expect("cc").success(), "the driver does not build");
        let image = scratch.text("volume.img");
        succeed(&["mkfs", &image, "--size", "64M"]);
        succeed(&["mount", &image, &scratch.mnt(), "--cmb", "16M"]);
        let (file, content) = (scratch.text("mnt/file"), (0..SIZE).map(|at| (at * 7 / 5) as u8).collect::<Vec<u8>>());
        fs::write(&file, &content).expect("a file");
        Scene { scratch, file, content }
    }

    /// The server hears of a closed handle, and looks for pins without holders, some time after their end.
    fn await_pinnable(&self) {
        let ask = || succeed(&["query", &self.file, "--importer", "cuda:0", "--pin", "--write", "--json"]);
        let start = Instant::now();
        while serde_json::from_str::<Value>(&ask()).expect("JSON")["bytes_fallback"] != 0 {
            assert!(start.elapsed() < PATIENCE, "the file cannot be pinned: {}", ask());
        }
    }

    /// Maps the file, with this driver and these settings of it.
    fn map(&self, options: &[&str], settings: &[(&str, &str)]) -> Output {
        self.command(options, settings).output().expect("the binary under test starts")
    }

    fn command(&self, options: &[&str], settings: &[(&str, &str)]) -> Command {
        self.await_pinnable();
        // What a map before has left.
        let _ = fs::remove_file(self.scratch.join("log"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_peerfs"));
        command.args(["map", &self.file, "--importer", "cuda:0"]).args(options).envs(settings.iter().copied());
        command.env("LD_LIBRARY_PATH", self.scratch.join("")).env("FAKE_CUDA_LOG", self.scratch.join("log"));
        command
    }

    fn report(&self, options: &[&str], settings: &[(&str, &str)]) -> Value {
        let output = self.map(&[options, &["--json"]].concat(), settings);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn complaint(&self, options: &[&str], settings: &[(&str, &str)], code: i32) -> String {
        let output = self.map(options, settings);
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), line.lines().count()), (Some(code), 1), "{line}");
        line
    }

    /// What the driver was called.
    fn calls(&self) -> Vec<String> {
        fs::read_to_string(self.scratch.join("log")).expect("a log").lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_gpu_reads_the_file_and_lets_go_in_order() {
    let scene = Scene::new();
    let report = scene.report(&["--checksum"], &[]);
    assert_eq!(report["bytes_read_by_gpu"], SIZE);
    assert_eq!((&report["bytes_registered"], &report["bytes_fallback"]), (&SIZE.into(), &0.into()));
    assert_eq!(report["gpu"]["pci_address"], "0000:a1:00.0");
    assert_eq!(report["segments"][0]["path"], "direct-window");
    assert_eq!(report["crc32c"], format!("{:08x}", crc32c::crc32c(&scene.content)));
    assert!(report["rates"]["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0), "{report}");

    let calls = scene.calls();
    assert_eq!(calls[0], format!("register {} flags {FLAGS_READ}", SIZE.next_multiple_of(4096)));
    assert!(calls.contains(&format!("launch {SIZE}")), "{calls:?}");
    let end = calls.iter().position(|call| call == "unregister mapped, 0 kernels").expect("an end");
    assert_eq!(calls[end - 1], "synchronize");
    for given_back in ["free", "free host", "unload", "release"] {
        assert_eq!(calls.iter().filter(|call| *call == given_back).count(), 1, "{given_back}: {calls:?}");
    }
    assert!(String::from_utf8_lossy(&scene.map(&[], &[]).stdout).contains("times as fast as read(2) and cuMemcpyHtoD"));
}

#[test]
fn a_gpu_writes_back_what_it_read() {
    let scene = Scene::new();
    let report = scene.report(&["--write"], &[]);
    assert_eq!((&report["bytes_read_by_gpu"], &report["bytes_written_by_gpu"]), (&SIZE.into(), &SIZE.into()));
    assert_eq!(report["bytes_written"], SIZE);
    assert_eq!(scene.calls()[0], format!("register {} flags {FLAGS_WRITE}", SIZE.next_multiple_of(4096)));
    assert!(fs::read(&scene.file).expect("read") == scene.content, "other bytes");
}

/// By the session's thread, for which the context has to be made current.
#[test]
fn force_unregisters_while_the_mapping_is_held() {
    let scene = Scene::new();
    let mut holder = scene.command(&["--hold", "600"], &[]).stdout(Stdio::piped()).spawn().expect("the binary under test starts");
    let mut lines = BufReader::new(holder.stdout.take().expect("a pipe")).lines();
    let mut hear = |word: &str| lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with(word)));
    let mapped = hear("mapping").is_some();
    assert!(mapped && !scene.calls().iter().any(|call| call.starts_with("unregister")));
    succeed(&["revoke", &scene.scratch.mnt(), "--all", "--pins"]);
    let told = hear("revoked:");
    let calls = scene.calls();
    holder.kill().and_then(|()| holder.wait()).expect("an end");
    assert!(told.is_some(), "{calls:?}");
    assert_eq!(calls[calls.len() - 2..], ["synchronize", "unregister mapped, 0 kernels"]);
}

#[test]
fn what_the_driver_refuses_goes_through_the_processor() {
    let scene = Scene::new();
    let settings: [(&[(&str, &str)], &str); 3] = [
        (&[("FAKE_CUDA_FAIL", "cuMemHostRegister_v2")], "CUDA_ERROR_NOT_SUPPORTED (operation not supported)"),
        (&[("FAKE_CUDA_FAIL", "cuMemHostGetDevicePointer_v2")], "cuMemHostGetDevicePointer"),
        (&[("FAKE_CUDA_READ_ONLY", "0")], "map for writing"),
    ];
    for (settings, why) in settings {
        let report = scene.report(&["--checksum"], settings);
        assert_eq!((&report["bytes_read_by_gpu"], &report["bytes_read"]), (&0.into(), &SIZE.into()), "{why}");
        let said = report["unregistered"][0]["why"].as_str().expect("a reason");
        assert!(said.contains(why), "{said}");
        let calls = scene.calls();
        let count = |word: &str| calls.iter().filter(|call| call.starts_with(word)).count();
        assert_eq!(count("register"), count("unregister"), "{calls:?}");
    }
}

#[test]
fn a_gpu_that_fails_is_one_clear_line() {
    let scene = Scene::new();
    let failures: [(&[(&str, &str)], &str); 5] = [
        (&[("FAKE_CUDA_COUNT", "0")], "no GPU has the number 0: the driver finds 0"),
        (&[("FAKE_CUDA_VERSION", "11020")], "the NVIDIA driver is for CUDA 11.2"),
        (&[("FAKE_CUDA_FAIL", "cuModuleLoadData")], "GPU 0 cannot be used: cuModuleLoadData"),
        (&[("FAKE_CUDA_FAIL", "cuLaunchKernel")], "the GPU failed: cuLaunchKernel"),
        (&[("FAKE_CUDA_FAIL", "cuMemHostUnregister")], "the GPU failed: cuMemHostUnregister"),
    ];
    for (settings, what) in failures {
        let line = scene.complaint(&[], settings, 1);
        assert!(line.contains(what), "{line}");
    }
    for options in [&["--atomic"][..], &["--hung"], &["--va-bits", "40"]] {
        assert!(scene.complaint(options, &[], 2).contains("importer cuda:0"));
    }
    assert!(fail(2, &["map", &scene.file, "--importer", "cuda:0@0000:01:00.0"]).contains("main memory"));
    assert!(fail(1, &["map", &scene.file, "--importer", "cuda:x"]).contains("cuda:N"));
}

/// With a driver or without one.
#[test]
fn a_gpu_that_is_not_there_is_one_clear_line() {
    let scene = Scene::new();
    let line = fail(1, &["map", &scene.file, "--importer", "cuda:65535"]);
    let no_driver = line.contains("libcuda.so.1 cannot be loaded: install the NVIDIA driver");
    assert!(no_driver || line.contains("no GPU has the number 65535"), "{line}");
}
