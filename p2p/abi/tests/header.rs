//! `include/peerfs.h` is what this crate says: made from it, compared with it,
//! and laid out alike by a C compiler.
//!
//! After a change of the crate: `PEERFS_UPDATE_HEADER=1 cargo test -p peerfs-abi --test header`.

use std::fmt::Write;
use std::mem::offset_of;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;

use peerfs_abi::devmem::{self, DeviceMemory};
use peerfs_abi::ioctl::{self, Ack, Context, DeviceCopy, Event, Info, Map, ReadByServer, Reflink, Revoke, Segment, Unmap};
use peerfs_abi::socket::{Reply, Request};
use peerfs_abi::{ImporterFlags, MapFlags, Path, Reason, Trigger};

const COMMANDS: &[(&str, u32, &str)] = &[
    ("INFO", ioctl::INFO, "peerfs_info"),
    ("QUERY", ioctl::QUERY, "peerfs_map"),
    ("MAP", ioctl::MAP, "peerfs_map"),
    ("UNMAP", ioctl::UNMAP, "peerfs_unmap"),
    ("REVOKE", ioctl::REVOKE, "peerfs_revoke"),
    ("REFLINK", ioctl::REFLINK, "peerfs_reflink"),
    ("READ_BY_SERVER", ioctl::READ_BY_SERVER, "peerfs_read_by_server"),
    ("COPY", ioctl::COPY, "peerfs_copy"),
    ("CONTEXT", ioctl::CONTEXT, "peerfs_context"),
    ("ACK", ioctl::ACK, "peerfs_ack"),
    ("DEVICE_MEMORY", devmem::DEVICE_MEMORY, "peerfs_device_memory"),
];

fn crate_dir() -> &'static FilePath {
    FilePath::new(env!("CARGO_MANIFEST_DIR"))
}

fn generate() -> String {
    let settings = cbindgen::Config::from_file(crate_dir().join("cbindgen.toml"));
    let mut settings = settings.expect("cbindgen.toml is valid");
    settings.after_includes = Some(format!("\n{}", additions()));
    let mut builder = cbindgen::Builder::new().with_config(settings);
    for source in ["lib.rs", "ioctl.rs", "devmem.rs", "names.rs", "socket.rs", "reason.rs"] {
        builder = builder.with_src(crate_dir().join("src").join(source));
    }
    let mut text = Vec::new();
    builder.generate().expect("the crate parses").write(&mut text);
    tidy(&String::from_utf8(text).expect("the header is text"))
}

/// Comments name things as C does, and no two blank lines follow each other.
fn tidy(text: &str) -> String {
    let mut text = text.replace("[`", "`").replace("`]", "`");
    for (rust, c) in [
        ("`crate::ABI_VERSION`", "PEERFS_ABI_VERSION"),
        ("`crate::MapFlags`", "PEERFS_MAP_*"),
        ("`crate::ImporterFlags`", "PEERFS_IMPORTER_*"),
        ("`crate::Path`", "enum peerfs_path"),
        ("`crate::Reason`", "enum peerfs_reason"),
        ("`crate::Trigger`", "enum peerfs_trigger"),
        ("`super::Context::socket_path`", "peerfs_context.socket_path"),
        ("`transport::SOCKET`", "PEERFS_TRANSPORT_SOCKET"),
        ("`transport`", "PEERFS_TRANSPORT_*"),
        ("`READ_BY_SERVER_MAX`", "PEERFS_READ_BY_SERVER_MAX"),
        ("`COPY_MAX`", "PEERFS_COPY_MAX"),
        ("`DeviceCopy`", "struct peerfs_copy"),
        ("`copy_flags::SYNC`", "PEERFS_COPY_SYNC"),
        ("`copy_flags`", "PEERFS_COPY_*"),
        ("`grant_kind`", "PEERFS_GRANT_*"),
        ("`revoke_flags::MAPPING`", "PEERFS_REVOKE_MAPPING"),
        ("`revoke_flags`", "PEERFS_REVOKE_*"),
        ("`reflink`", "PEERFS_REFLINK_*"),
        ("`NAME_SOURCE`", "PEERFS_REFLINK_NAME_SOURCE"),
        ("`CLONE`", "PEERFS_REFLINK_CLONE"),
        ("`device_memory_call`", "PEERFS_DEVICE_MEMORY_*"),
        ("`MAGIC`", "PEERFS_SOCKET_MAGIC"),
    ] {
        text = text.replace(rust, c);
    }
    for (name, ..) in COMMANDS {
        text = text.replace(&format!("`{name}`"), &format!("PEERFS_IOC_{name}"));
    }
    while text.contains("\n\n\n") {
        text = text.replace("\n\n\n", "\n\n");
    }
    text
}

/// What cbindgen cannot evaluate: command numbers, flags, and the texts of the enumerations.
fn additions() -> String {
    let mut text = String::new();
    for (name, number, argument) in COMMANDS {
        let nr = number & 0xFF;
        let line = format!("PEERFS_IOC_{name} _IOWR(PEERFS_IOCTL_TYPE, {nr}, struct {argument})");
        writeln!(text, "#define {line}").expect("memory");
    }
    let map_flags = MapFlags::all().iter_names();
    flags(&mut text, "MAP", map_flags.map(|(name, flag)| (name, flag.bits())));
    let importer_flags = ImporterFlags::all().iter_names();
    flags(&mut text, "IMPORTER", importer_flags.map(|(name, flag)| (name, flag.bits())));
    let reasons = || Reason::ALL.iter();
    names(&mut text, "The name of a reason.", "reason_name", reasons().map(|r| (r.code(), r.name())));
    names(&mut text, "What is the case.", "reason_text", reasons().map(|r| (r.code(), r.text())));
    names(&mut text, "What a person can do about it.", "reason_remedy", reasons().map(|r| (r.code(), r.remedy())));
    let bits = Reason::ALL.iter().enumerate().map(|(bit, reason)| (bit, reason.code()));
    codes(&mut text, "The reason that a bit of `refusals` stands for. 0 for an unknown bit.", "reason_of_bit", bits);
    let triggers = Trigger::ALL.iter().map(|t| (t.code(), t.name()));
    names(&mut text, "The name of a trigger.", "trigger_name", triggers);
    let paths = [Path::Fallback, Path::DirectWindow, Path::DirectBar];
    names(&mut text, "The name of a path.", "path_name", paths.map(|p| (p as u32, p.name())).into_iter());
    text
}

fn flags(text: &mut String, kind: &str, flags: impl Iterator<Item = (&'static str, u32)>) {
    text.push('\n');
    for (name, bits) in flags {
        writeln!(text, "#define PEERFS_{kind}_{name} {bits}u").expect("memory");
    }
}

fn codes(text: &mut String, what: &str, function: &str, codes: impl Iterator<Item = (usize, u32)>) {
    let head = format!("\n/* {what} */\nstatic inline uint32_t peerfs_{function}(uint32_t bit) {{\n  switch (bit) {{");
    writeln!(text, "{head}").expect("memory");
    for (bit, code) in codes {
        writeln!(text, "  case {bit}: return {code};").expect("memory");
    }
    text.push_str("  default: return 0;\n  }\n}\n");
}

fn names(text: &mut String, what: &str, function: &str, names: impl Iterator<Item = (u32, &'static str)>) {
    let head = format!(
        "\n/* {what} NULL for an unknown code. */\nstatic inline const char *peerfs_{function}(uint32_t code) {{\n  switch (code) {{"
    );
    writeln!(text, "{head}").expect("memory");
    for (code, name) in names {
        writeln!(text, "  case {code}: return {name:?};").expect("memory");
    }
    text.push_str("  default: return 0;\n  }\n}\n");
}

#[test]
fn the_committed_header_is_current() {
    let path = crate_dir().join("include/peerfs.h");
    let wanted = generate();
    if std::env::var_os("PEERFS_UPDATE_HEADER").is_some() {
        std::fs::write(&path, &wanted).expect("writable header");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "include/peerfs.h is not what the crate says: run PEERFS_UPDATE_HEADER=1 cargo test -p peerfs-abi --test header"
    );
}

/// C expressions and the values Rust gives them. A field that is missing here does not compile.
macro_rules! layout {
    ($list:ident, $rust:ident, $c:literal, $($field:ident),+) => {
        let _every_field = |value: &$rust| {
            let $rust { $($field: _),+ } = value;
        };
        $list.push((format!("sizeof(struct {})", $c), size_of::<$rust>() as u64));
        $($list.push((
            format!("offsetof(struct {}, {})", $c, stringify!($field)),
            offset_of!($rust, $field) as u64,
        ));)+
    };
}

fn expectations() -> Vec<(String, u64)> {
    let mut list = Vec::new();
    layout!(
        list,
        Segment,
        "peerfs_segment",
        file_offset,
        length,
        path,
        reason,
        grant_id,
        grant_offset,
        grant_length,
        device_offset,
        sequence_slot,
        grant_kind,
        sequence,
        refusals,
        triggers
    );
    layout!(
        list,
        Map,
        "peerfs_map",
        abi_version,
        flags,
        context_id,
        offset,
        length,
        importer,
        file_fd,
        reserved,
        mapping_id,
        next_offset,
        end_offset,
        segment_count,
        retry_after_ms,
        segments
    );
    layout!(
        list,
        Unmap,
        "peerfs_unmap",
        abi_version,
        report_only,
        mapping_id,
        bytes_direct_window,
        bytes_direct_bar,
        bytes_fallback
    );
    layout!(
        list,
        Revoke,
        "peerfs_revoke",
        abi_version,
        flags,
        offset,
        length,
        revoked,
        latency_us,
        enforced,
        pins_cut,
        pins_detached,
        mapping_id
    );
    layout!(
        list,
        ReadByServer,
        "peerfs_read_by_server",
        abi_version,
        file_fd,
        offset,
        length,
        crc32c,
        reason,
        bytes_direct_window,
        bytes_direct_bar,
        bytes_fallback
    );
    layout!(
        list,
        DeviceCopy,
        "peerfs_copy",
        abi_version,
        file_fd,
        importer,
        flags,
        block_bytes,
        offset,
        length,
        block,
        bytes_direct_window,
        bytes_direct_bar,
        bytes_fallback,
        bytes_revoked,
        reason,
        cache_losses
    );
    layout!(list, Reflink, "peerfs_reflink", abi_version, operation, source_name, source_offset, destination_offset, length);
    layout!(
        list,
        Context,
        "peerfs_context",
        abi_version,
        importer_flags,
        importer,
        dma_bits,
        va_bits,
        page_bytes,
        mem_fd,
        context_id,
        sequence_grant_id,
        sequence_bytes,
        transport,
        deadline_ms,
        socket_path,
        pci_address,
        reserved
    );
    layout!(list, Ack, "peerfs_ack", abi_version, count, grant_ids);
    layout!(list, Event, "peerfs_event", grant_id, mapping_id, file_offset, length, trigger, deadline_ms);
    layout!(
        list,
        Info,
        "peerfs_info",
        abi_version,
        transport,
        capacity_bytes,
        free_bytes,
        aperture_bytes,
        aperture_used_bytes,
        mappings,
        file_mappings,
        file_bytes_direct,
        file_bytes_fallback,
        file_fallback,
        revocations,
        revocations_enforced,
        deadline_ms,
        reserved
    );
    layout!(list, DeviceMemory, "peerfs_device_memory", abi_version, call, id, bytes, mode, migrated);
    layout!(list, Request, "peerfs_request", magic, abi_version, grant_id);
    layout!(list, Reply, "peerfs_reply", magic, error, grant_id);
    for (name, number, _) in COMMANDS {
        list.push((format!("PEERFS_IOC_{name}"), u64::from(*number)));
    }
    let map_flags = MapFlags::all().iter_names();
    list.extend(map_flags.map(|(name, flag)| (format!("PEERFS_MAP_{name}"), flag.bits().into())));
    list.push(("PEERFS_ABI_VERSION".into(), peerfs_abi::ABI_VERSION.into()));
    list.push(("PEERFS_SOCKET_MAGIC".into(), peerfs_abi::socket::MAGIC.into()));
    list.push(("PEERFS_REASON_STALE_CONTEXT".into(), Reason::StaleContext.code().into()));
    list.push(("PEERFS_TRIGGER_UNMAP".into(), Trigger::Unmap.code().into()));
    list
}

#[test]
fn a_c_compiler_lays_everything_out_alike() {
    let list = expectations();
    let mut source =
        String::from("#include <stddef.h>\n#include <stdio.h>\n#include \"peerfs.h\"\n#include \"peerfs.h\"\nint main(void) {\n");
    for (expression, _) in &list {
        writeln!(source, "  printf(\"%llu\\n\", (unsigned long long)({expression}));").expect("memory");
    }
    source.push_str("  return peerfs_reason_name(2) == 0 || peerfs_path_name(77) != 0;\n}\n");
    let folder = tempfile::tempdir().expect("temporary folder");
    let (program, code) = (folder.path().join("layout"), folder.path().join("layout.c"));
    std::fs::write(&code, source).expect("source");
    compile(&code, &program);
    let output = Command::new(&program).output().expect("it runs");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("numbers");
    let values: Vec<u64> = text.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(values.len(), list.len());
    for ((expression, wanted), found) in list.iter().zip(values) {
        assert_eq!(found, *wanted, "{expression}");
    }
}

fn compile(code: &FilePath, program: &PathBuf) {
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]);
    command.arg(crate_dir().join("include")).arg(code).arg("-o").arg(program);
    let output = command.output().expect("a C compiler (cc) is required");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}
