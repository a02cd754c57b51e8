//! Programs in C and Python that use the installed client library, on a real mount.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use peerfs as _;
use peerfs_tests::ScratchMount;

/// A prefix with the library installed, as `cargo xtask install` lays it out.
struct Prefix(tempfile::TempDir);

fn library_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../p2p/client-c")
}

/// The newest of the libraries that cargo built beside the test.
fn built(start: &str, end: &str) -> PathBuf {
    let program = std::env::current_exe().expect("a test has a path");
    let folder = program.parent().expect("it is in a folder");
    let entries = fs::read_dir(folder).expect("it can be listed").flatten();
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let middle = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
        middle.is_some_and(|middle| middle.is_empty() || middle.starts_with('-'))
    };
    let changed = |path: &PathBuf| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let found = entries.map(|entry| entry.path()).filter(named).max_by_key(changed);
    found.unwrap_or_else(|| panic!("{start}*{end} is not in {}: run cargo test --workspace, which builds it", folder.display()))
}

impl Prefix {
    fn new() -> Prefix {
        let prefix = Prefix(tempfile::tempdir().expect("temporary folder"));
        for folder in ["lib/pkgconfig", "include"] {
            fs::create_dir_all(prefix.path().join(folder)).expect("room");
        }
        fs::copy(built("libpeerfs", ".so"), prefix.path().join("lib/libpeerfs.so.0")).expect("copy");
        fs::copy(built("libpeerfs", ".a"), prefix.path().join("lib/libpeerfs.a")).expect("copy");
        symlink("libpeerfs.so.0", prefix.path().join("lib/libpeerfs.so")).expect("link");
        for header in ["../abi/include/peerfs.h", "include/peerfs_client.h"] {
            let from = library_folder().join(header);
            let name = from.file_name().expect("a header has a name");
            fs::copy(&from, prefix.path().join("include").join(name)).expect("copy");
        }
        let template = fs::read_to_string(library_folder().join("peerfs.pc.in")).expect("template");
        let text = template.replace("@prefix@", &prefix.path().to_string_lossy()).replace("@version@", env!("CARGO_PKG_VERSION"));
        fs::write(prefix.path().join("lib/pkgconfig/peerfs.pc"), text).expect("room");
        prefix
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn flags(&self, arguments: &[&str]) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.args(arguments).arg("peerfs").env("PKG_CONFIG_PATH", self.path().join("lib/pkgconfig"));
        let output = command.output().expect("pkg-config is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
    }

    /// Compiles an example against the shared library, or statically.
    fn compile(&self, example: &str, static_library: bool) -> PathBuf {
        let program = self.path().join(format!("{example}-{static_library}"));
        let mut command = Command::new("cc");
        command.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o"]).arg(&program);
        command.arg(library_folder().join("examples").join(format!("{example}.c")));
        match static_library {
            false => command.args(self.flags(&["--cflags", "--libs"])),
            true => {
                command.args(self.flags(&["--cflags"])).arg(self.path().join("lib/libpeerfs.a"));
                let system = self.flags(&["--libs", "--static"]);
                command.args(system.iter().filter(|flag| flag.starts_with("-l") && *flag != "-lpeerfs"))
            }
        };
        succeeded(&command.output().expect("a C compiler is installed"));
        program
    }

    fn run(&self, program: &Path, arguments: &[&Path]) -> Output {
        let mut command = Command::new(program);
        command.args(arguments).env("LD_LIBRARY_PATH", self.path().join("lib"));
        command.output().expect("it runs")
    }
}

fn succeeded(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn c_programs_query_map_hear_of_revocations_and_fall_back() {
    let prefix = Prefix::new();
    let mount = ScratchMount::new("64M", &["--cmb", "8M"]).expect("mount");
    let file = mount.join("file");
    fs::write(&file, (0..8192).map(|at| (at % 251) as u8).collect::<Vec<_>>()).expect("write");
    fs::File::options().write(true).open(&file).expect("open").set_len(16384).expect("extend");

    let query = prefix.compile("query", true);
    let table = succeeded(&prefix.run(&query, &[&file]));
    assert!(table.contains("direct-window") && table.contains("Hole"), "{table}");
    let elsewhere = prefix.path().join("elsewhere");
    fs::write(&elsewhere, "x").expect("write");
    let refused = prefix.run(&query, &[&elsewhere]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not on a peerfs mount"));

    for static_library in [false, true] {
        let map = prefix.compile("map", static_library);
        let text = succeeded(&prefix.run(&map, &[&mount.path(), &file]));
        assert!(text.contains("1 revoked, 1 heard, 4096 bytes by fallback, the same bytes"), "{text}");
        assert!(text.contains("4096 bytes directly, 4096 by fallback"), "{text}");
    }
}

#[test]
fn python_reads_through_the_library() {
    let prefix = Prefix::new();
    let mount = ScratchMount::new("64M", &["--cmb", "8M"]).expect("mount");
    let file = mount.join("file");
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 4096 + at % 251) as u8).collect();
    fs::write(&file, &content).expect("write");
    let script = library_folder().join("examples/read.py");
    let library = prefix.path().join("lib/libpeerfs.so");
    let mut command = Command::new("python3");
    let output = command.arg(&script).args([&library, &mount.path(), &file]).output().expect("python3 is installed");
    let text = succeeded(&output);
    let expected = succeeded(&Command::new("sha256sum").arg(&file).output().expect("sha256sum is installed"));
    let fields: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(Some(fields[0]), expected.split_whitespace().next());
    assert_eq!(fields[1..], ["3000000", "0"], "all of it directly");

    let mut command = Command::new("python3");
    let output = command.arg(&script).args([&library, prefix.path(), &file]).output().expect("python3 is installed");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not on a peerfs mount"), "{output:?}");
}
