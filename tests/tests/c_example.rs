//! A program not written in Rust asks for decisions on a real mount.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use peerfs_tests::ScratchMount;

fn compile(source: &Path, include: &Path, target: &Path) {
    let output = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-I"])
        .args([include, Path::new("-o"), target, source])
        .output()
        .expect("a C compiler is installed (package gcc)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_c_example_prints_the_decision_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mount = ScratchMount::new("64M", &["--cmb", "8M"]).expect("mount");
    let program = mount.directory().join("query");
    compile(&root.join("p2p/client/examples/query.c"), &root.join("p2p/abi/include"), &program);

    let path = mount.join("file");
    fs::write(&path, vec![7; 8192]).expect("write");
    File::options().write(true).open(&path).expect("open").set_len(16384).expect("extend");
    let output = Command::new(&program).arg(&path).output().expect("run");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.contains("direct-window"), "{table}");
    assert!(table.contains("Hole"), "{table}");
}
