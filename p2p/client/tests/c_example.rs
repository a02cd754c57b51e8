//! The C example builds without warnings, from the header alone, and fails cleanly off a mount.

use std::path::Path;
use std::process::Command;

#[test]
fn the_example_builds_and_says_what_is_wrong() {
    let client = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().expect("temporary folder");
    let program = folder.path().join("query");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(client.join("../abi/include"))
        .arg("-o")
        .arg(&program)
        .arg(client.join("examples/query.c"))
        .output()
        .expect("a C compiler (cc) is required");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");

    let file = folder.path().join("plain");
    std::fs::write(&file, "no mount").expect("file");
    let output = Command::new(&program).arg(&file).output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("not on a peerfs mount"), "{errors}");
    let output = Command::new(&program).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
}
