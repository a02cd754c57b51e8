//! Names and attributes on a real mount, where the POSIX suite does not look.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount, umount};
use peerfs_tests::ScratchMount;

fn scratch() -> ScratchMount {
    ScratchMount::new("64M", &["-o", "allow_other,suid,dev"]).expect("a mount")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("stat").mode() & 0o7777
}

/// A shell command of user and group 1000, who belongs to the other groups too.
fn as_user(groups: &str, command: &str, folder: &Path) {
    let identity = ["--reuid=1000", "--regid=1000", &format!("--groups={groups}")].map(str::to_owned);
    let status = Command::new("setpriv").args(identity).args(["sh", "-c", command]).current_dir(folder).status();
    assert!(status.expect("util-linux is installed").success(), "{command}");
}

#[test]
fn set_group_id_goes_with_a_writer_who_is_not_in_the_group() {
    let mount = scratch();
    let folder = mount.path();
    for (groups, left) in [("1000", 0o666), ("1000,2000", 0o2666)] {
        for change in [
            "echo x >>f",
            "truncate -s 1 f",
            "fallocate -l 8192 f",
            "fallocate -pl 4096 f",
            "dd if=/dev/zero of=f bs=4k count=1 conv=notrunc oflag=direct",
        ] {
            let file = folder.join("f");
            fs::write(&file, [1; 8192]).expect("write");
            chown(&file, Some(1000), Some(2000)).expect("chown");
            fs::set_permissions(&file, PermissionsExt::from_mode(0o6666)).expect("chmod");
            as_user(groups, change, &folder);
            assert_eq!(mode(&file), left, "{change} of a user in {groups}");
        }
    }
}

/// A chown that changes nothing says so to the server in no other way than by asking for no change.
#[test]
fn an_empty_chown_ends_set_id_bits_of_the_owners_files_only() {
    let mount = scratch();
    let folder = mount.path();
    for owner in [1000, 1001] {
        let file = folder.join("program");
        fs::write(&file, "x").expect("write");
        chown(&file, Some(owner), Some(1000)).expect("chown");
        fs::set_permissions(&file, PermissionsExt::from_mode(0o6755)).expect("chmod");
        as_user("1000", "python3 -c 'import os; os.chown(\"program\", -1, -1)'", &folder);
        assert_eq!(mode(&file), if owner == 1000 { 0o755 } else { 0o6755 });
    }
}

#[test]
fn an_overlay_takes_its_layers_from_here() {
    let scratch = scratch();
    let folder = |name: &str| {
        let path = scratch.join(name);
        fs::create_dir(&path).expect("mkdir");
        path
    };
    let (lower, upper, work, merged) = (folder("lower"), folder("upper"), folder("work"), folder("merged"));
    fs::create_dir(lower.join("gone")).expect("mkdir");
    for name in ["changed", "moved", "gone/file"] {
        fs::write(lower.join(name), name).expect("write");
    }
    let _overlay = Overlay::mount(&lower, &upper, &work, &merged);
    fs::write(merged.join("changed"), "otherwise").expect("copied up");
    fs::rename(merged.join("moved"), merged.join("elsewhere")).expect("a rename that leaves a whiteout");
    fs::remove_dir_all(merged.join("gone")).expect("removed");
    let mut names: Vec<_> =
        fs::read_dir(&merged).expect("listed").map(|entry| entry.expect("an entry").file_name().into_string()).collect();
    names.sort();
    assert_eq!(names, [Ok("changed".to_owned()), Ok("elsewhere".to_owned())]);
    assert_eq!(fs::read_to_string(merged.join("elsewhere")).expect("read"), "moved");
    for name in ["moved", "gone"] {
        let whiteout = fs::symlink_metadata(upper.join(name)).expect("a whiteout");
        assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0, "{name}");
    }
    assert_eq!(fs::read_to_string(lower.join("changed")).expect("read"), "changed");
}

/// What `dirsync` and `sync` promise, and that nothing promises it without them: the test's own proof.
#[test]
fn changes_are_durable_when_they_are_answered_where_the_mount_says_so() {
    for (options, names, attributes) in [("async", false, false), ("dirsync", true, false), ("sync", true, true)] {
        let mut scratch = ScratchMount::new("64M", &["-o", "commit=3600"]).expect("a mount");
        fs::write(scratch.join("file"), "x").expect("write");
        fs::write(scratch.join("gone"), "x").expect("write");
        scratch.umount().expect("umount");
        scratch.mount(&["-o", &format!("commit=3600,{options}")]).expect("mount");
        fs::create_dir(scratch.join("folder")).expect("mkdir");
        fs::hard_link(scratch.join("file"), scratch.join("link")).expect("link");
        fs::rename(scratch.join("link"), scratch.join("folder/renamed")).expect("rename");
        fs::remove_file(scratch.join("gone")).expect("unlink");
        // Nothing durable comes after it.
        fs::set_permissions(scratch.join("file"), PermissionsExt::from_mode(0o600)).expect("chmod");

        scratch.crash().expect("crash");
        scratch.mount(&[]).expect("mount");
        assert_eq!(scratch.join("folder/renamed").exists(), names, "{options}");
        assert_eq!(scratch.join("gone").exists(), !names, "{options}");
        assert_eq!(mode(&scratch.join("file")) == 0o600, attributes, "{options}");
    }
}

struct Overlay(PathBuf);

impl Overlay {
    fn mount(lower: &Path, upper: &Path, work: &Path, merged: &Path) -> Overlay {
        let layers = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(Some("overlay"), merged, Some("overlay"), MsFlags::empty(), Some(&*layers)).expect("an overlay");
        Overlay(merged.to_owned())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        umount(&self.0).expect("nobody uses it");
    }
}

/// Compiles a program of the folder `c` that needs no library.
fn compiled(name: &str, to: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c").join(format!("{name}.c"));
    let program = to.join(name);
    let compiler = Command::new("cc").args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source).status();
    assert!(compiler.expect("a C compiler is installed").success());
    program
}

#[test]
fn a_file_handle_outlives_what_the_kernel_remembers() {
    let programs = tempfile::tempdir().expect("temporary folder");
    let program = compiled("handles", programs.path());
    let run = |arguments: &[&str]| {
        let output = Command::new(&program).args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut scratch = scratch();
    let root = scratch.path().display().to_string();
    let file = scratch.join("folder/file");
    fs::create_dir(scratch.join("folder")).expect("mkdir");
    fs::write(&file, "content").expect("write");
    let handle = run(&["take", &file.display().to_string()]);

    scratch.umount().expect("umount");
    scratch.mount(&["-o", "allow_other"]).expect("mount");
    assert_eq!(run(&["read", &root, &handle]), "content", "nobody has looked it up since the mount");
    fs::rename(&file, scratch.join("renamed")).expect("rename");
    assert_eq!(run(&["read", &root, &handle]), "content");
    fs::remove_file(scratch.join("renamed")).expect("unlink");
    fs::write(&file, "another").expect("write");
    assert_eq!(run(&["read", &root, &handle]), format!("errno {}", nix::libc::ESTALE));
}
