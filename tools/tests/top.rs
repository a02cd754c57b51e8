//! `peerfs top` in a real terminal, on a real mount with clients that map.

mod common;
#[path = "common/tmux.rs"]
mod tmux;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{Scratch, fail, succeed};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tmux::Tmux;

const PEERFS: &str = env!("CARGO_BIN_EXE_peerfs");
const MIB: usize = 1 << 20;

/// A process that maps a file and holds the mapping.
struct Holder {
    child: Child,
    said: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn new(file: &str) -> Holder {
        let mut child =
            Command::new(PEERFS).args(["map", file, "--hold", "600"]).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let said = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut holder = Holder { child, said };
        holder.says("mapping ");
        holder
    }

    /// Waits until it says something that begins so.
    fn says(&mut self, beginning: &str) {
        let mut lines = self.said.by_ref().map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with(beginning)), "it never says {beginning:?}");
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn mounted() -> Scratch {
    let scratch = Scratch::new();
    succeed(&["mkfs", &scratch.text("v.img"), "--size", "64M"]);
    mount(&scratch);
    scratch
}

fn mount(scratch: &Scratch) {
    succeed(&["mount", &scratch.text("v.img"), &scratch.mnt(), "--cmb", "16M"]);
}

fn written(scratch: &Scratch, name: &str, length: usize) -> String {
    let mut file = File::create(scratch.join(name)).expect("the mount takes files");
    file.write_all(&vec![7; length]).and_then(|()| file.sync_all()).expect("room");
    scratch.text(name)
}

/// A view in a terminal of this size; behind its end the shell says `ended` and its exit code.
fn view(scratch: &Scratch, columns: u16, rows: u16) -> Tmux {
    Tmux::run(&format!("{PEERFS} top {} --interval 0.1; echo ended $?", scratch.mnt()), columns, rows)
}

/// Numbers in the column of this title, from the top.
fn column(screen: &str, title: &str) -> Vec<String> {
    let mut lines = screen.lines().skip_while(|line| !line.trim_start().starts_with("mapping"));
    let titles = lines.next().unwrap_or_default();
    let Some(column) = titles.split("  ").filter(|word| !word.trim().is_empty()).position(|word| word.trim().starts_with(title))
    else {
        return Vec::new();
    };
    let rows = lines.take_while(|line| line.trim_start().starts_with(|first: char| first.is_ascii_digit()));
    rows.filter_map(|row| row.split("  ").filter(|word| !word.trim().is_empty()).nth(column))
        .map(|cell| cell.trim().to_owned())
        .collect()
}

fn live_grants(scratch: &Scratch) -> u64 {
    let ledger: Value = serde_json::from_str(&succeed(&["mappings", &scratch.mnt(), "--json"])).expect("JSON");
    ledger["mappings"].as_array().expect("a list").iter().filter_map(|mapping| mapping["grants"].as_u64()).sum()
}

fn server(scratch: &Scratch) -> Pid {
    let info: Value = serde_json::from_str(&succeed(&["info", &scratch.mnt(), "--json"])).expect("JSON");
    Pid::from_raw(info["server_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a process"))
}

#[test]
fn mappings_are_shown_sorted_and_revoked_by_key() {
    let scratch = mounted();
    let mut large = Holder::new(&written(&scratch, "mnt/large", 4 * MIB));
    let small = Holder::new(&written(&scratch, "mnt/small", MIB));
    let view = view(&scratch, 120, 40);
    let screen = view.until("two mappings", |screen| column(screen, "process").len() == 2);
    for expected in [&scratch.mnt(), "5.0 MiB of 16.0 MiB in 3 windows, software CMB", "2 mappings", "a=inode", "direct-window"] {
        assert!(screen.contains(expected), "{expected:?} is missing in\n{screen}");
    }
    assert!(view.is_alternate());

    // By length: the small one first, then the other way round.
    view.press(&["s", "s", "s"]);
    let screen = view.shows("lengthv");
    assert_eq!(column(&screen, "process"), [small.pid(), large.pid()], "{screen}");
    view.press(&["r"]);
    let screen = view.shows("length^");
    assert_eq!(column(&screen, "process"), [large.pid(), small.pid()], "{screen}");
    view.press(&["p"]);
    view.shows("processv");
    view.press(&["i"]);
    let screen = view.shows("importerv");
    assert!(screen.contains("cpu") && screen.contains("5.0 MiB"), "{screen}");
    view.press(&["i", "s", "s", "s", "r", "Down"]);
    view.shows("length^");

    // The first row is selected; no is no, and yes is yes.
    view.press(&["R"]);
    view.shows("? y/n");
    view.press(&["n"]);
    view.until("no question", |screen| !screen.contains("? y/n"));
    assert_eq!(live_grants(&scratch), 3);
    view.press(&["R"]);
    let asked = view.shows("? y/n");
    let number = column(&asked, "mapping").remove(0);
    assert!(asked.contains(&format!("revoke mapping {number}? y/n")), "{asked}");
    view.press(&["y"]);
    view.shows("2 grants revoked in ");
    let screen = view.until("one mapping less", |screen| column(screen, "process") == [small.pid()]);
    assert!(screen.contains("(Administrator): median "), "{screen}");
    large.says("revoked: ");
    assert_eq!(live_grants(&scratch), 1);

    view.press(&["q"]);
    let screen = view.shows("ended 0");
    assert!(!view.is_alternate() && !screen.contains("aperture"), "{screen}");
    drop((large, small));
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_pause_and_the_help_and_other_sizes_of_the_terminal() {
    let scratch = mounted();
    let view = view(&scratch, 100, 30);
    view.shows("nothing is mapped");
    view.press(&["h"]);
    view.shows("sort by the next column");
    view.press(&["h"]);
    view.until("no help", |screen| !screen.contains("sort by the next column"));
    view.press(&["Space"]);
    view.shows("PAUSED");
    let holder = Holder::new(&written(&scratch, "mnt/file", MIB));
    for (columns, rows, title) in [(20, 5, "peerfs top PAUSED"), (1, 1, "q"), (60, 10, "PAUSED")] {
        view.resize(columns, rows);
        let screen = view.until("the size", |screen| {
            let fits = screen.lines().all(|line| line.chars().count() <= usize::from(columns));
            fits && screen.contains(title)
        });
        assert!(!screen.contains("1 mapping "), "{screen}");
    }
    view.resize(100, 30);
    view.press(&["Space"]);
    view.until("the mapping", |screen| column(screen, "process") == [holder.pid()]);
    view.press(&["C-c"]);
    view.shows("ended 0");
    drop(holder);
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_view_outlives_its_mount_and_finds_the_next_one() {
    let scratch = mounted();
    let view = view(&scratch, 120, 30);
    view.shows("nothing is mapped");
    succeed(&["umount", &scratch.mnt()]);
    view.shows("not on a peerfs mount");
    mount(&scratch);
    view.until("the new mount", |screen| !screen.contains("OLD: "));
    kill(server(&scratch), Signal::SIGKILL).expect("it is there");
    view.shows("OLD: ");
    view.press(&["R"]);
    view.shows("OLD: ");
    view.press(&["q"]);
    view.shows("ended 0");
    succeed(&["umount", &scratch.mnt()]);
}

/// A server that does not answer holds up no key.
#[test]
fn a_stopped_server_is_told_and_found_again() {
    let scratch = mounted();
    let view = view(&scratch, 120, 30);
    view.shows("nothing is mapped");
    let server = server(&scratch);
    kill(server, Signal::SIGSTOP).expect("it is there");
    view.shows("OLD: no answer for ");
    view.press(&["h"]);
    view.shows("sort by the next column");
    view.press(&["h"]);
    kill(server, Signal::SIGCONT).expect("it is there");
    view.until("answers", |screen| !screen.contains("OLD: "));
    view.press(&["q"]);
    view.shows("ended 0");
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_signal_gives_the_terminal_back() {
    let scratch = mounted();
    let pid = scratch.text("pid");
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let line = format!("sh -c 'echo $$ >{pid}; exec {PEERFS} top {}'; echo ended $?; stty -a", scratch.mnt());
        let view = Tmux::run(&line, 120, 30);
        view.shows("nothing is mapped");
        let number: i32 = fs::read_to_string(&pid).expect("written").trim().parse().expect("a number");
        kill(Pid::from_raw(number), signal).expect("it is there");
        let screen = view.until("the end", |screen| screen.contains(&format!("ended {code}")) && screen.contains("echoke"));
        assert!(!view.is_alternate() && screen.contains(" icanon") && screen.contains(" echo "), "{screen}");
    }
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn once_is_text_and_mistakes_are_told() {
    let scratch = mounted();
    let holder = Holder::new(&written(&scratch, "mnt/file", MIB));
    let told = succeed(&["top", "--once", &scratch.mnt()]);
    assert_eq!(column(&told, "process"), [holder.pid()], "{told}");
    assert!(told.contains("1.0 MiB of 16.0 MiB in 1 window") && !told.contains('\x1b'), "{told}");
    assert!(told.lines().all(|line| line.trim_end() == line), "{told}");
    assert!(fail(1, &["top", &scratch.mnt()]).contains("--once"));
    assert!(fail(1, &["top", "--once", &scratch.text("")]).contains("not on a peerfs mount"));
    for interval in ["0", "-1", "nan", "1e30", "x"] {
        fail(2, &["top", &format!("--interval={interval}"), &scratch.mnt()]);
    }
    // By hand, as the view does it.
    let ledger: Value = serde_json::from_str(&succeed(&["mappings", &scratch.mnt(), "--json"])).expect("JSON");
    let number = ledger["mappings"][0]["mapping"].to_string();
    assert!(succeed(&["revoke", "--mapping", &number, &scratch.mnt()]).contains("1 grant revoked"));
    fail(1, &["revoke", "--mapping", "1", &scratch.mnt()]);
    assert!(succeed(&["top", "--once", &scratch.mnt()]).contains("nothing is mapped; 1 mapping holding nothing"));
    drop(holder);
    succeed(&["umount", &scratch.mnt()]);
}

#[test]
fn a_query_is_coloured_and_as_wide_as_the_terminal() {
    let scratch = mounted();
    let file = written(&scratch, "mnt/file", MIB);
    let terminal = Tmux::run(&format!("{PEERFS} query {file}; echo done"), 97, 45);
    let screen = terminal.shows("done");
    assert!(screen.lines().any(|line| line == format!("[{}]", "#".repeat(95))), "{screen}");
    assert!(terminal.coloured().contains("\x1b[30m\x1b[42m####"), "{:?}", terminal.coloured());
    let terminal = Tmux::run(&format!("NO_COLOR=1 {PEERFS} query {file}; echo done"), 97, 45);
    terminal.shows("done");
    assert!(!terminal.coloured().contains("\x1b["), "{:?}", terminal.coloured());
    succeed(&["umount", &scratch.mnt()]);
}
