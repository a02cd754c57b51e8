//! A plain file stands for the device: reading and writing it by mapping and by pread(2) must agree, and truncating it is a removal.

use std::io::Write;

use tempfile::NamedTempFile;

use super::*;

const LENGTH: u64 = 4 * PAGE as u64;

fn file() -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("temporary file");
    file.write_all(&vec![0; LENGTH as usize]).expect("room");
    file
}

/// Pages 0 and 2 are mapped, 1 and 3 are not.
fn patchwork(file: &NamedTempFile) -> Arc<Bar> {
    let page = PAGE as u64;
    let handle = Arc::new(file.reopen().expect("reopen"));
    Bar::of_device(handle, 0, LENGTH, &[(0, page), (2 * page, page)]).expect("bar")
}

#[test]
fn words_and_copies_agree_on_mapped_and_unmapped_parts() {
    let file = file();
    let bar = patchwork(&file);
    assert_eq!((bar.length(), bar.mapped_length()), (LENGTH, LENGTH / 2));
    for page in 0..4 {
        let base = page * PAGE as u64;
        bar.write_u32(base + 4, 0x0102_0304).expect("store");
        bar.write_u64(base + 8, 0x1112_1314_1516_1718).expect("store");
        assert_eq!(bar.read_u32(base + 4), Ok(0x0102_0304));
        assert_eq!(bar.read_u64(base + 8), Ok(0x1112_1314_1516_1718));
        let mut bytes = [0; 16];
        bar.read(base, &mut bytes).expect("read");
        assert_eq!(bytes[4..8], 0x0102_0304_u32.to_ne_bytes());
        assert_eq!(bytes[8..], 0x1112_1314_1516_1718_u64.to_ne_bytes());
    }
}

#[test]
fn copies_at_any_offset_and_length_come_back() {
    let file = file();
    let whole = Bar::from_sysfs(file.path()).expect("bar");
    let patchwork = patchwork(&file);
    let pattern: Vec<u8> = (1..=40).collect();
    for start in [0, PAGE as u64 - 20, 3 * PAGE as u64 - 20] {
        for (offset, length) in (start..start + 9).flat_map(|offset| (0..=40).map(move |length| (offset, length))) {
            whole.write(start, &[0; 64]).expect("clear");
            patchwork.write(offset, &pattern[..length]).expect("write");
            let mut back = vec![0xFF; length + 1];
            whole.read(offset, &mut back).expect("read");
            assert_eq!((&back[..length], back[length]), (&pattern[..length], 0));
            patchwork.read(offset, &mut back[..length]).expect("read");
            assert_eq!(back[..length], pattern[..length]);
        }
    }
}

#[test]
fn nothing_outside_or_misaligned_is_reached() {
    let file = file();
    let bar = patchwork(&file);
    assert_eq!(bar.read_u32(LENGTH), Err(AccessError::Outside { offset: LENGTH, length: 4, size: LENGTH }));
    assert_eq!(bar.read_u64(4), Err(AccessError::Misaligned { offset: 4, width: 8 }));
    assert_eq!(bar.write_u32(u64::MAX - 3, 0), Err(AccessError::Outside { offset: u64::MAX - 3, length: 4, size: LENGTH }));
    assert!(bar.write(LENGTH - 1, &[0; 2]).is_err());
    assert!(bar.read(u64::MAX, &mut [0; 2]).is_err());
}

#[test]
fn only_whole_mapped_pages_are_given_to_another_device() {
    let file = file();
    let bar = patchwork(&file);
    let page = PAGE as u64;
    assert_eq!(bar.dma_range(2 * page, page).expect("mapped").length(), page);
    for (offset, length) in [(page, page), (0, 2 * page), (0, 512), (512, page - 512), (0, 0)] {
        assert_eq!(bar.dma_range(offset, length).err(), Some(AccessError::NotMappable { offset, length }));
    }
    assert!(matches!(bar.dma_range(page, u64::MAX).err(), Some(AccessError::Outside { .. })));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_removed_device_is_an_error_and_never_a_crash() {
    let file = file();
    let bar = Bar::from_sysfs(file.path()).expect("bar");
    bar.write(0, &[0xAB; LENGTH as usize]).expect("fill");
    std::thread::scope(|scope| {
        let copier = scope.spawn(|| {
            let mut buffer = vec![0; LENGTH as usize];
            while bar.read(0, &mut buffer).is_ok() {}
            bar.write(0, &buffer)
        });
        let ringer = scope.spawn(|| while bar.write_u32(8, 1).is_ok() {});
        file.as_file().set_len(0).expect("cut");
        ringer.join().expect("no panic");
        assert_eq!(copier.join().expect("no panic"), Err(AccessError::Gone));
    });
    assert_eq!(bar.read_u32(0), Err(AccessError::Gone));
    assert_eq!(bar.read_u64(8), Err(AccessError::Gone));
    assert_eq!(bar.write_u32(0, 0), Err(AccessError::Gone));
    assert_eq!(bar.write_u64(0, 0), Err(AccessError::Gone));
}
