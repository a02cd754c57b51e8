//! The engine with many threads, forgotten transfers and truncated windows.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use peerfs_sys::{Direction, Engine, RegisteredWindow, SequencePage, private_memfd};

fn patterned(length: usize) -> (Arc<File>, Vec<u8>) {
    let data: Vec<u8> = (0..length).map(|i| (i / 512 * 7 + i % 251) as u8).collect();
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&data).expect("room in /tmp");
    (Arc::new(file), data)
}

#[test]
fn many_threads_share_one_ring() {
    let engine = Engine::new().expect("io_uring");
    let (file, data) = patterned(1 << 20);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (engine, file, data) = (&engine, &file, &data);
            scope.spawn(move || {
                for round in 0..300u64 {
                    let offsets = [0, 1, 2].map(|i| (thread * 37 + round * 11 + i * 5) % 252 * 4096);
                    let transfers = offsets.map(|offset| {
                        let buf = engine.buffer(16384);
                        engine.submit(Direction::Read, file, offset, buf)
                    });
                    for (transfer, offset) in transfers.into_iter().zip(offsets) {
                        let (outcome, buf) = transfer.wait();
                        assert_eq!(outcome.check(16384), Ok(()));
                        let buf = buf.expect("the buffer comes back");
                        let at = offset as usize;
                        assert!(buf[..] == data[at..at + 16384]);
                    }
                }
            });
        }
    });
    assert_eq!(engine.stats().running, 0);
}

#[test]
fn more_requests_than_the_ring_holds() {
    let engine = Engine::new().expect("io_uring");
    let (file, _) = patterned(64 << 10);
    let transfers: Vec<_> =
        (0..3000).map(|i| engine.submit(Direction::Read, &file, i % 16 * 4096, engine.buffer(4096))).collect();
    for transfer in transfers {
        assert_eq!(transfer.wait().0.check(4096), Ok(()));
    }
}

#[test]
fn a_forgotten_write_still_happens() {
    let engine = Engine::new().expect("io_uring");
    let (file, _) = patterned(64 << 10);
    for i in 0..16u64 {
        let mut buf = engine.buffer(4096);
        buf.fill(i as u8);
        drop(engine.submit(Direction::Write, &file, i * 4096, buf));
    }
    drop(engine);
    let mut got = vec![0; 64 << 10];
    file.read_exact_at(&mut got, 0).expect("readable");
    assert!(got.chunks(4096).enumerate().all(|(i, block)| block.iter().all(|b| *b == i as u8)));
}

#[test]
fn a_transfer_whose_thread_has_exited_can_be_waited_for() {
    let engine = Engine::new().expect("io_uring");
    let (file, data) = patterned(4 << 20);
    for _ in 0..50 {
        let transfer = std::thread::scope(|scope| {
            let submit = || engine.submit(Direction::Read, &file, 0, engine.buffer(4 << 20));
            scope.spawn(submit).join().expect("no panic")
        });
        let (outcome, buf) = transfer.wait();
        assert_eq!(outcome.check(4 << 20), Ok(()));
        assert!(buf.expect("the buffer comes back")[..] == data[..]);
    }
}

#[test]
fn short_files_are_told_apart_from_errors() {
    let engine = Engine::new().expect("io_uring");
    let (file, _) = patterned(6000);
    let (outcome, _) = engine.submit(Direction::Read, &file, 0, engine.buffer(8192)).wait();
    assert_eq!((outcome.bytes, outcome.errno), (6000, None));
    let read_only = Arc::new(File::open("/proc/self/exe").expect("own executable"));
    let (outcome, _) = engine.submit(Direction::Write, &read_only, 0, engine.buffer(4096)).wait();
    assert_eq!(outcome.errno, Some(libc::EBADF));
}

#[test]
fn a_live_window_is_found_by_its_slot() {
    let engine = Engine::new().expect("io_uring");
    let window = RegisteredWindow::create(&engine, 8192).expect("window");
    let slot = window.slot();
    assert!(engine.window(slot).is_some_and(|found| Arc::ptr_eq(&found, &window)));
    drop(window);
    assert!(engine.window(slot).is_none());
}

#[test]
fn window_memory_outlives_its_truncation() {
    let engine = Engine::new().expect("io_uring");
    let (file, data) = patterned(4 << 20);
    let window = RegisteredWindow::create(&engine, 4 << 20).expect("window");
    let fill = engine.submit_window(Direction::Read, &file, 0, &window, (0, 4 << 20));
    assert_eq!(fill.expect("inside").wait().0.check(4 << 20), Ok(()));
    let grant = File::from(window.reopen(true).expect("grant"));
    grant.write_all_at(b"last store", 12345).expect("writable");
    window.truncate_to_zero().expect("never sealed against shrinking");
    assert!(grant.set_len(4096).is_err(), "a cut window must not be regrown");
    let mut got = vec![0; 4 << 20];
    window.read(0, &mut got).expect("the pages are held");
    assert_eq!(&got[12345..12355], b"last store");
    assert!(got[..12345] == data[..12345] && got[12355..] == data[12355..]);
    window.write(4095, b"ab").expect("the pages are held");
    window.read(4090, &mut got[..10]).expect("the pages are held");
    assert_eq!(&got[5..7], b"ab");
    assert!(window.read((4 << 20) - 1, &mut got[..2]).is_err());
}

#[test]
fn copies_go_on_when_the_pool_is_used_up() {
    let engine = Engine::new().expect("io_uring");
    let window = RegisteredWindow::create(&engine, 1 << 20).expect("window");
    let hoard: Vec<_> = (0..300).map(|_| engine.buffer(4096)).collect();
    let big: Vec<_> = (0..40).map(|_| engine.buffer(1 << 20)).collect();
    window.write(100, &[7; 50_000]).expect("write");
    let mut got = vec![0; 50_000];
    window.read(100, &mut got).expect("read");
    assert!(got.iter().all(|b| *b == 7));
    drop((hoard, big));
}

#[test]
fn memory_files_cannot_change_size() {
    let file = private_memfd("test", 8192).expect("memfd");
    assert!(file.set_len(0).is_err());
    assert!(file.set_len(16384).is_err());
}

#[test]
fn sequence_numbers_are_seen_by_a_second_writer() {
    let page = SequencePage::create(600).expect("page");
    assert_eq!(page.slots(), 1024);
    page.store(599, 41);
    let other = SequencePage::from_writer(page.writer_fd().expect("dup")).expect("map");
    assert_eq!(other.bump(599), Some(41));
    assert_eq!(page.load(599), Some(42));
    assert_eq!(page.load(1024), None);
    let reader = File::from(page.reader_fd().expect("reader"));
    assert!(reader.write_at(&[1], 0).is_err());
    let mut bytes = [0; 8];
    reader.read_exact_at(&mut bytes, 599 * 8).expect("readable");
    assert_eq!(u64::from_ne_bytes(bytes), 42);
}
