//! Mapping by address on a real mount: what is behind the addresses, and what munmap, mremap, mprotect and
//! MAP_FIXED do to the device's side, through the library and behind its back.

use std::fs::{self, File as StdFile};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use peerfs_client::{AddressMapping, Backing, CpuMapping, Error, ImporterSpec, MapFlags, Protection, Session, Sharing};
use peerfs_tests::ScratchMount;

const PAGE: usize = 4096;
const PAGES: usize = 16;

struct Scene {
    session: Session,
    mount: ScratchMount,
}

impl Scene {
    fn new() -> Scene {
        let mount = ScratchMount::new("64M", &["--cmb", "16M"]).expect("a mount");
        let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");
        Scene { session, mount }
    }

    /// A file whose page n is full of `first + n`.
    fn file(&self, name: &str, first: u8) -> PathBuf {
        let path = self.mount.join(name);
        let content: Vec<u8> = (0..PAGES * PAGE).map(|at| first + (at / PAGE) as u8).collect();
        fs::write(&path, content).expect("a file");
        path
    }

    fn map(&self, cpu: &CpuMapping, flags: MapFlags) -> AddressMapping {
        self.session.map_address(cpu.address() as u64, cpu.length() as u64, flags).expect("map_address")
    }
}

fn reader(path: &PathBuf, first_page: usize, pages: usize) -> CpuMapping {
    let file = StdFile::open(path).expect("open");
    CpuMapping::map(&file, (first_page * PAGE) as u64, pages * PAGE, Sharing::Shared, false).expect("mmap")
}

fn writer(path: &PathBuf, pages: usize) -> CpuMapping {
    let file = StdFile::options().read(true).write(true).open(path).expect("open");
    CpuMapping::map(&file, 0, pages * PAGE, Sharing::Shared, true).expect("mmap")
}

fn at(cpu: &CpuMapping, page: usize) -> u64 {
    (cpu.address() + page * PAGE) as u64
}

/// The byte a device reads at an address, and whether it went directly.
fn look(mapping: &AddressMapping, address: u64) -> Result<(u8, bool), Error> {
    let mut byte = [0; 1];
    let moved = mapping.read_at(address, &mut byte)?;
    Ok((byte[0], moved.direct() == 1))
}

fn assert_changed(mapping: &AddressMapping, address: u64) {
    let answer = look(mapping, address);
    assert!(matches!(answer, Err(Error::AddressChanged { .. })), "{answer:?}");
    let again = look(mapping, address);
    assert!(matches!(again, Err(Error::AddressChanged { .. })), "it stays ended: {again:?}");
}

fn live_mappings(scene: &Scene) -> u64 {
    let file = peerfs_client::File::open(scene.mount.path()).expect("open");
    file.info().expect("info").mappings
}

#[test]
fn several_mappings_offsets_holes_and_foreign_memory_resolve() {
    let scene = Scene::new();
    let (one, two) = (scene.file("one", 10), scene.file("two", 50));
    // Page 0-3: one, from page 2 on; 4: a hole; 5: two; 6: foreign; 7: private.
    let mut cpu = reader(&one, 2, 8);
    let foreign = tempfile::tempfile().expect("a file elsewhere");
    foreign.set_len(PAGE as u64).expect("room");
    foreign.write_at(b"elsewhere", 0).expect("write");
    cpu.replace(5 * PAGE..6 * PAGE, StdFile::open(&two).expect("open"), 3 * PAGE as u64).expect("MAP_FIXED");
    cpu.replace(6 * PAGE..7 * PAGE, &foreign, 0).expect("MAP_FIXED");
    cpu.unmap(4 * PAGE..5 * PAGE).expect("munmap");
    let mapping = scene.map(&cpu, MapFlags::empty());
    let kinds: Vec<_> = mapping.stretches().iter().map(|stretch| stretch.backing.clone()).collect();
    let [
        Backing::File { file_offset: 8192, .. },
        Backing::Nothing { .. },
        Backing::File { file_offset: 12288, .. },
        Backing::Memory { .. },
        Backing::File { .. },
    ] = &kinds[..]
    else {
        panic!("{kinds:?}");
    };
    assert_eq!(look(&mapping, at(&cpu, 1)).expect("read"), (13, true));
    assert_eq!(look(&mapping, at(&cpu, 5)).expect("read"), (53, true));
    assert_eq!(look(&mapping, at(&cpu, 6)).expect("read"), (b'e', false), "served from memory");
    assert_eq!(look(&mapping, at(&cpu, 7)).expect("read"), (19, true));
    assert!(matches!(look(&mapping, at(&cpu, 4)), Err(Error::Address { .. })));
    let outside = look(&mapping, at(&cpu, 8));
    assert!(matches!(outside, Err(Error::Address { .. })), "{outside:?}");

    let mut all = vec![0; 3 * PAGE];
    mapping.read_at(at(&cpu, 5), &mut all).expect("across three mappings");
    assert_eq!((all[0], all[PAGE], all[2 * PAGE]), (53, b'e', 19));
    assert!(matches!(mapping.write_at(at(&cpu, 0), b"x"), Err(Error::ReadOnly)));

    let file = StdFile::open(&one).expect("open");
    let private = CpuMapping::map(&file, 0, 2 * PAGE, Sharing::Private, true).expect("mmap");
    private.write(0, b"mine").expect("store");
    let mapping = scene.map(&private, MapFlags::empty());
    assert_eq!(look(&mapping, at(&private, 0)).expect("read"), (b'm', false), "the private copy, as the processor sees it");
}

#[test]
fn a_device_writes_by_address_what_the_processor_could() {
    let scene = Scene::new();
    let path = scene.file("file", 10);
    StdFile::options().write(true).open(&path).expect("open").set_len(3 * PAGE as u64 + 100).expect("truncate");
    let cpu = writer(&path, 6);
    let mapping = scene.map(&cpu, MapFlags::WRITE);
    let moved = mapping.write_at(at(&cpu, 1), b"by the device").expect("write");
    assert_eq!((moved.direct(), moved.fallback), (13, 0));
    let mut back = [0; 13];
    cpu.read(PAGE, &mut back).expect("load");
    assert_eq!(&back, b"by the device");
    // The tail of the last page reads as zeros, and the file does not grow by a store behind its end.
    let mut tail = [9; 8];
    mapping.read_at(at(&cpu, 3) + 96, &mut tail).expect("read");
    assert_eq!(tail, [13, 13, 13, 13, 0, 0, 0, 0]);
    assert!(matches!(mapping.write_at(at(&cpu, 3) + 96, &[1; 8]), Err(Error::Address { .. })));
    assert!(matches!(look(&mapping, at(&cpu, 4)), Err(Error::Address { .. })));
    assert_eq!(fs::metadata(&path).expect("stat").len(), 3 * PAGE as u64 + 100);

    let read_only = reader(&path, 0, 2);
    let mapping = scene.map(&read_only, MapFlags::WRITE);
    assert!(matches!(mapping.write_at(at(&read_only, 0), b"x"), Err(Error::Address { .. })), "the processor may not");
}

#[test]
fn changes_through_the_library_end_the_devices_side_first() {
    let scene = Scene::new();
    let path = scene.file("file", 10);
    let mut cpu = writer(&path, 8);
    let mapping = scene.map(&cpu, MapFlags::WRITE);
    let first = cpu.address();
    assert_eq!(look(&mapping, at(&cpu, 3)).expect("read"), (13, true));

    let guard = mapping.access(at(&cpu, 0)..at(&cpu, 1)).expect("guard");
    assert!(guard.still_valid());
    assert!(matches!(mapping.munmap(&mut cpu, 0..PAGE), Err(Error::AddressInUse { .. })));
    assert!(guard.still_valid(), "nothing was changed");
    drop(guard);

    mapping.munmap(&mut cpu, 2 * PAGE..3 * PAGE).expect("munmap");
    assert!(matches!(look(&mapping, at(&cpu, 2)), Err(Error::Address { .. })));
    assert_eq!(look(&mapping, at(&cpu, 1)).expect("read").0, 11);
    assert_eq!(look(&mapping, at(&cpu, 3)).expect("read").0, 13);

    mapping.mprotect(&mut cpu, 5 * PAGE..6 * PAGE, Protection::Read).expect("mprotect");
    assert!(matches!(mapping.write_at(at(&cpu, 5), b"x"), Err(Error::Address { .. })));
    mapping.write_at(at(&cpu, 6), b"x").expect("the rest is writable");
    mapping.mprotect(&mut cpu, 5 * PAGE..6 * PAGE, Protection::ReadWrite).expect("mprotect");
    mapping.write_at(at(&cpu, 5), b"x").expect("it is open again");
    drop((mapping, cpu));

    let mut cpu = writer(&path, 4);
    // In the way, so that growing moves it.
    let mapping = scene.map(&cpu, MapFlags::WRITE);
    let old = at(&cpu, 0);
    mapping.mremap(&mut cpu, 12 * PAGE).expect("mremap");
    assert_eq!(look(&mapping, at(&cpu, 11)).expect("read").0, 21);
    if at(&cpu, 0) != old {
        assert!(matches!(look(&mapping, old), Err(Error::Address { .. } | Error::AddressChanged { .. })));
    }
    mapping.mremap(&mut cpu, 2 * PAGE).expect("shrink");
    assert!(matches!(look(&mapping, at(&cpu, 2)), Err(Error::Address { .. })));
    assert_eq!(look(&mapping, at(&cpu, 1)).expect("read").0, 11);
    drop(mapping);
    assert_eq!(live_mappings(&scene), 0, "every mapping ended on the server too");
    assert!(first != 0);
}

#[test]
fn changes_behind_the_librarys_back_are_found_before_any_access() {
    let scene = Scene::new();
    let (path, other) = (scene.file("file", 10), scene.file("other", 100));
    let mut cpu = writer(&path, PAGES);

    // munmap.
    let mapping = scene.map(&cpu, MapFlags::WRITE);
    cpu.unmap(8 * PAGE..9 * PAGE).expect("munmap");
    assert_eq!(look(&mapping, at(&cpu, 1)).expect("what is not touched is as it was").0, 11);
    assert_changed(&mapping, at(&cpu, 8));
    assert_eq!(live_mappings(&scene), 0, "it ended on the server");
    drop(mapping);

    // mprotect: less than the device's access.
    let mapping = scene.map(&cpu, MapFlags::WRITE);
    cpu.protect(0..PAGE, Protection::Read).expect("mprotect");
    assert!(matches!(mapping.write_at(at(&cpu, 0), b"x"), Err(Error::AddressChanged { .. })));
    drop(mapping);
    let mapping = scene.map(&cpu, MapFlags::empty());
    assert_eq!(look(&mapping, at(&cpu, 0)).expect("reading is enough").0, 10);
    cpu.protect(0..PAGE, Protection::None).expect("mprotect");
    assert_changed(&mapping, at(&cpu, 0));
    drop((mapping, cpu));

    // MAP_FIXED: another file, and another place of the same file. A guard notices too.
    for (file, name) in [(&other, "another file"), (&path, "the same file elsewhere")] {
        let mut cpu = reader(&path, 0, 4);
        let mapping = scene.map(&cpu, MapFlags::empty());
        let guard = mapping.access(at(&cpu, 1)..at(&cpu, 2)).expect("guard");
        assert!(guard.still_valid());
        cpu.replace(PAGE..2 * PAGE, StdFile::open(file).expect("open"), 5 * PAGE as u64).expect("MAP_FIXED");
        assert!(!guard.still_valid(), "{name}");
        drop(guard);
        assert_changed(&mapping, at(&cpu, 1));
    }

    // The same again is no change.
    let mut cpu = reader(&path, 0, 4);
    let mapping = scene.map(&cpu, MapFlags::empty());
    cpu.replace(PAGE..2 * PAGE, StdFile::open(&path).expect("open"), PAGE as u64).expect("MAP_FIXED");
    assert_eq!(look(&mapping, at(&cpu, 1)).expect("read").0, 11);

    // mremap: the addresses are somebody else's or nobody's.
    let old = at(&cpu, 0);
    let place = peerfs_sys::Reservation::anywhere(4 * PAGE).expect("room");
    cpu.remap_to(place).expect("mremap");
    assert_changed(&mapping, old);
    drop(mapping);

    // The file is gone from its directory, and mapped still.
    fs::remove_file(&path).expect("unlink");
    let mapping = scene.map(&cpu, MapFlags::empty());
    assert_eq!(look(&mapping, at(&cpu, 2)).expect("read").0, 12);
}

#[test]
fn a_revoked_stretch_falls_back_and_stays_right() {
    let scene = Scene::new();
    let path = scene.file("file", 10);
    let cpu = reader(&path, 0, PAGES);
    let mapping = scene.map(&cpu, MapFlags::empty());
    assert_eq!(look(&mapping, at(&cpu, 2)).expect("read"), (12, true));
    let file = peerfs_client::File::open_with(&path, StdFile::options().read(true).write(true)).expect("open");
    assert!(file.revoke(..).expect("revoke").grants > 0);
    assert_eq!(look(&mapping, at(&cpu, 2)).expect("read"), (12, false));
    file.write_at(2 * PAGE as u64, &[77]).expect("write");
    assert_eq!(look(&mapping, at(&cpu, 2)).expect("read"), (77, false));
}
