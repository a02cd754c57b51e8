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
        let values =
            [("@prefix@", &*prefix.path().to_string_lossy()), ("@libraries@", "lib"), ("@version@", env!("CARGO_PKG_VERSION"))];
        let text = values.iter().fold(template, |text, (name, value)| text.replace(name, value));
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
        self.compile_file(&library_folder().join("examples").join(format!("{example}.c")), static_library)
    }

    fn compile_file(&self, source: &Path, static_library: bool) -> PathBuf {
        let name = source.file_stem().expect("a program has a name").to_string_lossy();
        let program = self.path().join(format!("{name}-{static_library}"));
        let mut command = Command::new("cc");
        command.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-o"]).arg(&program);
        command.arg(source);
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

/// Every function of the library, called from C.
#[test]
fn c_programs_get_all_that_the_library_offers() {
    let prefix = Prefix::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("c");
    let mount = ScratchMount::new("64M", &["--cmb", "16M", "-o", "devmem=4M"]).expect("mount");
    for (program, static_library) in [("mappings", false), ("addresses", true), ("device_memory", false), ("refusals", false)] {
        let program = prefix.compile_file(&folder.join(format!("{program}.c")), static_library);
        succeeded(&prefix.run(&program, &[&mount.path()]));
    }
}

/// A function that the header declares is called by a program of these tests.
#[test]
fn no_function_is_left_out() {
    let read = |path: &Path| fs::read_to_string(path).expect("a source file");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("c");
    let programs: String = fs::read_dir(&folder).expect("programs").flatten().map(|entry| read(&entry.path())).collect();
    let header = read(&library_folder().join("include/peerfs_client.h"));
    // A declaration starts its line and names the function right before the first parenthesis.
    let declared = header.lines().filter(|line| !line.starts_with(['/', ' ', '*', '#', '}']) && !line.starts_with("typedef"));
    let names = declared.filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next());
    let missing: Vec<&str> = names.filter(|name| !programs.contains(&format!("{name}("))).collect();
    assert!(header.contains("peerfs_file_open(") && missing.is_empty(), "never called: {missing:?}");
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
