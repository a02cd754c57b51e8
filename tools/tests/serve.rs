//! `peerfs serve` as whoever reaches its port sees it.

#[allow(dead_code, reason = "shared with other tests")]
mod common;
#[path = "common/stopped.rs"]
mod stopped;
#[allow(dead_code, reason = "shared with other tests")]
mod web;

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::{Scratch, fail, succeed};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use stopped::Stopped;
use web::{Running, get, http};

/// A mount and its page.
struct Scene {
    scratch: Scratch,
    address: String,
    token: String,
    server: Running,
}

impl Scene {
    fn new() -> Scene {
        let scratch = Scratch::new();
        succeed(&["mount", "mem:64M", &scratch.mnt(), "--cmb", "8M"]);
        let mut server = Running::new(&["serve", &scratch.mnt()]);
        let url = server.says("http://");
        let (address, token) = url.trim_start_matches("http://").split_once("/?token=").expect("an address with a token");
        assert!(address.starts_with("127.0.0.1:"), "{url}");
        Scene { address: address.to_owned(), token: token.to_owned(), scratch, server }
    }

    fn json(&self, target: &str) -> Value {
        let answer = get(&self.address, &self.with_token(target));
        assert_eq!(answer.status, 200, "{}", answer.body);
        serde_json::from_str(&answer.body).expect("JSON")
    }

    fn with_token(&self, target: &str) -> String {
        let joint = if target.contains('?') { '&' } else { '?' };
        format!("{target}{joint}token={}", self.token)
    }
}

#[test]
fn without_the_token_nothing_is_answered() {
    let scene = Scene::new();
    let (address, token) = (scene.address.as_str(), scene.token.as_str());
    let other = format!("{}{}", if token.starts_with('0') { '1' } else { '0' }, &token[1..]);
    for path in ["/", "/api/state", "/api/files", "/api/file?inode=1", "/nothing"] {
        assert_eq!(get(address, path).status, 403, "{path}");
        let joint = if path.contains('?') { '&' } else { '?' };
        for wrong in ["", &other, &token[..token.len() - 1]] {
            assert_eq!(get(address, &format!("{path}{joint}token={wrong}")).status, 403, "{path} {wrong}");
        }
    }
    assert!(!get(address, "/").body.contains(token));
    assert_eq!(get(address, &scene.with_token("/nothing")).status, 404);
    assert_eq!(get(address, &scene.with_token("/")).status, 200);
}

#[test]
fn pages_from_elsewhere_cannot_ask() {
    let scene = Scene::new();
    let target = scene.with_token("/api/state");
    let host = |host: &str| http(&scene.address, &format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    for rebound in ["attacker.example", "127.0.0.1.attacker.example:80"] {
        assert_eq!(host(rebound).status, 403, "{rebound}");
    }
    assert_eq!(host("localhost:1").status, 200);
    let posted = http(&scene.address, &format!("POST {target} HTTP/1.1\r\nHost: {}\r\n\r\n", scene.address));
    assert_eq!(posted.status, 405);
    assert!(!host("localhost").head.to_ascii_lowercase().contains("access-control"), "no other origin may read answers");
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let scene = Scene::new();
    let answer = get(&scene.address, &scene.with_token("/"));
    let policy = answer.head.lines().find_map(|line| line.strip_prefix("Content-Security-Policy: ")).expect("a policy");
    assert!(policy.starts_with("default-src 'none'; ") && policy.contains("frame-ancestors 'none'"), "{policy}");
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
    assert_eq!(answer.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "one for the style, one for the script");
    assert!(!get(&scene.address, &scene.with_token("/")).body.contains(nonce), "each answer has its own");
    for outside in ["http://", "https://", "@import", "src=", "innerHTML", "{{"] {
        let found = answer.body.replace("http://www.w3.org/2000/svg", "").contains(outside);
        assert!(!found, "the page has {outside}");
    }
}

#[test]
fn answers_agree_with_the_commands_of_the_same_user() {
    let mut scene = Scene::new();
    let mnt = scene.scratch.mnt();
    fs::create_dir(scene.scratch.join("mnt/folder")).expect("room");
    fs::write(scene.scratch.join("mnt/folder/file"), vec![7; 1 << 20]).expect("room");
    fs::File::options()
        .write(true)
        .open(scene.scratch.join("mnt/folder/file"))
        .and_then(|file| file.set_len(2 << 20))
        .expect("a hole");
    let path = scene.scratch.text("mnt/folder/file");
    let mut holder = Running::new(&["map", &path, "--hold", "600"]);
    holder.says("mapping ");

    let mut state = scene.json("/api/state");
    let mut info: Value = serde_json::from_str(&succeed(&["info", &mnt, "--json"])).expect("JSON");
    // Looking costs requests.
    let requests = [&mut state["info"], &mut info].map(|info| info["requests"].take());
    assert!(requests[0]["open"].as_u64() < requests[1]["open"].as_u64(), "{requests:?}");
    assert_eq!(state["info"], info);
    let mapping = &state["ledger"]["mappings"][0];
    assert_eq!((&mapping["pid"], &mapping["length"]), (&Value::from(holder.pid()), &Value::from(2 << 20)));
    let windows = state["ledger"]["windows"].as_array().expect("windows");
    assert_eq!(windows.iter().map(|window| window["length"].as_u64().unwrap_or(0)).sum::<u64>(), 1 << 20, "{windows:?}");
    assert_eq!(info["aperture"]["used_bytes"], 1 << 20);
    assert!(windows.iter().all(|window| window["object"] == mapping["object"] && window["holders"] == 1), "{windows:?}");
    assert!(state["metrics"].as_str().is_some_and(|text| text.contains("peerfs_mappings 1\n")));

    let listed = scene.json("/api/files");
    let file = &listed["files"][0];
    assert_eq!((&file["path"], &listed["complete"]), (&Value::from("folder/file"), &Value::Bool(true)));
    assert_eq!(file["inode"].to_string(), mapping["object"].as_str().expect("text"));
    let table = scene.json(&format!("/api/file?inode={}", file["inode"]));
    let query: Value = serde_json::from_str(&succeed(&["query", &path, "--json"])).expect("JSON");
    for name in ["segments", "refusals", "bytes_direct", "end"] {
        assert_eq!(table[name], query[name], "{name}");
    }
    assert_eq!((&file["decision"]["direct"], &file["decision"]["fallback"]), (&query["bytes_direct"], &query["bytes_fallback"]));

    for bad in ["/api/file", "/api/file?inode=x", "/api/file?inode=99999"] {
        assert!([400, 404].contains(&get(&scene.address, &scene.with_token(bad)).status), "{bad}");
    }
    drop(holder);
    succeed(&["umount", "--force", &mnt]);
    let gone = get(&scene.address, &scene.with_token("/api/state"));
    assert!(gone.status == 503 && gone.body.contains("not on a peerfs mount"), "{}", gone.body);
    scene.server.says("Ctrl-C ends");
    kill(Pid::from_raw(scene.server.pid().cast_signed()), Signal::SIGTERM).expect("it runs");
    assert_eq!(scene.server.ends().code(), Some(0));
}

#[test]
fn it_ends_when_told_to_while_a_request_hangs_in_a_dead_mount() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut scene = Scene::new();
        let stopped = Stopped::new(&scene.scratch.mnt());
        let mut hanging = TcpStream::connect(&scene.address).expect("it listens");
        let target = scene.with_token("/api/state");
        write!(hanging, "GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", scene.address).expect("sent");
        // Connections are taken in turn: when this one is answered, somebody has the other.
        assert_eq!(get(&scene.address, "/").status, 403);
        kill(Pid::from_raw(scene.server.pid().cast_signed()), signal).expect("it runs");
        assert_eq!(scene.server.ends().code(), Some(0), "{signal}");
        drop(stopped);
        succeed(&["umount", &scene.scratch.mnt()]);
    }
}

/// Another user's page has what that user may know: neither who maps what, nor what is in files that only others open.
#[test]
fn another_user_is_told_no_more_than_by_the_commands() {
    const NOBODY: u32 = 65534;
    let scratch = Scratch::new();
    succeed(&["mount", "mem:64M", &scratch.mnt(), "--cmb", "8M"]);
    let open_to_all = |name: &str, mode| fs::set_permissions(scratch.join(name), Permissions::from_mode(mode)).expect("ours");
    for (name, mode) in [("mnt/secret", 0o600), ("mnt/public", 0o644)] {
        fs::write(scratch.join(name), [1; 8192]).expect("room");
        open_to_all(name, mode);
    }
    let mut holder = Running::new(&["map", &scratch.text("mnt/public"), "--hold", "600"]);
    holder.says("mapping ");
    // Where it was built, others may have no business.
    // By a program: a file that is open for writing cannot be run, and what other tests start meanwhile inherits it.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_peerfs")).arg(scratch.join("peerfs")).status();
    assert!(copied.expect("cp").success());
    for name in ["", "peerfs"] {
        open_to_all(name, 0o755);
    }
    let mut server = Running::start(Command::new(scratch.join("peerfs")).args(["serve", &scratch.mnt()]).uid(NOBODY).gid(NOBODY));
    let url = server.says("http://");
    let (address, token) = url.trim_start_matches("http://").split_once("/?").expect("an address with a token");
    let json = |path: &str| -> Value { serde_json::from_str(&get(address, &format!("{path}?{token}")).body).expect("JSON") };
    let state = json("/api/state");
    assert_eq!((&state["ledger"], &state["info"]["mappings"]), (&Value::Null, &Value::from(1)));
    let listed = json("/api/files");
    let files = listed["files"].as_array().expect("files");
    let decision = |name: &str| &files.iter().find(|file| file["path"] == name).expect("listed")["decision"];
    assert_eq!(decision("public")["direct"], 8192);
    assert!(decision("secret")["error"].as_str().is_some_and(|error| error.contains("Permission denied")), "{listed}");
    drop(holder);
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn it_says_what_is_wrong_before_it_serves() {
    let scratch = Scratch::new();
    assert!(fail(1, &["serve", &scratch.mnt()]).contains("not on a peerfs mount"));
    assert!(fail(1, &["serve", &scratch.text("missing")]).contains("No such file"));
    assert!(fail(2, &["serve", &scratch.mnt(), "--listen", "example.com:80"]).contains("127.0.0.1:9464"));
    let scene = Scene::new();
    assert!(fail(1, &["serve", &scene.scratch.mnt(), "--listen", &scene.address]).contains("another port"));
}
