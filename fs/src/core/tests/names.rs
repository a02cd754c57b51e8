//! The rules of names.

use super::*;

const MIB: u64 = 1 << 20;

fn rename(fs: &Mounted, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> i32 {
    let done = fs.core.rename(ALICE, from.0, from.1.as_bytes(), to.0, to.1.as_bytes(), mode);
    done.map_or_else(|error| error.code(), |()| 0)
}

#[test]
fn rename_follows_its_rules() {
    use RenameMode::{Exchange, NoReplace, Replace, WhiteoutNoReplace};
    let fs = Mounted::new(32 * MIB);
    let root = ROOT_INO;
    let (a, b) = (fs.mkdir(root, "a"), fs.mkdir(root, "b"));
    let inner = fs.mkdir(a, "inner");
    let (file, handle) = fs.create(root, "f");
    fs.core.release(handle);
    let (other, handle) = fs.create(b, "g");
    fs.core.release(handle);

    assert_eq!(rename(&fs, (root, "a"), (inner, "x"), Replace), libc::EINVAL);
    assert_eq!(rename(&fs, (root, "a"), (a, "x"), Replace), libc::EINVAL);
    assert_eq!(rename(&fs, (a, "inner"), (root, "a"), Replace), libc::ENOTEMPTY);
    assert_eq!(rename(&fs, (a, "inner"), (root, "a"), Exchange), libc::EINVAL);
    assert_eq!(rename(&fs, (root, "f"), (root, "a"), Replace), libc::EISDIR);
    assert_eq!(rename(&fs, (root, "a"), (root, "f"), Replace), libc::ENOTDIR);
    assert_eq!(rename(&fs, (root, "a"), (root, "b"), Replace), libc::ENOTEMPTY);
    assert_eq!(rename(&fs, (root, "f"), (b, "g"), NoReplace), libc::EEXIST);
    assert_eq!(rename(&fs, (root, "none"), (b, "g"), Replace), libc::ENOENT);
    assert_eq!(rename(&fs, (root, "f"), (b, "none"), Exchange), libc::ENOENT);

    assert_eq!(rename(&fs, (root, "f"), (b, "g"), Exchange), 0);
    assert_eq!(fs.core.lookup(b, b"g").map(|attr| attr.ino), Ok(file));
    assert_eq!(fs.core.lookup(root, b"f").map(|attr| attr.ino), Ok(other));
    assert_eq!(rename(&fs, (a, "inner"), (b, "moved"), Replace), 0);
    assert_eq!(fs.core.attr(a).map(|attr| attr.nlink), Ok(2));
    assert_eq!(fs.core.attr(b).map(|attr| attr.nlink), Ok(3));
    assert_eq!(fs.core.lookup(inner, b"..").map(|attr| attr.ino), Ok(b));
    assert_eq!(rename(&fs, (b, "moved"), (root, "a"), Replace), 0);
    assert_eq!(fs.core.attr(a).map(|attr| attr.nlink), Ok(0));
    assert_eq!(code(fs.core.mkdir(ALICE, a, b"x", 0o755)), libc::ENOENT);
    assert_eq!(rename(&fs, (root, "a"), (b, "g"), Exchange), 0);
    assert_eq!(fs.core.attr(root).map(|attr| attr.nlink), Ok(3));
    assert_eq!(fs.core.attr(b).map(|attr| attr.nlink), Ok(3));
    assert_eq!(rename(&fs, (b, "g"), (b, "h"), Replace), 0);
    assert_eq!(rename(&fs, (b, "h"), (root, "f"), WhiteoutNoReplace), libc::EEXIST);
    fs.core.link(ALICE, file, root, b"same").expect("link");
    assert_eq!(rename(&fs, (root, "a"), (root, "same"), Replace), 0);
    assert_eq!(fs.names(root), ["a", "b", "f", "same"]);
    fs.remount();
}

#[test]
fn a_rename_leaves_a_whiteout_where_asked() {
    let fs = Mounted::new(32 * MIB);
    let directory = fs.mkdir(ROOT_INO, "d");
    let (file, _) = fs.create(ROOT_INO, "f");
    let inner = fs.mkdir(ROOT_INO, "e");
    assert_eq!(rename(&fs, (ROOT_INO, "f"), (directory, "g"), RenameMode::Whiteout), 0);
    assert_eq!(rename(&fs, (ROOT_INO, "e"), (directory, "h"), RenameMode::WhiteoutNoReplace), 0);
    assert_eq!(fs.core.lookup(directory, b"g").map(|attr| attr.ino), Ok(file));
    assert_eq!(fs.core.lookup(directory, b"h").map(|attr| attr.ino), Ok(inner));
    for name in [b"f", b"e"] {
        let whiteout = fs.core.lookup(ROOT_INO, name).expect("it stays");
        assert_eq!((whiteout.mode, whiteout.rdev, whiteout.nlink, whiteout.uid), (libc::S_IFCHR, 0, 1, ALICE.uid));
    }
    assert_eq!(fs.core.attr(ROOT_INO).map(|attr| attr.nlink), Ok(3));
    assert_eq!(fs.names(ROOT_INO), ["d", "f", "e"]);
    assert_eq!(rename(&fs, (directory, "g"), (ROOT_INO, "f"), RenameMode::Whiteout), 0);
    assert_eq!(fs.core.lookup(ROOT_INO, b"f").map(|attr| attr.ino), Ok(file));
    let fs = fs.remount();
    assert_eq!(fs.core.lookup(directory, b"g").map(|attr| attr.mode), Ok(libc::S_IFCHR));
    fs.core.unlink(ALICE, directory, b"g").expect("unlink");
    fs.remount();
}

#[test]
fn whatever_has_a_name_can_be_looked_up_by_number() {
    let fs = Mounted::new(32 * MIB);
    let directory = fs.mkdir(ROOT_INO, "d");
    let inner = fs.mkdir(directory, "e");
    let (file, _) = fs.create(directory, "f");
    let fs = fs.remount();
    for ino in [ROOT_INO, directory, file] {
        assert_eq!(fs.core.lookup(ino, b".").map(|attr| attr.ino), Ok(ino));
    }
    assert_eq!(fs.core.lookup(inner, b"..").map(|attr| attr.ino), Ok(directory));
    assert_eq!(code(fs.core.lookup(file, b"..")), libc::ENOTDIR);
    fs.core.unlink(ALICE, directory, b"f").expect("unlink");
    assert_eq!(code(fs.core.lookup(file, b".")), libc::ENOENT);
    fs.core.forget(file, 1);
    assert_eq!(code(fs.core.lookup(file, b".")), libc::ENOENT);
    assert_eq!(code(fs.core.lookup(1 << 40, b".")), libc::ENOENT);
}

#[test]
fn names_are_checked() {
    let fs = Mounted::new(32 * MIB);
    let long = [b'n'; 256];
    assert_eq!(code(fs.core.lookup(ROOT_INO, b"none")), libc::ENOENT);
    assert_eq!(code(fs.core.mkdir(ALICE, ROOT_INO, &long, 0)), libc::ENAMETOOLONG);
    assert_eq!(code(fs.core.mkdir(ALICE, ROOT_INO, b"a/b", 0)), libc::EINVAL);
    assert!(fs.core.mkdir(ALICE, ROOT_INO, &long[..255], 0).is_ok());
    assert_eq!(code(fs.core.mkdir(ALICE, ROOT_INO, &long[..255], 0)), libc::EEXIST);
    let (file, _) = fs.create(ROOT_INO, "f");
    assert_eq!(code(fs.core.mkdir(ALICE, file, b"x", 0)), libc::ENOTDIR);
    assert_eq!(code(fs.core.unlink(ALICE, ROOT_INO, &long[..255])), libc::EISDIR);
    assert_eq!(code(fs.core.rmdir(ALICE, ROOT_INO, b"f")), libc::ENOTDIR);
    let directory = fs.mkdir(ROOT_INO, "d");
    assert_eq!(code(fs.core.link(ALICE, directory, ROOT_INO, b"l")), libc::EPERM);
    fs.mkdir(directory, "e");
    assert_eq!(code(fs.core.rmdir(ALICE, ROOT_INO, b"d")), libc::ENOTEMPTY);
    assert_eq!(code(fs.core.symlink(ALICE, ROOT_INO, b"l", &[b'x'; 4096])), libc::ENAMETOOLONG);
    let link = fs.core.symlink(ALICE, ROOT_INO, b"l", &[b'x'; 4095]).expect("symlink");
    assert_eq!(fs.core.readlink(link.ino), Ok(vec![b'x'; 4095]));
    assert_eq!(link.size, 4095);
    fs.remount();
}

#[test]
fn a_set_group_id_directory_passes_its_group_on() {
    let fs = Mounted::new(32 * MIB);
    let directory = fs.core.mkdir(ALICE, ROOT_INO, b"d", 0o2775).expect("mkdir").ino;
    let bob = Caller { uid: 7, gid: 8, tid: 1, umask: 0 };
    let inner = fs.core.mkdir(bob, directory, b"e", 0o755).expect("mkdir");
    assert_eq!((inner.uid, inner.gid), (7, 1000));
    assert_eq!(inner.mode, libc::S_IFDIR | 0o2755);
    let file = fs.core.mknod(bob, directory, b"f", libc::S_IFREG | 0o644, 0).expect("mknod");
    assert_eq!((file.gid, file.mode), (1000, libc::S_IFREG | 0o644));
    let pipe = fs.core.mknod(bob, ROOT_INO, b"p", libc::S_IFIFO | 0o600, 0).expect("mknod");
    assert_eq!((pipe.gid, pipe.mode), (8, libc::S_IFIFO | 0o600));
    let node = fs.core.mknod(bob, ROOT_INO, b"n", libc::S_IFCHR | 0o600, 0x103).expect("mknod");
    assert_eq!(node.rdev, 0x103);
    fs.remount();
}

#[test]
fn hard_links_have_a_limit() {
    let fs = Mounted::new(64 * MIB);
    let (ino, _) = fs.create(ROOT_INO, "f");
    for number in 1..65_000 {
        let name = format!("l{number}");
        fs.core.link(ALICE, ino, ROOT_INO, name.as_bytes()).expect("link");
    }
    assert_eq!(code(fs.core.link(ALICE, ino, ROOT_INO, b"more")), libc::EMLINK);
    fs.remount();
}

#[test]
fn listing_is_stable_while_entries_come_and_go() {
    let fs = Mounted::new(32 * MIB);
    for number in 0..1000 {
        let attr = fs.core.mknod(ALICE, ROOT_INO, format!("n{number}").as_bytes(), libc::S_IFREG, 0);
        fs.core.forget(attr.expect("mknod").ino, 1);
    }
    let handle = fs.core.opendir(ROOT_INO, READ_WRITE).expect("opendir");
    let mut seen = Vec::new();
    let mut cookie = 0;
    for round in 0.. {
        let before = seen.len();
        let mut room = 7;
        let from = cookie;
        let mut sink = |entry: &DirEntry<'_>| {
            if room == 0 {
                return false;
            }
            room -= 1;
            assert!(entry.cookie > cookie);
            cookie = entry.cookie;
            assert_eq!(entry.attr.map(|attr| attr.ino), Some(entry.ino));
            seen.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino));
            true
        };
        fs.core.readdir(handle, from, true, &mut sink).expect("readdir");
        if seen.len() == before {
            break;
        }
        // One that was listed goes, one that was not comes.
        if round % 3 == 1 {
            let (gone, _) = &seen[before];
            fs.core.unlink(ALICE, ROOT_INO, gone.as_bytes()).expect("unlink");
        }
        if round < 20 {
            fs.create(ROOT_INO, &format!("new{round}"));
        }
    }
    assert_eq!(seen[0].0, ".");
    assert_eq!(seen[1].0, "..");
    let mut names: Vec<_> = seen.iter().map(|(name, _)| name.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), seen.len(), "nothing is listed twice");
    let originals = names.iter().filter(|name| name.starts_with('n') && !name.starts_with("new"));
    assert_eq!(originals.count(), 1000);
    for (_, ino) in &seen[2..] {
        fs.core.forget(*ino, 1);
    }
    fs.core.releasedir(handle);
    fs.remount();
}

#[test]
fn a_listing_ends_while_entries_are_renamed() {
    const FILES: usize = 500;
    let fs = Mounted::new(32 * MIB);
    for number in 0..FILES {
        fs.create(ROOT_INO, &format!("old{number}"));
    }
    let handle = fs.core.opendir(ROOT_INO, READ_WRITE).expect("opendir");
    let list = |cookie: &mut u64, most: usize| {
        let (from, mut names) = (*cookie, Vec::new());
        let mut sink = |entry: &DirEntry<'_>| {
            if names.len() == most {
                return false;
            }
            *cookie = entry.cookie;
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        };
        fs.core.readdir(handle, from, false, &mut sink).expect("readdir");
        names
    };
    let (mut cookie, mut renamed) = (0, 0);
    loop {
        let names = list(&mut cookie, 10);
        if names.is_empty() {
            break;
        }
        for name in names.iter().filter(|name| !name.starts_with('.')) {
            renamed += 1;
            assert!(renamed <= FILES, "{name} was listed although it was made after the listing began");
            assert_eq!(rename(&fs, (ROOT_INO, name), (ROOT_INO, &format!("new{renamed}")), RenameMode::Replace), 0);
        }
    }
    assert_eq!(renamed, FILES);
    let end = cookie;
    cookie = 0;
    assert_eq!(list(&mut cookie, usize::MAX).len(), FILES + 2, "beginning again shows the new names");
    fs.create(ROOT_INO, "last");
    assert!(list(&mut cookie, 10).is_empty(), "the end stays the end");
    let elsewhere = fs.core.opendir(ROOT_INO, READ_WRITE).expect("opendir");
    let mut far = end;
    fs.core
        .readdir(elsewhere, end, false, &mut |entry: &DirEntry<'_>| {
            far = entry.cookie;
            true
        })
        .expect("readdir");
    fs.create(ROOT_INO, "beyond");
    assert_eq!(list(&mut far, 10), ["beyond"], "a place from another listing");
    fs.core.releasedir(elsewhere);
    fs.core.releasedir(handle);
    fs.remount();
}

#[test]
fn lists_are_inherited_and_follow_chmod() {
    let fs = Mounted::new(32 * MIB);
    let directory = fs.mkdir(ROOT_INO, "d");
    let list = |entries: &[(u16, u16)]| {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, permissions) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&permissions.to_le_bytes());
            value.extend_from_slice(&5u32.to_le_bytes());
        }
        value
    };
    let default = list(&[(1, 7), (2, 6), (4, 5), (16, 7), (32, 0)]);
    let name = b"system.posix_acl_default";
    let careful = Caller { umask: 0o077, ..ALICE };
    let plain = fs.core.mkdir(careful, directory, b"before", 0o775).expect("mkdir");
    assert_eq!(plain.mode & 0o777, 0o700);
    fs.core.setxattr(ALICE, directory, name, &default, XattrMode::Any).expect("set");
    let listed = fs.core.mkdir(careful, directory, b"after", 0o775).expect("mkdir");
    assert_eq!(listed.mode & 0o777, 0o770, "the list, and not the umask, has its say");
    let inner = fs.core.mkdir(ALICE, directory, b"e", 0o755).expect("mkdir");
    assert_eq!(inner.mode & 0o777, 0o750);
    assert_eq!(fs.core.getxattr(inner.ino, name), Ok(default));
    let access = b"system.posix_acl_access";
    let set = SetAttr { mode: Some(0o710), ..SetAttr::default() };
    fs.core.setattr(ALICE, inner.ino, None, set).expect("chmod");
    let expected = list(&[(1, 7), (2, 6), (4, 5), (16, 1), (32, 0)]);
    assert_eq!(fs.core.getxattr(inner.ino, access), Ok(expected));
    let minimal = list(&[(1, 6), (4, 4), (32, 4)]);
    fs.core.setxattr(ALICE, inner.ino, access, &minimal, XattrMode::Any).expect("set");
    assert_eq!(code(fs.core.getxattr(inner.ino, access)), libc::ENODATA);
    assert_eq!(fs.core.attr(inner.ino).map(|attr| attr.mode & 0o777), Ok(0o644));
    let bits = |caller| {
        let set = SetAttr { mode: Some(0o2755), gid: Some(5), ..SetAttr::default() };
        fs.core.setattr(ALICE, inner.ino, None, set).expect("chmod");
        fs.core.setxattr(caller, inner.ino, access, &minimal, XattrMode::Any).expect("set");
        fs.core.attr(inner.ino).expect("attr").mode & 0o7777
    };
    assert_eq!(bits(ALICE), 0o644, "she is not in the group");
    assert_eq!(bits(Caller { gid: 5, ..ALICE }), 0o2644);
    assert_eq!(bits(Caller { uid: 0, ..ALICE }), 0o2644);
    fs.remount();
}
