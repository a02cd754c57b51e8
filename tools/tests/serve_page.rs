//! The page of `peerfs serve` in a browser, on a mount under load: what it shows is what the commands say.

mod browser;
#[allow(dead_code, reason = "shared with other tests")]
mod common;
#[allow(dead_code, reason = "shared with other tests")]
mod web;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use browser::Browser;
use common::{Scratch, succeed};
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_client::{DeviceMemory, ImporterSpec, Session};
use serde_json::Value;
use web::Running;

const MIB: u64 = 1 << 20;
/// A name that would do something if it were taken for HTML.
const EVIL: &str = "<img src=x onerror=document.title=1>.bin";

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&succeed(arguments)).expect("JSON")
}

/// A mount with files of every kind, and programs that hold mappings and pins of them, and device memory.
struct Load {
    holders: Vec<Running>,
    memory: Option<(Session, DeviceMemory)>,
    scratch: Scratch,
}

impl Load {
    fn new() -> Load {
        let scratch = Scratch::new();
        succeed(&["mkfs", &scratch.text("v.img"), "--size", "192M", "--label", "models"]);
        succeed(&["mount", &scratch.text("v.img"), &scratch.mnt(), "--cmb", "64M", "-o", "devmem=8M"]);
        let mut load = Load { scratch, holders: Vec::new(), memory: None };
        for (name, size) in [("weights/layer-0.bin", 12), ("weights/layer-1.bin", 7), ("index.bin", 5), ("pinned.bin", 3)] {
            load.write(name, size * MIB);
        }
        load.write("hung.bin", 2 * MIB);
        load.write("notes.txt", 3000);
        load.write(EVIL, MIB);
        load.write("sparse.bin", MIB);
        load.open("sparse.bin").set_len(6 * MIB).expect("a hole");
        load.write("log/preallocated.bin", MIB);
        fallocate(load.open("log/preallocated.bin"), FallocateFlags::empty(), 0, 4 * 1048576).expect("room");
        load.open("empty");
        for name in ["weights/layer-0.bin", "weights/layer-0.bin", "weights/layer-1.bin", "sparse.bin"] {
            load.hold(name, &[]);
        }
        load.hold("pinned.bin", &["--pin"]);
        load.hold("hung.bin", &["--hung"]);
        let session = Session::open(load.scratch.mnt(), ImporterSpec::cpu()).expect("a session");
        let memory = session.allocate_device_memory(3 * MIB).expect("room");
        load.memory = Some((session, memory));
        load
    }

    fn path(&self, name: &str) -> String {
        self.scratch.text(&format!("mnt/{name}"))
    }

    fn open(&self, name: &str) -> File {
        let path = self.scratch.join(&format!("mnt/{name}"));
        fs::create_dir_all(path.parent().expect("it is in the mount")).expect("room");
        File::options().write(true).create(true).truncate(false).open(path).expect("room")
    }

    fn write(&self, name: &str, size: u64) {
        let bytes: Vec<u8> = (0..size).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
        let file = self.open(name);
        file.write_all_at(&bytes, 0).and_then(|()| file.sync_all()).expect("room");
    }

    fn hold(&mut self, name: &str, how: &[&str]) {
        let path = self.path(name);
        let mut holder = Running::new(&[&["map", path.as_str(), "--hold", "600"], how].concat());
        holder.says("mapping ");
        self.holders.push(holder);
    }

    /// Bytes that move, ranges that are refused, revocations that are acknowledged and one that is not.
    fn stir(&self) {
        for name in ["weights/layer-0.bin", "index.bin", "sparse.bin", "log/preallocated.bin"] {
            succeed(&["map", &self.path(name), "--checksum"]);
        }
        succeed(&["map", &self.path("index.bin"), "--importer", "static"]);
        succeed(&["map", &self.path("notes.txt"), "--importer", "readonly", "--write"]);
        succeed(&["revoke", &self.path("hung.bin")]);
        for _ in 0..3 {
            self.revoke_once();
        }
    }

    fn revoke_once(&self) {
        let mut holder = Running::new(&["map", &self.path("index.bin"), "--hold", "600"]);
        holder.says("mapping ");
        succeed(&["revoke", &self.path("index.bin")]);
        holder.says("revoked");
    }

    fn info(&self) -> Value {
        json(&["info", &self.scratch.mnt(), "--json"])
    }
}

/// The texts of a column of a table on the page, in the order of its rows.
fn column(browser: &mut Browser, table: &str, number: usize) -> Vec<String> {
    let cells = format!("[...document.querySelectorAll('#{table} tbody tr')].map(row => row.cells[{number}].textContent)");
    let value = browser.value(&cells);
    value.as_array().expect("rows").iter().map(|text| text.as_str().expect("text").to_owned()).collect()
}

fn text_of(browser: &mut Browser, selector: &str) -> String {
    let text = browser.value(&format!("document.querySelector('{selector}').textContent"));
    text.as_str().expect("it is there").to_owned()
}

/// Waits until the element has this text.
fn shows(browser: &mut Browser, selector: &str, text: &str) {
    browser.wait_for(&format!("document.querySelector('{selector}').textContent === '{text}'"));
}

#[test]
fn the_page_shows_what_the_commands_say() {
    let Some(program) = browser::find() else { return };
    let load = Load::new();
    load.stir();
    let mut server = Running::new(&["serve", &load.scratch.mnt()]);
    let url = server.says("http://");
    let mut browser = Browser::start(&program, 1320, 900);
    browser.prefer("light");
    browser.open(&url);
    browser.wait_for("document.querySelectorAll('#files tbody tr').length >= 10");
    browser.wait_for("document.querySelector('#files .tag') && !document.querySelector('#files .tag.unknown')");

    // Programs that have ended are forgotten a moment later.
    shows(&mut browser, "#tile-mappings .value", "6");
    numbers_agree(&mut browser, &load.info());
    files_and_their_decisions(&mut browser, &load);
    a_clicked_file_shows_its_segments(&mut browser, &load);
    tables_sort_by_their_headers(&mut browser);
    keep_screenshots(&mut browser, &load);
    names_are_filtered(&mut browser);
    it_is_live(&mut browser, &load);
    assert_eq!(browser.complaints(), [""; 0], "neither errors nor violations of the policy");

    succeed(&["umount", "--force", &load.scratch.mnt()]);
    browser.wait_for("!document.querySelector('#gone').hidden && document.querySelector('#live').className === 'stale'");
    assert!(text_of(&mut browser, "#gone").contains("not on a peerfs mount"));
}

fn numbers_agree(browser: &mut Browser, info: &Value) {
    let number = |value: &Value| value.as_u64().expect("a number");
    let ended = |record: &Value| number(&record["revoked"]);
    let by_trigger = info["revocations"].as_array().expect("records");
    // What a client gives back is no revocation.
    let revoked: u64 = by_trigger.iter().filter(|record| record["trigger"] != "Unmap").map(ended).sum();
    for (tile, value) in [("mappings", number(&info["mappings"])), ("pins", number(&info["pins"])), ("revoked", revoked)] {
        shows(browser, &format!("#tile-{tile} .value"), &value.to_string());
    }
    assert_eq!((number(&info["mappings"]), number(&info["pins"])), (6, 1));
    // One is hung; on a busy machine others may be late as well.
    let enforced: u64 = by_trigger.iter().map(|record| number(&record["enforced"])).sum();
    assert!(enforced >= 1);
    shows(browser, "#tile-revoked .note", &format!("{enforced} at the deadline"));
    let share = 100.0 * number(&info["aperture"]["used_bytes"]) as f64 / number(&info["aperture"]["capacity_bytes"]) as f64;
    shows(browser, "#tile-aperture .value", &format!("{share:.0} %"));
    // A square is 256 KiB, and windows begin where the one before them ends.
    let squares = number(&browser.value("document.querySelectorAll('#map .cell').length"));
    let held = number(&browser.value("document.querySelectorAll('#map .cell.held').length"));
    assert_eq!((squares, held), (256, number(&info["aperture"]["used_bytes"]).div_ceil(256 << 10)));

    let invisible = "[...document.querySelectorAll('#map .cell')].filter(cell => getComputedStyle(cell).backgroundColor.endsWith(', 0)')).length";
    assert_eq!(browser.value(invisible), 0);

    let refused = info["refused"].as_object().expect("reasons");
    let shown = browser
        .value("[...document.querySelectorAll('.reason')].map(row => row.dataset.reason + ' ' + row.lastChild.textContent)");
    let shown: Vec<&str> = shown.as_array().expect("rows").iter().filter_map(Value::as_str).collect();
    assert_eq!(shown.len(), refused.len(), "{shown:?}");
    for (reason, count) in refused {
        assert!(shown.iter().any(|row| row.starts_with(&format!("{reason} {count}×"))), "{reason}: {shown:?}");
    }
    assert!(refused.contains_key("Hole") && refused.contains_key("Unwritten"));
    let grants = column(browser, "triggers", 1);
    assert_eq!(grants.len(), by_trigger.len());
    let listed: u64 = grants.iter().map(|count| count.parse::<u64>().expect("a number")).sum();
    assert_eq!(listed, by_trigger.iter().map(ended).sum::<u64>());
    assert!(listed > revoked, "the table has what was given back as well");
    assert_eq!(browser.value("document.querySelectorAll('#latency rect').length"), 15, "a bar a bucket");
}

fn files_and_their_decisions(browser: &mut Browser, load: &Load) {
    let names = column(browser, "files", 0);
    assert!(names.contains(&EVIL.to_owned()), "names are text: {names:?}");
    assert_eq!(browser.value("document.images.length"), 0);
    assert_eq!(browser.value("document.title"), format!("peerfs {}", load.scratch.mnt()));
    let sorted = {
        let mut sorted = names.clone();
        sorted.sort();
        sorted
    };
    assert_eq!((names.len(), &names), (10, &sorted));
    let decisions = column(browser, "files", 2);
    let of = |name: &str| decisions[names.iter().position(|found| found == name).expect("listed")].as_str();
    assert_eq!((of("weights/layer-0.bin"), of("sparse.bin"), of("empty")), ("direct", "partly", "empty"));
    let mapped_by = column(browser, "files", 4);
    let holders = &mapped_by[names.iter().position(|found| found == "weights/layer-0.bin").expect("listed")];
    for holder in &load.holders[..2] {
        assert!(holders.contains(&format!("cpu {}", holder.pid())), "{holders}");
    }
    assert_eq!(column(browser, "pins", 0), ["pinned.bin"]);
    assert_eq!(column(browser, "mappings", 0).len(), 6);
    let memory = json(&["devmem", &load.scratch.mnt(), "--json"]);
    assert_eq!(column(browser, "memory", 0), [format!("devmem-{}", memory["allocations"][0]["id"])]);
    assert_eq!(column(browser, "memory", 2), ["3.0 MiB"]);
}

fn a_clicked_file_shows_its_segments(browser: &mut Browser, load: &Load) {
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(load.path("sparse.bin")).expect("it is there"));
    browser.click(&format!("#files tr[data-key='{inode}']"));
    browser.wait_for("document.querySelectorAll('#segments tbody tr').length");
    let query = json(&["query", &load.path("sparse.bin"), "--json"]);
    let segments = query["segments"].as_array().expect("segments");
    assert_eq!(text_of(browser, "#detail h3"), "sparse.bin");
    let offsets: Vec<String> = segments.iter().map(|segment| segment["offset"].to_string()).collect();
    assert_eq!(column(browser, "segments", 0), offsets);
    let reasons: Vec<&str> = segments.iter().map(|segment| segment["reason"].as_str().unwrap_or("–")).collect();
    assert_eq!(
        (column(browser, "segments", 3), reasons.contains(&"Hole")),
        (reasons.iter().map(|&r| r.to_owned()).collect(), true)
    );
    assert!(text_of(browser, ".remedies").contains("write the range first"));
    assert_eq!(browser.value("document.querySelectorAll('#map .cell.chosen').length > 0"), true);
}

fn tables_sort_by_their_headers(browser: &mut Browser) {
    let sizes = "state && [...document.querySelectorAll('#files tbody tr')].map(row => files.find(file => String(file.inode) === row.dataset.key).size)";
    let in_order = |browser: &mut Browser, down: bool| {
        let value = browser.value(sizes);
        let sizes: Vec<u64> = value.as_array().expect("rows").iter().filter_map(Value::as_u64).collect();
        assert!(
            sizes.len() == 10 && sizes.windows(2).all(|pair| if down { pair[0] >= pair[1] } else { pair[0] <= pair[1] }),
            "{sizes:?}"
        );
    };
    browser.click("#files th:nth-child(2) button");
    browser.wait_for("document.querySelector('#files th:nth-child(2)').getAttribute('aria-sort') === 'descending'");
    in_order(browser, true);
    browser.click("#files th:nth-child(2) button");
    browser.wait_for("document.querySelector('#files th:nth-child(2)').getAttribute('aria-sort') === 'ascending'");
    in_order(browser, false);
    browser.click("#files th:nth-child(1) button");
}

fn names_are_filtered(browser: &mut Browser) {
    browser.type_into("#filter", "LAYER");
    browser.wait_for("document.querySelectorAll('#files tbody tr').length === 2");
    assert_eq!(column(browser, "files", 0), ["weights/layer-0.bin", "weights/layer-1.bin"]);
}

/// What happens while it is open is shown without a click.
fn it_is_live(browser: &mut Browser, load: &Load) {
    let before = text_of(browser, "#tile-revoked .value");
    load.revoke_once();
    browser.wait_for(&format!("document.querySelector('#tile-revoked .value').textContent !== '{before}'"));
    succeed(&["map", &load.path("weights/layer-1.bin"), "--checksum"]);
    browser.wait_for("history_[history_.length - 1].direct > 0");
}

/// For the documents: `$PEERFS_SCREENSHOTS` names a folder.
fn keep_screenshots(browser: &mut Browser, load: &Load) {
    let Some(folder) = std::env::var_os("PEERFS_SCREENSHOTS").map(std::path::PathBuf::from) else { return };
    let end = Instant::now() + Duration::from_secs(100);
    while Instant::now() < end {
        load.stir();
    }
    for name in [EVIL, "empty"] {
        fs::remove_file(load.path(name)).expect("it is there");
    }
    browser.wait_for("document.querySelectorAll('#files tbody tr').length === 8");
    fs::create_dir_all(&folder).expect("a folder");
    // Where these tests mount is of no interest to readers.
    browser.value(
        "window.drawing = draw; draw = () => {}; $('where').textContent = '/mnt/peer'; \
         $('what').textContent = $('what').textContent.replace(/image:[^,]*/, 'image:/srv/vol.img')",
    );
    for scheme in ["dark", "light"] {
        browser.prefer(scheme);
        fs::write(folder.join(format!("{scheme}.png")), browser.screenshot()).expect("room");
    }
    browser.value("draw = window.drawing; 0");
}
