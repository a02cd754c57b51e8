//! The coherence of device mappings with the CPU, row by row, on a real mount with
//! the kernel's page cache. Each case asserts bytes and the path they took.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use peerfs_client::{ImporterSpec, MapFlags, Mapping, Reason, Session, SessionOptions};
use peerfs_sys::{FileView, Sharing};
use peerfs_tests::ScratchMount;

const PAGE: usize = 4096;
const SIZE: u64 = 4 << 20;
/// What a fresh file is full of.
const OLD: u8 = 0x11;

/// Which way bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Fallback,
}

/// A mount with one file, and an importer. Dropped in this order: what is open keeps the mount busy.
struct Scene {
    session: Session,
    file: peerfs_client::File,
    path: PathBuf,
    mount: ScratchMount,
}

impl Scene {
    fn new(options: &[&str]) -> Scene {
        let mut all = vec!["--cmb", "16M"];
        all.extend_from_slice(options);
        let mount = ScratchMount::new("64M", &all).expect("a mount");
        let path = mount.join("file");
        std::fs::write(&path, vec![OLD; SIZE as usize]).expect("a file");
        let file = peerfs_client::File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
        let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");
        Scene { session, file, path, mount }
    }

    fn map(&self, flags: MapFlags) -> Mapping {
        let mapping = self.session.map(&self.file, .., flags).expect("map");
        assert_all_direct(&mapping);
        mapping
    }

    fn reader(&self) -> File {
        File::open(&self.path).expect("open for reading")
    }

    fn writer(&self) -> File {
        self.open_with(0)
    }

    fn open_with(&self, flags: i32) -> File {
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path).expect("open for writing")
    }

    /// Revocations that the server has carried out.
    fn revocations(&self) -> u64 {
        self.file.info().expect("info").revocations
    }
}

fn assert_all_direct(mapping: &Mapping) {
    assert!(mapping.segments().iter().all(|segment| segment.reason.is_none()), "{:?}", mapping.segments());
}

fn page(byte: u8) -> Vec<u8> {
    vec![byte; PAGE]
}

/// The device reads a page, which must hold `byte` everywhere and have come this way.
fn assert_device_reads(mapping: &Mapping, number: u64, byte: u8, way: Way) {
    let mut buffer = page(0);
    let moved = mapping.read_at(number * PAGE as u64, &mut buffer).expect("device read");
    assert_eq!(buffer, page(byte), "page {number}");
    let direct = if moved.fallback == 0 { Way::Direct } else { Way::Fallback };
    assert_eq!(direct, way, "page {number}: {moved:?}");
}

fn device_writes(mapping: &Mapping, number: u64, byte: u8, way: Way) {
    let moved = mapping.write_at(number * PAGE as u64, &page(byte)).expect("device write");
    let direct = if moved.fallback == 0 { Way::Direct } else { Way::Fallback };
    assert_eq!(direct, way, "page {number}: {moved:?}");
}

fn assert_cpu_reads(file: &File, number: u64, byte: u8) {
    let mut buffer = page(0);
    file.read_exact_at(&mut buffer, number * PAGE as u64).expect("read");
    assert_eq!(buffer, page(byte), "page {number}");
}

fn cpu_writes(file: &File, number: u64, byte: u8) {
    file.write_all_at(&page(byte), number * PAGE as u64).expect("write");
}

fn view(file: &File, sharing: Sharing) -> FileView {
    FileView::map(file, SIZE as usize, sharing, sharing == Sharing::Shared).expect("mmap")
}

fn store(view: &FileView, number: u64, byte: u8) {
    view.write(number as usize * PAGE, &page(byte)).expect("store");
}

fn assert_loads(view: &FileView, number: u64, byte: u8) {
    let mut buffer = page(0);
    view.read(number as usize * PAGE, &mut buffer).expect("load");
    assert_eq!(buffer, page(byte), "page {number}");
}

fn cached_pages(file: &File) -> u64 {
    peerfs_sys::cachestat(file.as_fd(), 0, SIZE).expect("cachestat").cached
}

#[test]
fn silent_stores_after_a_buffered_write_reach_the_device() {
    let scene = Scene::new(&[]);
    let writer = scene.writer();
    // The write leaves the page in the cache, so that no store to it is heard of.
    cpu_writes(&writer, 3, 0x22);
    let shared = view(&writer, Sharing::Shared);
    store(&shared, 3, 0x33);
    store(&shared, 3, 0x44);
    let mapping = scene.map(MapFlags::empty());
    assert_device_reads(&mapping, 3, 0x44, Way::Direct);

    // The page left the cache with the map, so the next store is heard of: by the READ that it needs.
    store(&shared, 3, 0x55);
    assert_device_reads(&mapping, 3, 0x55, Way::Fallback);
    let again = scene.map(MapFlags::empty());
    assert_device_reads(&again, 3, 0x55, Way::Direct);
}

#[test]
fn a_read_mapping_and_cached_reads_share_when_nobody_writes() {
    let scene = Scene::new(&[]);
    let mapping = scene.map(MapFlags::empty());
    let before = scene.revocations();
    let reader = scene.reader();
    assert_cpu_reads(&reader, 5, OLD);
    assert!(cached_pages(&reader) > 0, "the read was to be cached");
    assert_device_reads(&mapping, 5, OLD, Way::Direct);
    assert_eq!(scene.revocations(), before);
}

#[test]
fn a_cached_read_revokes_a_read_mapping_beside_a_writer() {
    let scene = Scene::new(&[]);
    let _writer = scene.writer();
    let mapping = scene.map(MapFlags::empty());
    assert_device_reads(&mapping, 5, OLD, Way::Direct);
    assert_cpu_reads(&scene.reader(), 5, OLD);
    assert_device_reads(&mapping, 5, OLD, Way::Fallback);
    assert!(scene.revocations() > 0);
}

#[test]
fn a_buffered_write_revokes_a_read_mapping() {
    let scene = Scene::new(&[]);
    let writer = scene.writer();
    let mapping = scene.map(MapFlags::empty());
    assert_device_reads(&mapping, 5, OLD, Way::Direct);
    cpu_writes(&writer, 5, 0x22);
    assert_device_reads(&mapping, 5, 0x22, Way::Fallback);
    // Another chunk of the file was not touched, so its part of the mapping stays.
    assert_device_reads(&mapping, 600, OLD, Way::Direct);
}

#[test]
fn a_cached_read_sees_what_the_device_stored() {
    let scene = Scene::new(&[]);
    let reader = scene.reader();
    // In the cache before the map.
    assert_cpu_reads(&reader, 7, OLD);
    let mapping = scene.map(MapFlags::WRITE);
    device_writes(&mapping, 7, 0x22, Way::Direct);
    assert_cpu_reads(&reader, 7, 0x22);
    // The page is cached now, so what the device stores goes through the filesystem, which drops the page.
    device_writes(&mapping, 7, 0x33, Way::Fallback);
    assert_cpu_reads(&reader, 7, 0x33);
}

#[test]
fn loads_of_a_shared_view_see_what_the_device_stored() {
    let scene = Scene::new(&[]);
    let writer = scene.writer();
    let shared = view(&writer, Sharing::Shared);
    assert_loads(&shared, 7, OLD);
    let mapping = scene.map(MapFlags::WRITE);
    device_writes(&mapping, 7, 0x22, Way::Direct);
    assert_loads(&shared, 7, 0x22);
    assert_device_reads(&mapping, 7, 0x22, Way::Fallback);
}

#[test]
fn a_buffered_write_ends_a_write_mapping_and_loses_no_byte_of_it() {
    let scene = Scene::new(&[]);
    let writer = scene.writer();
    let mapping = scene.map(MapFlags::WRITE);
    device_writes(&mapping, 8, 0x22, Way::Direct);
    device_writes(&mapping, 9, 0x33, Way::Direct);
    writer.write_all_at(&[0x44; 100], 8 * PAGE as u64).expect("a write of part of a page");
    let mut mixed = page(0x22);
    mixed[..100].fill(0x44);
    let mut found = page(0);
    let moved = mapping.read_at(8 * PAGE as u64, &mut found).expect("device read");
    assert_eq!(found, mixed);
    assert_eq!(moved.direct(), 0);
    assert_device_reads(&mapping, 9, 0x33, Way::Fallback);
}

#[test]
fn a_writable_open_drops_cached_pages_and_keeps_a_read_mapping() {
    let scene = Scene::new(&[]);
    let mapping = scene.map(MapFlags::empty());
    let reader = scene.reader();
    assert_cpu_reads(&reader, 5, OLD);
    let before = scene.revocations();
    let writer = scene.writer();
    assert_eq!(cached_pages(&writer), 0, "pages beside a mapping and a writer");
    assert_device_reads(&mapping, 5, OLD, Way::Direct);
    assert_eq!(scene.revocations(), before);
    // From now on the first touch is heard of.
    store(&view(&writer, Sharing::Shared), 5, 0x22);
    assert_device_reads(&mapping, 5, 0x22, Way::Fallback);
}

#[test]
fn a_writable_open_drops_cached_pages_beside_a_revocation_too() {
    let scene = Scene::new(&["-o", "deadline_ms=2000"]);
    let options = SessionOptions { acknowledge: false };
    let hung = Session::open_with(scene.mount.path(), ImporterSpec::cpu(), options).expect("a session");
    let mapping = hung.map(&scene.file, .., MapFlags::empty()).expect("map");
    assert_cpu_reads(&scene.reader(), 5, OLD);
    let (tell, hear) = mpsc::channel();
    mapping.on_revoke(move |_| {
        // Nobody listens any more after the first.
        let _ = tell.send(());
    });
    thread::scope(|scope| {
        let revoker = scope.spawn(|| scene.file.revoke(..).expect("revoke"));
        hear.recv().expect("the importer hears of it");
        // The importer has its memory until the deadline, so a silent store would be hidden from it.
        let cached = cached_pages(&scene.writer());
        if !revoker.is_finished() {
            assert_eq!(cached, 0, "pages beside a mapping and a writer");
        }
    });
}

#[test]
fn a_writable_open_keeps_a_write_mapping_until_the_first_touch() {
    let scene = Scene::new(&[]);
    let mapping = scene.map(MapFlags::WRITE);
    let writer = scene.writer();
    device_writes(&mapping, 5, 0x22, Way::Direct);
    cpu_writes(&writer, 6, 0x33);
    assert_device_reads(&mapping, 5, 0x22, Way::Fallback);
    assert_device_reads(&mapping, 6, 0x33, Way::Fallback);
}

#[test]
fn a_handle_with_o_direct_that_is_mmapped_counts_as_a_cached_writer() {
    let scene = Scene::new(&[]);
    let bypass = scene.open_with(libc::O_DIRECT);
    let shared = view(&bypass, Sharing::Shared);
    store(&shared, 4, 0x22);
    let mapping = scene.map(MapFlags::empty());
    assert_device_reads(&mapping, 4, 0x22, Way::Direct);
    // Bring the page back, silently changeable.
    assert_loads(&shared, 4, 0x22);
    store(&shared, 4, 0x33);
    assert_device_reads(&mapping, 4, 0x33, Way::Fallback);
}

#[test]
fn reads_and_writes_past_the_cache_leave_a_write_mapping_alone() {
    let scene = Scene::new(&[]);
    for flags in [libc::O_DIRECT | libc::O_NONBLOCK, libc::O_DIRECT] {
        let handle = scene.open_with(flags);
        let mapping = scene.map(MapFlags::WRITE);
        let before = scene.revocations();
        device_writes(&mapping, 10, 0x22, Way::Direct);
        assert_cpu_reads(&handle, 10, 0x22);
        cpu_writes(&handle, 11, 0x33);
        assert_device_reads(&mapping, 11, 0x33, Way::Direct);
        assert_device_reads(&mapping, 10, 0x22, Way::Direct);
        assert_eq!(scene.revocations(), before, "flags {flags:#o}");
    }
}

#[test]
fn the_client_librarys_handle_refuses_a_shared_view() {
    let scene = Scene::new(&[]);
    let direct = scene.open_with(libc::O_DIRECT | libc::O_NONBLOCK);
    let refused = FileView::map(&direct, SIZE as usize, Sharing::Shared, true).expect_err("a shared view");
    assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
}

#[test]
fn a_private_view_of_the_librarys_handle_sees_device_stores() {
    let scene = Scene::new(&[]);
    let direct = scene.open_with(libc::O_DIRECT | libc::O_NONBLOCK);

    let reading = scene.map(MapFlags::empty());
    assert_loads(&view(&direct, Sharing::Private), 12, OLD);
    assert_device_reads(&reading, 12, OLD, Way::Direct);
    drop(reading);

    let writing = scene.map(MapFlags::WRITE);
    device_writes(&writing, 12, 0x22, Way::Direct);
    assert_loads(&view(&direct, Sharing::Private), 12, 0x22);
    assert_device_reads(&writing, 12, 0x22, Way::Fallback);
}

#[test]
fn respect_cache_refuses_what_is_cached_and_maps_what_is_not() {
    let scene = Scene::new(&["-o", "direct=respect-cache"]);
    let reader = scene.reader();
    reader.sync_all().expect("fsync");
    let dropped = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&reader, 0, 0, dropped).expect("fadvise");
    assert_eq!(cached_pages(&reader), 0);
    let mapping = scene.map(MapFlags::empty());
    assert_device_reads(&mapping, 0, OLD, Way::Direct);
    drop(mapping);

    assert_cpu_reads(&reader, 0, OLD);
    let cached = cached_pages(&reader);
    let mapping = scene.session.map(&scene.file, .., MapFlags::empty()).expect("map");
    assert_eq!(mapping.segments()[0].reason, Some(Reason::PageCached), "{:?}", mapping.segments());
    assert_device_reads(&mapping, 0, OLD, Way::Fallback);
    assert_eq!(cached_pages(&reader), cached, "the map was to leave the cache alone");
}

#[test]
fn a_files_policy_ends_its_mappings_and_forbids_new_ones() {
    let scene = Scene::new(&[]);
    let mapping = scene.map(MapFlags::empty());
    assert_device_reads(&mapping, 0, OLD, Way::Direct);
    peerfs_sys::set_xattr(&scene.path, "user.peerfs.direct", b"never").expect("setxattr");
    assert_device_reads(&mapping, 0, OLD, Way::Fallback);
    let refused = scene.session.map(&scene.file, .., MapFlags::empty()).expect("map");
    let reasons: Vec<Option<Reason>> = refused.segments().iter().map(|segment| segment.reason).collect();
    assert_eq!(reasons, [Some(Reason::Policy)]);
}

#[test]
fn a_grant_to_write_has_the_side_effects_of_a_store() {
    let scene = Scene::new(&[]);
    std::fs::set_permissions(&scene.path, std::fs::Permissions::from_mode(0o4755)).expect("chmod");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    scene.writer().set_modified(long_ago).expect("utimensat");
    let mapping = scene.map(MapFlags::WRITE);
    device_writes(&mapping, 0, 0x22, Way::Direct);
    let attributes = std::fs::metadata(&scene.path).expect("stat");
    assert!(attributes.modified().expect("mtime") > long_ago);
    assert_eq!(attributes.mode() & 0o7777, 0o755, "the set-user-id bit is gone");
}

#[test]
fn what_the_device_stored_outlives_a_remount() {
    let scene = Scene::new(&[]);
    let mapping = scene.map(MapFlags::WRITE);
    device_writes(&mapping, 20, 0x22, Way::Direct);
    drop(mapping);
    // Open files of ours would keep the mount busy.
    let Scene { mut mount, path, file, session } = scene;
    drop((file, session));
    mount.umount().expect("umount");
    mount.fsck().expect("fsck");
    mount.mount(&["--cmb", "16M"]).expect("mount");
    assert_cpu_reads(&File::open(path).expect("open"), 20, 0x22);
}
