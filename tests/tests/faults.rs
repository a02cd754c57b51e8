//! A storage device that fails on command: what its owner writes to `.peerfs/faults` of a mount with `-o faults`.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use peerfs_client::{DecisionTable, File, ImporterSpec, MapFlags, Mapping, Reason, Session, Trigger};
use peerfs_tests::ScratchMount;

const MIB: u64 = 1 << 20;
const NONE: MapFlags = MapFlags::empty();
/// A revocation that does not come within this time never does.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mount whose device fails on command, with a file. Dropped in this order: what is open keeps the mount busy.
struct Scene {
    session: Session,
    file: File,
    path: PathBuf,
    mount: ScratchMount,
}

impl Scene {
    fn new(options: &[&str]) -> Scene {
        let mut all = vec!["--cmb", "16M"];
        all.extend_from_slice(options);
        let mount = ScratchMount::new("64M", &all).expect("a mount");
        let path = mount.join("file");
        std::fs::write(&path, vec![7; 4 * MIB as usize]).expect("a file");
        let file = File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
        let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");
        Scene { session, file, path, mount }
    }

    fn faulty() -> Scene {
        Scene::new(&["-o", "faults"])
    }

    fn control(&self) -> PathBuf {
        self.mount.join(".peerfs/faults")
    }

    fn command(&self, text: &str) -> std::io::Result<()> {
        std::fs::write(self.control(), text)
    }

    fn in_force(&self) -> String {
        std::fs::read_to_string(self.control()).expect("the faults in force")
    }

    fn query(&self) -> DecisionTable {
        self.file.query(.., NONE, "cpu").expect("query")
    }

    /// A direct mapping of the whole file, and the triggers that end parts of it.
    fn mapped(&self) -> (Mapping, Receiver<(u64, Option<Trigger>)>) {
        let mapping = self.session.map(&self.file, .., NONE).expect("map");
        assert!(mapping.segments().iter().all(|segment| segment.reason.is_none()), "{:?}", mapping.segments());
        let (tell, told) = mpsc::channel();
        mapping.on_revoke(move |revocation| {
            let _listener_gone = tell.send((revocation.file_offset, revocation.trigger));
        });
        (mapping, told)
    }

    fn direct_bytes(&self) -> u64 {
        self.query().direct_bytes()
    }
}

#[test]
fn a_reset_ends_every_mapping_until_recovery() {
    for event in ["reset", "removed"] {
        let scene = Scene::faulty();
        let (mapping, told) = scene.mapped();
        scene.command(event).expect("command");
        assert_eq!(told.recv_timeout(PATIENCE).map(|told| told.1), Ok(Some(Trigger::DeviceEvent)), "{event}");
        let mut bytes = vec![0; 4096];
        let moved = mapping.read_at(0, &mut bytes).expect("read");
        assert_eq!((bytes[0], moved.fallback), (7, 4096), "the same bytes the other way");
        assert_eq!(scene.query().refusals(), [(Reason::DeviceResetting, 4 * MIB)]);
        let refused = scene.session.map(&scene.file, .., NONE).expect("map");
        assert!(refused.segments().iter().all(|segment| segment.reason == Some(Reason::DeviceResetting)));
        assert_eq!(scene.in_force(), format!("{event}\n"));
        scene.command("recover").expect("command");
        assert_eq!((scene.in_force().as_str(), scene.direct_bytes()), ("", 4 * MIB));
    }
}

#[test]
fn a_media_error_takes_just_its_blocks() {
    let scene = Scene::faulty();
    let device_offset = scene.query().segments[0].device_offset.expect("direct");
    let (_mapping, told) = scene.mapped();
    // One byte is bad: its block cannot be mapped, and the chunk it is in is revoked.
    scene.command(&format!("media-error {} 1", device_offset + 3 * MIB + 5)).expect("command");
    assert_eq!(told.recv_timeout(PATIENCE), Ok((2 * MIB, Some(Trigger::DeviceEvent))));
    let table = scene.query();
    assert_eq!(table.refusals(), [(Reason::MediaError, 4096)]);
    let lengths: Vec<u64> = table.segments.iter().map(|segment| segment.length).collect();
    assert_eq!(lengths, [3 * MIB, 4096, MIB - 4096]);
    let mapping = scene.session.map(&scene.file, .., NONE).expect("map");
    let bad: Vec<_> =
        mapping.segments().iter().filter_map(|segment| segment.reason.map(|reason| (reason, segment.file_offset))).collect();
    assert_eq!(bad, [(Reason::MediaError, 3 * MIB)]);
    let mut byte = [0];
    assert!(scene.file.read_at(3 * MIB, &mut byte).is_err(), "the fallback has nothing better to offer");
    scene.command("recover").expect("command");
    assert_eq!(scene.direct_bytes(), 4 * MIB);
    assert_eq!(scene.file.read_at(3 * MIB, &mut byte).expect("read"), 1);
}

#[test]
fn bad_commands_change_nothing() {
    let scene = Scene::faulty();
    let (_mapping, told) = scene.mapped();
    let device_bytes = 64 * MIB;
    for bad in [
        "",
        "nonsense",
        "reset now",
        "media-error",
        "media-error 0",
        "media-error 0 0",
        "media-error -1 4096",
        "media-error 0 4096 4096",
        &format!("media-error {device_bytes} 1"),
        "media-error 18446744073709551615 2",
        "reset\nnonsense",
        "write-error 0 99T",
        "\u{0}\u{ff}",
    ] {
        // std::fs::write does not write an empty text at all.
        let text = if bad.is_empty() { "\n" } else { bad };
        let error = scene.command(text).expect_err(bad);
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{bad:?}");
    }
    assert_eq!(scene.command(&"x".repeat(5000)).expect_err("too long").raw_os_error(), Some(libc::EINVAL));
    assert_eq!((scene.in_force().as_str(), scene.direct_bytes()), ("", 4 * MIB));
    assert!(told.try_recv().is_err(), "the mapping stays");
    let mode = std::fs::metadata(scene.control()).expect("stat").mode();
    assert_eq!(mode & 0o777, 0o600, "for the owner only");
}

#[test]
fn without_the_option_there_is_no_such_file() {
    let scene = Scene::new(&[]);
    let error = scene.command("reset").expect_err("no such file");
    assert!(matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPERM)), "{error}");
    let listed: Vec<_> =
        std::fs::read_dir(scene.mount.join(".peerfs")).expect("list").flatten().map(|entry| entry.file_name()).collect();
    assert!(!listed.iter().any(|name| name == "faults"), "{listed:?}");
    assert!(scene.path.exists());
}

#[test]
fn what_is_written_while_the_device_fails_is_there_after_recovery_and_remount() {
    let scene = Scene::faulty();
    let mapping = scene.session.map(&scene.file, .., MapFlags::WRITE).expect("map");
    let device_offset = scene.query().segments[0].device_offset.expect("direct");
    mapping.write_at(0, &[9; 4096]).expect("device write");
    // The window is taken back, and what is in it cannot be written.
    scene.command(&format!("media-error {device_offset} 4096")).expect("command");
    scene.command("recover").expect("command");
    let mut bytes = [0; 4096];
    assert_eq!(scene.file.read_at(0, &mut bytes).expect("read"), 4096);
    assert_eq!(bytes, [9; 4096]);
    let Scene { session, file, path, mut mount } = scene;
    drop((mapping, session, file));
    mount.umount().expect("umount in order");
    mount.mount(&[]).expect("mount");
    assert_eq!(std::fs::read(&path).expect("read")[..4096], [9; 4096]);
}
