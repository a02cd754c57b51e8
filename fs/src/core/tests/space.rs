//! A full volume fails cleanly and loses nothing.

use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn a_full_volume_refuses_and_leaks_nothing() {
    let fs = Mounted::new(24 * MIB);
    let (ino, file) = fs.create(ROOT_INO, "f");
    let mut size = 0;
    let data = vec![5; 1 << 20];
    let error = loop {
        match fs.core.write(ALICE, file, size, &data, DIRECT) {
            Ok(written) => size += u64::from(written),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), libc::ENOSPC);
    assert_eq!(fs.core.attr(ino).map(|attr| attr.size), Ok(size));
    assert!(fs.core.statfs().expect("statfs").available < 2);
    assert!(size > 12 * MIB, "only {size} bytes were written");
    let all = FallocateMode::Allocate { keep_size: false };
    assert_eq!(code(fs.core.fallocate(ALICE, file, all, 0, 30 * MIB)), libc::ENOSPC);
    assert_eq!(fs.core.attr(ino).map(|attr| attr.size), Ok(size));
    // Overwriting needs no space.
    fs.write(file, 0, &data);
    fs.core.sync().expect("sync");
    assert_clean(&fs.disk);

    // What is freed can be used at once.
    fs.truncate(ino, 0);
    fs.write(file, 0, &data);
    fs.core.release(file);
    fs.core.unlink(ALICE, ROOT_INO, b"f").expect("unlink");
    fs.core.forget(ino, 1);
    let fs = fs.remount();
    let (_, file) = fs.create(ROOT_INO, "g");
    let reached: u64 = (0..).map_while(|step| fs.core.write(ALICE, file, step * MIB, &data, DIRECT).ok()).map(u64::from).sum();
    assert!(reached + 2 * MIB > size, "{reached} of {size} bytes are back");
    fs.core.release(file);
    fs.remount();
}

#[test]
fn blocks_set_aside_are_given_up_for_others() {
    let fs = Mounted::new(64 * MIB);
    let handles: Vec<_> = (0..8)
        .map(|number| {
            let (_, file) = fs.create(ROOT_INO, &format!("f{number}"));
            for step in 0..16 {
                fs.write(file, step << 16, &[1; 1 << 16]);
            }
            file
        })
        .collect();
    let available = fs.core.statfs().expect("statfs").available;
    let (_, big) = fs.create(ROOT_INO, "big");
    let all = FallocateMode::Allocate { keep_size: true };
    fs.core.fallocate(ALICE, big, all, 0, (available + 64) * 4096).expect("fallocate");
    handles.into_iter().for_each(|file| fs.core.release(file));
    fs.core.release(big);
    fs.remount();
}
