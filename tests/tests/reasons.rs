//! Every reason that refuses a direct mapping, produced on a real mount, and what a query says beforehand. Reasons
//! of the path between devices are in `peer_path.rs`, those of a failing device in `faults.rs`.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_abi::ioctl::{self, Map};
use peerfs_abi::{ABI_VERSION, names};
use peerfs_client::{DecisionTable, ImporterSpec, MapFlags, Reason, ReasonSet, Session, Trigger, TriggerSet};
use peerfs_sys::{FileView, Sharing};
use peerfs_tests::{ScratchMount, peerfs};
use zerocopy::FromZeros;

const MIB: u64 = 1 << 20;
const NONE: MapFlags = MapFlags::empty();
const WRITE: MapFlags = MapFlags::WRITE;
/// A revocation that does not come within this time never does.
const PATIENCE: Duration = Duration::from_secs(20);

fn mount(options: &[&str]) -> ScratchMount {
    ScratchMount::new("64M", options).expect("a mount")
}

/// A file of `mib` MiB, all of it written.
fn written(mount: &ScratchMount, name: &str, mib: u64) -> PathBuf {
    let path = mount.join(name);
    std::fs::write(&path, vec![7; (mib * MIB) as usize]).expect("a file");
    path
}

fn open(path: &Path, write: bool) -> peerfs_client::File {
    peerfs_client::File::open_with(path, OpenOptions::new().read(true).write(write)).expect("open")
}

fn session(mount: &ScratchMount) -> Session {
    Session::open(mount.path(), ImporterSpec::cpu()).expect("a session")
}

fn set(reasons: &[Reason]) -> ReasonSet {
    reasons.iter().copied().collect()
}

/// Offset, length and all refusals of each stretch.
fn stretches(table: &DecisionTable) -> Vec<(u64, u64, ReasonSet)> {
    table.segments.iter().map(|segment| (segment.file_offset, segment.length, segment.refusals)).collect()
}

/// The reason that a map of all of a file is refused with.
fn mapped(session: &Session, file: &peerfs_client::File, flags: MapFlags) -> Option<Reason> {
    let mapping = session.map(file, .., flags).expect("map");
    let reasons: BTreeSet<_> = mapping.segments().iter().map(|segment| segment.reason).collect();
    assert_eq!(reasons.len(), 1, "{:?}", mapping.segments());
    reasons.into_iter().next().flatten()
}

#[test]
fn what_is_in_the_file_decides_stretch_by_stretch() {
    let mount = mount(&["--cmb", "16M"]);
    let path = mount.join("mixed");
    let file = File::create(&path).expect("create");
    file.write_all_at(&vec![7; MIB as usize], 0).expect("write");
    file.set_len(4 * MIB + 100).expect("extend");
    fallocate(&file, FallocateFlags::empty(), 2 * MIB as i64, MIB as i64).expect("fallocate");
    drop(file);
    let table = open(&path, true).query(100..5 * MIB, NONE, "cpu").expect("query");
    let block = 4096;
    assert_eq!(
        stretches(&table),
        [
            (100, block - 100, set(&[Reason::Misaligned])),
            (block, MIB - block, set(&[])),
            (MIB, MIB, set(&[Reason::Hole])),
            (2 * MIB, MIB, set(&[Reason::Unwritten])),
            (3 * MIB, MIB + 100, set(&[Reason::Hole])),
            (4 * MIB + 100, MIB - 100, set(&[Reason::BeyondEof])),
        ]
    );
    let directory = open(&mount.path(), false).query(0..4096, NONE, "cpu").expect("query");
    assert!(directory.segments[0].refusals.contains(Reason::NotRegularFile));
}

#[test]
fn a_query_names_every_stage_that_would_refuse() {
    let mount = mount(&["--cmb", "0", "-o", "direct=never"]);
    let path = mount.join("preallocated");
    let file = File::create(&path).expect("create");
    fallocate(&file, FallocateFlags::empty(), 0, MIB as i64).expect("fallocate");
    drop(file);
    let all = set(&[Reason::Unwritten, Reason::Policy, Reason::ReadOnly, Reason::NoAperture, Reason::WriteForbidden]);
    let table = open(&path, false).query(.., WRITE, "readonly").expect("query");
    assert_eq!(stretches(&table), [(0, MIB, all)]);
    assert_eq!(table.segments[0].reason, Some(Reason::Unwritten), "the first in pipeline order");
    assert!(table.triggers().is_empty(), "nothing would be mapped");

    let told = Command::new(peerfs()).args(["query", "--write", "--importer", "readonly"]).arg(&path).output().expect("query");
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    // The command opens the file for writing if it may.
    for reason in all.iter().filter(|reason| *reason != Reason::ReadOnly) {
        assert!(text.contains(reason.name()) && text.contains(reason.remedy()), "{reason}: {text}");
    }
}

#[test]
fn policy_of_mount_and_file() {
    let never = mount(&["--cmb", "16M", "-o", "direct=never"]);
    let path = written(&never, "file", 1);
    set_policy(&path, "prefer");
    assert_eq!(mapped(&session(&never), &open(&path, false), NONE), Some(Reason::Policy), "the mount's never wins");
    drop(never);

    let mount = mount(&["--cmb", "16M"]);
    let path = written(&mount, "file", 1);
    let (session, file) = (session(&mount), open(&path, false));
    let mapping = session.map(&file, .., NONE).expect("map");
    assert!(mapping.segments().iter().all(|segment| segment.reason.is_none()));
    let (tell, told) = mpsc::channel();
    mapping.on_revoke(move |revocation| {
        let _listener_gone = tell.send(revocation.trigger);
    });
    set_policy(&path, "never");
    assert_eq!(told.recv_timeout(PATIENCE), Ok(Some(Trigger::PolicyChange)));
    assert_eq!(mapped(&session, &file, NONE), Some(Reason::Policy));
    set_policy(&path, "prefer");
    assert_eq!(mapped(&session, &file, NONE), None);
}

fn set_policy(path: &Path, value: &str) {
    peerfs_sys::set_xattr(path, names::XATTR_DIRECT, value.as_bytes()).expect("setxattr");
}

#[test]
fn respect_cache_refuses_just_the_cached_pages() {
    let mount = mount(&["--cmb", "16M", "-o", "direct=respect-cache"]);
    let path = written(&mount, "file", 4);
    let file = open(&path, false);
    let cached = File::open(&path).expect("open");
    posix_drop(&cached);
    assert_eq!(stretches(&file.query(.., NONE, "cpu").expect("query")), [(0, 4 * MIB, set(&[]))]);
    let mut page = [0; 4096];
    cached.read_exact_at(&mut page, 2 * MIB).expect("read");
    let table = file.query(.., NONE, "cpu").expect("query");
    let refused: u64 = table.refusals().iter().map(|refused| refused.1).sum();
    assert!(table.segments.iter().all(|segment| segment.reason.is_none_or(|reason| reason == Reason::PageCached)));
    assert!((4096..2 * MIB).contains(&refused), "read-ahead at most: {table:?}");
    // Dropped by hand it is direct again; prefer drops it by itself.
    set_policy(&path, "prefer");
    assert_eq!(mapped(&session(&mount), &file, NONE), None);
}

fn posix_drop(file: &File) {
    nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
}

#[test]
fn a_dirty_page_that_cannot_be_written_back_is_told() {
    let mount = mount(&["--cmb", "16M", "-o", "faults"]);
    let path = written(&mount, "file", 1);
    let (session, file) = (session(&mount), open(&path, false));
    let table = file.query(.., NONE, "cpu").expect("query");
    let device_offset = table.segments[0].device_offset.expect("direct");
    let writer = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    writer.sync_all().expect("fsync");
    let shared = FileView::map(&writer, MIB as usize, Sharing::Shared, true).expect("mmap");
    std::fs::write(mount.join(".peerfs/faults"), format!("write-error {} 4096\n", device_offset + 4096)).expect("fault");
    // The kernel may have written the page back (and lost it) before the map could: then there is nothing dirty.
    let refused = (0..100).find_map(|_| {
        shared.write(4096, &[9; 4096]).expect("store");
        mapped(&session, &file, NONE)
    });
    assert_eq!(refused, Some(Reason::PageCacheDirty));
    std::fs::write(mount.join(".peerfs/faults"), "recover\n").expect("recover");
    assert_eq!(mapped(&session, &file, NONE), None);
}

#[test]
fn handles_and_mounts_that_do_not_write() {
    let mut mount = mount(&["--cmb", "16M"]);
    let path = written(&mount, "file", 1);
    assert_eq!(mapped(&session(&mount), &open(&path, false), WRITE), Some(Reason::ReadOnly));
    mount.umount().expect("umount");
    mount.mount(&["--cmb", "16M", "-o", "ro"]).expect("mount");
    let table = open(&path, false).query(.., WRITE, "cpu").expect("query");
    assert_eq!(stretches(&table), [(0, MIB, set(&[Reason::ReadOnly]))]);
    // Where nothing can be written, nothing that writes can end a mapping, and cached readers share.
    let reads = open(&path, false).query(.., NONE, "cpu").expect("query").triggers();
    let expected: TriggerSet = [
        Trigger::AperturePressure,
        Trigger::Relocation,
        Trigger::Administrator,
        Trigger::ClientGone,
        Trigger::Unmount,
        Trigger::DeviceEvent,
    ]
    .into_iter()
    .collect();
    assert_eq!(reads, expected);
}

#[test]
fn what_could_end_a_mapping_later() {
    let mount = mount(&["--cmb", "16M"]);
    let path = written(&mount, "file", 1);
    let triggers = open(&path, true).query(.., WRITE, "cpu").expect("query").triggers();
    assert!(!triggers.contains(Trigger::Unmap), "that is the importer's own");
    let others = Trigger::ALL.iter().filter(|trigger| **trigger != Trigger::Unmap);
    assert_eq!(triggers, others.copied().collect(), "a window of a writable file can be ended by all the others");
}

#[test]
fn a_range_that_cpu_and_device_fight_over_is_busy_for_a_while() {
    let mount = mount(&["--cmb", "16M"]);
    let path = written(&mount, "file", 2);
    let (session, file) = (session(&mount), open(&path, false));
    let writer = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let mut refused = None;
    for _ in 0..200 {
        let mapping = session.map(&file, .., NONE).expect("map");
        refused = mapping.segments()[0].reason;
        if refused.is_some() {
            break;
        }
        // While it is mapped.
        writer.write_all_at(&[8; 4096], 0).expect("write");
    }
    assert_eq!(refused, Some(Reason::Busy));
    let table = file.query(.., NONE, "cpu").expect("query");
    assert!(table.segments[0].refusals.contains(Reason::Busy));
    assert!(table.retry_after.is_some_and(|wait| wait <= Duration::from_secs(1)), "{table:?}");
}

#[test]
fn apertures_that_are_missing_or_small() {
    let none = mount(&["--cmb", "0"]);
    let path = written(&none, "file", 1);
    assert_eq!(mapped(&session(&none), &open(&path, false), NONE), Some(Reason::NoAperture));
    drop(none);

    let mount = mount(&["--cmb", "4M"]);
    let file = open(&written(&mount, "file", 6), false);
    let table = file.query(.., NONE, "cpu").expect("query");
    assert_eq!(stretches(&table), [(0, 4 * MIB, set(&[])), (4 * MIB, 2 * MIB, set(&[Reason::ApertureFull]))]);
    let mapping = session(&mount).map(&file, .., NONE).expect("map");
    assert!(mapping.segments().iter().any(|segment| segment.reason == Some(Reason::ApertureFull)));
}

#[test]
fn what_the_importer_cannot_do() {
    let mount = mount(&["--cmb", "16M"]);
    let file = open(&written(&mount, "file", 1), true);
    let importer = |name: &str| {
        let flags = names::importer_flags(name).expect("known");
        let spec = ImporterSpec { name: name.into(), flags, ..ImporterSpec::cpu() };
        Session::open(mount.path(), spec).expect("a session")
    };
    assert_eq!(mapped(&importer("readonly"), &file, WRITE), Some(Reason::WriteForbidden));
    assert_eq!(mapped(&importer("nonatomic"), &file, MapFlags::ATOMIC), Some(Reason::AtomicUnsupported));
    assert_eq!(mapped(&importer("cpu"), &file, MapFlags::ATOMIC), None);
    assert_eq!(mapped(&importer("static"), &file, NONE), Some(Reason::NotifierRequired));
    let narrow = Session::open(mount.path(), ImporterSpec { dma_bits: 31, ..ImporterSpec::cpu() }).expect("a session");
    assert_eq!(mapped(&narrow, &file, NONE), Some(Reason::DmaMaskExceeded));
}

#[test]
fn pins_meet_cached_writers_and_their_quota() {
    let mount = mount(&["--cmb", "8M"]);
    let path = written(&mount, "file", 8);
    let file = open(&path, true);
    let refusals = || file.query(.., MapFlags::PIN, "static").expect("query").refusals();
    assert!(refusals().iter().any(|(reason, bytes)| *reason == Reason::PinQuota && *bytes > 0), "a pin of all of the aperture");
    assert!(!refusals().iter().any(|refused| refused.0 == Reason::CpuWriter));
    let page = file.query(0..4096, MapFlags::PIN, "static").expect("query");
    let ends: TriggerSet = [Trigger::Administrator, Trigger::Unmount].into_iter().collect();
    assert_eq!((page.direct_bytes(), page.triggers()), (4096, ends), "only force ends a pin before its holders do");
    let _writer = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    assert!(refusals().contains(&(Reason::CpuWriter, 8 * MIB)));
}

#[test]
fn quotas_and_contexts_that_have_ended() {
    let mount = mount(&["--cmb", "16M", "-o", "importer_grants=2"]);
    let path = written(&mount, "file", 8);
    let (session, file) = (session(&mount), open(&path, false));
    let mapping = session.map(&file, .., NONE).expect("map");
    let refused: u64 = mapping.segments().iter().filter(|s| s.reason == Some(Reason::ImporterQuota)).map(|s| s.length).sum();
    assert_eq!(refused, 4 * MIB, "{:?}", mapping.segments());
    let table = session.query(&file, .., NONE).expect("query");
    assert_eq!(stretches(&table), [(0, 8 * MIB, set(&[Reason::ImporterQuota]))], "known beforehand");

    let plain = File::open(&path).expect("open");
    let mut argument = Box::new(Map::new_zeroed());
    argument.abi_version = ABI_VERSION;
    argument.context_id = session.context_id() + 1000;
    argument.file_fd = plain.as_raw_fd();
    peerfs_sys::ioctl(&plain, ioctl::MAP, &mut *argument).expect("a fallback, no error");
    assert_eq!(Reason::from_code(argument.segments[0].reason), Some(Reason::StaleContext));
}
