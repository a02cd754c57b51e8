//! Off a mount the library answers what is wrong, and plain I/O works.

use std::fs::OpenOptions;

use peerfs_client::{Error, File, ImporterSpec, MapFlags, Session};

#[test]
fn files_elsewhere_are_told_apart() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("plain");
    std::fs::write(&path, vec![7; 8192]).expect("file");
    let file = File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
    let answer = file.query(.., MapFlags::empty(), "");
    assert!(matches!(answer, Err(Error::NotPeerfs { .. })), "{answer:?}");
    assert!(matches!(file.info(), Err(Error::NotPeerfs { .. })));
    let session = Session::open(folder.path(), ImporterSpec::cpu());
    assert!(matches!(session, Err(Error::NotPeerfs { .. })), "{session:?}");
    let long = "n".repeat(32);
    let answer = file.query(.., MapFlags::empty(), &long);
    assert!(matches!(answer, Err(Error::ImporterName { .. })));
}

#[test]
fn what_is_missing_is_a_system_error_and_a_directory_can_be_opened() {
    let folder = tempfile::tempdir().expect("temporary folder");
    assert!(matches!(File::open(folder.path().join("none")), Err(Error::System { .. })));
    let missing = Session::open(folder.path().join("none"), ImporterSpec::cpu());
    assert!(matches!(missing, Err(Error::System { .. })));
    let directory = File::open(folder.path()).expect("directory");
    assert!(matches!(directory.info(), Err(Error::NotPeerfs { .. })));
}
