//! `include/peerfs_client.h` is what this crate exports: made from it and compared with it.
//!
//! After a change of the crate: `PEERFS_UPDATE_HEADER=1 cargo test -p peerfs-client-c --test header`.

use std::path::Path;
use std::process::Command;

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn generate() -> String {
    let settings = cbindgen::Config::from_file(folder().join("cbindgen.toml")).expect("cbindgen.toml is valid");
    let mut builder = cbindgen::Builder::new().with_config(settings);
    for source in ["failure.rs", "values.rs", "file.rs", "session.rs", "mapping.rs", "guard.rs", "address.rs", "devmem.rs"] {
        builder = builder.with_src(folder().join("src").join(source));
    }
    let mut text = Vec::new();
    builder.generate().expect("the crate parses").write(&mut text);
    let text = String::from_utf8(text).expect("the header is text");
    // A heading for readers of the Rust source, and names as short as C programs want them.
    text.replace("// # Safety\n", "").replace("PEERFS_CODE_", "PEERFS_")
}

#[test]
fn the_header_is_up_to_date() {
    let path = folder().join("include/peerfs_client.h");
    let wanted = generate();
    if std::env::var_os("PEERFS_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &wanted).expect("the header can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "peerfs_client.h is out of date: PEERFS_UPDATE_HEADER=1 cargo test -p peerfs-client-c --test header"
    );
}

#[test]
fn c_and_cpp_compile_it_without_a_warning() {
    let scratch = tempfile::tempdir().expect("temporary folder");
    let code = scratch.path().join("code.c");
    std::fs::write(&code, "#include \"peerfs_client.h\"\n#include \"peerfs_client.h\"\nint main(void) { return PEERFS_OK; }\n")
        .expect("code");
    for language in [&["-std=c11"][..], &["-x", "c++", "-std=c++17"]] {
        let output = Command::new("cc")
            .args(language)
            .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"])
            .arg(folder().join("include"))
            .arg("-I")
            .arg(folder().join("../abi/include"))
            .arg(&code)
            .output()
            .expect("a C compiler (cc) is required");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
