//! The library against a server in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use crate::backend::NO_WAY;
use crate::cpu::{Device, DeviceConfig};
use crate::fake::{CHUNK, FakeServer, Outcome};
use crate::registry::lock;
use crate::{Error, MapFlags, Mapping, Path, Reason, Session, SessionOptions};

/// Far longer than any acknowledgement takes.
const PATIENT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);

fn pattern(length: u64) -> Vec<u8> {
    (0..length).map(|at| (at / 4096 * 31 + at % 251) as u8).collect()
}

fn outcome(grants: usize, enforced: usize) -> Outcome {
    Outcome { grants, enforced }
}

#[test]
fn long_answers_are_continued_and_bytes_go_both_ways() {
    let size = 3 * CHUNK + 1000;
    let holes = vec![8192..12288, CHUNK..CHUNK + 4096];
    let server = FakeServer::with_holes(pattern(size), holes, 2);
    let session = server.session(SessionOptions::default());
    let file = server.file();
    let table = file.query(.., MapFlags::empty(), "").expect("query");
    let mapping = session.map(&file, .., MapFlags::WRITE).expect("map");
    assert_eq!(table.end, size);
    assert_eq!(table.segments.len(), 7);
    let summary = |segment: &crate::Segment| (segment.file_offset, segment.length, segment.reason);
    let mapped: Vec<_> = mapping.segments().iter().map(summary).collect();
    assert_eq!(mapped, table.segments.iter().map(summary).collect::<Vec<_>>());
    assert_eq!(table.segments[1].reason, Some(Reason::Hole));

    let mut buffer = vec![0; size as usize];
    let moved = mapping.read_at(0, &mut buffer).expect("read");
    assert!(buffer == pattern(size));
    assert_eq!((moved.fallback, moved.direct_window), (8192, size - 8192));
    let moved = mapping.write_at(8000, &[9; 400]).expect("write");
    assert_eq!((moved.direct_window, moved.fallback), (192, 208));
    let mut back = [0; 402];
    mapping.read_at(7999, &mut back).expect("read");
    assert!(back[1..401].iter().all(|byte| *byte == 9) && back[0] != 9);

    let total = mapping.unmap().expect("unmap");
    let [report] = server.unmapped()[..] else {
        panic!("one report");
    };
    assert_eq!((report.bytes_direct_window, report.bytes_direct_bar), (total.direct_window, total.direct_bar));
    assert_eq!(report.bytes_fallback.iter().sum::<u64>(), total.fallback);
    assert!(total.fallback > 8192);
}

#[test]
fn a_revocation_is_acknowledged_and_the_same_call_falls_back() {
    let server = FakeServer::new(pattern(CHUNK));
    let session = server.session(SessionOptions::default());
    let file = server.file();
    let mapping = session.map(&file, .., MapFlags::WRITE).expect("map");
    let (sender, receiver) = mpsc::channel();
    mapping.on_revoke(move |revocation| sender.send(*revocation).expect("receiver"));
    mapping.write_at(0, b"kept").expect("write");

    // From the only thread of the program, as its own truncate would.
    assert_eq!(server.revoke(0..1, PATIENT), outcome(1, 0));
    let heard = receiver.try_recv().expect("called before the acknowledgement");
    assert_eq!((heard.mapping_id, heard.file_offset), (7, 0));
    assert_eq!(heard.trigger, Some(crate::Trigger::Truncate));
    assert_eq!(session.revocations(), 1);
    assert!(matches!(mapping.access(0..8), Err(Error::Revoked { .. })));
    let mut buffer = [0; 4];
    let moved = mapping.read_at(0, &mut buffer).expect("read");
    assert_eq!((&buffer, moved.fallback), (b"kept", 4));
    mapping.write_at(2, b"!!").expect("write");
    assert_eq!(&server.content()[..4], b"ke!!");
}

#[test]
fn a_guard_delays_the_acknowledgement_but_not_beyond_the_deadline() {
    let server = FakeServer::new(pattern(CHUNK));
    let session = server.session(SessionOptions::default());
    let mapping = session.map(&server.file(), .., MapFlags::empty()).expect("map");
    let guard = mapping.access(4096..8192).expect("guard");
    assert_eq!(guard.path(), Path::DirectWindow);
    assert_eq!(guard.load(3).expect("load"), pattern(4100)[4099]);
    assert!(guard.still_valid() && guard.as_mut_ptr().is_none());
    assert_eq!(server.revoke(0..1, SHORT), outcome(1, 1));
    assert!(!guard.still_valid());
    drop(guard);

    let mapping = session.map(&server.file(), .., MapFlags::empty()).expect("map");
    let guard = mapping.access(0..1).expect("guard");
    thread::scope(|scope| {
        let revoking = scope.spawn(|| server.revoke(0..1, PATIENT));
        // The acknowledgement waits for exactly this.
        drop(guard);
        assert_eq!(revoking.join().expect("no panic"), outcome(1, 0));
    });
}

#[test]
fn a_hung_importer_is_cut_and_still_gets_right_bytes_by_copying() {
    let server = FakeServer::new(pattern(CHUNK));
    let session = server.session(SessionOptions { acknowledge: false });
    let mapping = session.map(&server.file(), .., MapFlags::WRITE).expect("map");
    let guard = mapping.access(0..4096).expect("guard");
    guard.store(8, 0x1122_3344_5566_7788).expect("store");
    assert_eq!(server.revoke(0..1, SHORT), outcome(1, 1));
    let mut buffer = [0; 8];
    let moved = mapping.read_at(8, &mut buffer).expect("read");
    assert_eq!(moved.fallback, 8);
    assert_eq!(u64::from_ne_bytes(buffer), 0x1122_3344_5566_7788);
    assert!(!guard.still_valid());
}

#[test]
fn a_callback_that_panics_leaves_the_revocation_to_be_enforced() {
    let server = FakeServer::new(pattern(2 * CHUNK));
    let session = server.session(SessionOptions::default());
    let mapping = session.map(&server.file(), .., MapFlags::empty()).expect("map");
    let first = AtomicBool::new(true);
    mapping.on_revoke(move |_| assert!(!first.swap(false, Ordering::Relaxed), "on purpose"));
    assert_eq!(server.revoke(0..1, SHORT), outcome(1, 1));
    assert_eq!(server.revoke(CHUNK..CHUNK + 1, PATIENT), outcome(1, 0));
}

#[test]
fn a_dead_server_is_an_error_and_never_old_bytes() {
    let server = FakeServer::new(pattern(CHUNK));
    let session = server.session(SessionOptions::default());
    let file = server.file();
    let mapping = session.map(&file, .., MapFlags::empty()).expect("map");
    let guard = mapping.access(0..8).expect("guard");
    server.die();
    assert!(!guard.still_valid());
    assert!(matches!(mapping.read_at(0, &mut [0; 8]), Err(Error::ServerGone)));
    assert!(matches!(file.read_at(0, &mut [0; 8]), Err(Error::ServerGone)));
    assert!(matches!(session.map(&file, .., MapFlags::empty()), Err(Error::ServerGone)));
    assert!(matches!(mapping.unmap(), Err(Error::ServerGone)));
}

#[test]
fn a_process_that_can_be_given_no_grants_falls_back() {
    for refused in [(None, Some(NO_WAY)), (Some(Errno::EPERM), None)] {
        let server = FakeServer::with_holes(pattern(2 * CHUNK), vec![4096..8192, 12288..16384], 2);
        server.refuse(refused.0, refused.1);
        let session = server.session(SessionOptions::default());
        let file = server.file();
        let mapping = session.map(&file, .., MapFlags::WRITE).expect("map");
        let reasons: Vec<_> = mapping.segments().iter().map(|segment| segment.reason).collect();
        let none = Some(Reason::NoGrantObject);
        assert_eq!(reasons, [none, Some(Reason::Hole), none, Some(Reason::Hole), none, none]);
        assert_eq!(session.query(&file, .., MapFlags::empty()).expect("query").direct_bytes(), 0);
        let mut read = vec![0; 2 * CHUNK as usize];
        let moved = mapping.read_at(0, &mut read).expect("read");
        assert_eq!((read, moved.fallback, moved.direct()), (pattern(2 * CHUNK), 2 * CHUNK, 0));
        mapping.write_at(CHUNK, b"written").expect("write");
        assert!(server.content()[CHUNK as usize..].starts_with(b"written"));
        assert!(matches!(mapping.access(0..8), Err(Error::Fallback { reason: Reason::NoGrantObject, .. })));
        mapping.report().expect("nobody is told");
        mapping.unmap().expect("nobody is told");
        assert!(server.unmapped().is_empty());
        server.die();
        assert!(matches!(file.read_at(0, &mut [0; 8]), Err(Error::ServerGone)));
    }
}

#[test]
fn other_refusals_to_bind_are_errors() {
    let server = FakeServer::new(pattern(CHUNK));
    server.refuse(Some(Errno::EMFILE), None);
    assert!(matches!(server.try_session(SessionOptions::default()), Err(Error::System { .. })));
    server.refuse(None, Some(Errno::EIO));
    assert!(matches!(server.try_session(SessionOptions::default()), Err(Error::System { .. })));
}

#[test]
fn wrong_ranges_are_refused_and_the_end_of_the_file_is_short() {
    let server = FakeServer::new(pattern(10_000));
    let session = server.session(SessionOptions::default());
    let file = server.file();
    let mapping = session.map(&file, 4096.., MapFlags::empty()).expect("map");
    assert_eq!(mapping.range(), 4096..10_000);
    for (offset, length) in [(0, 8), (9_999, 2), (u64::MAX, 8)] {
        let answer = mapping.read_at(offset, &mut vec![0; length]);
        assert!(matches!(answer, Err(Error::Range { .. })), "{offset}");
    }
    assert!(matches!(mapping.write_at(4096, b"x"), Err(Error::ReadOnly)));
    assert!(matches!(mapping.access(5000..5000), Err(Error::Range { .. })));
    server.truncate(6000);
    let moved = mapping.read_at(5000, &mut [0; 5000]).expect("read");
    assert_eq!((moved.fallback, moved.direct()), (1000, 0));
}

#[test]
fn readers_and_writers_survive_a_storm_of_revocations() {
    let server = FakeServer::new(vec![0; CHUNK as usize]);
    let session = server.session(SessionOptions::default());
    let file = server.file();
    let done = AtomicBool::new(false);
    let direct = AtomicU64::new(0);
    thread::scope(|scope| {
        let worker = |page: u64| {
            let (session, file, done, direct) = (&session, &file, &done, &direct);
            move || {
                let mut round = 0_u64;
                while !done.load(Ordering::Relaxed) {
                    let mapping = session.map(file, .., MapFlags::WRITE).expect("map");
                    for _ in 0..20 {
                        round += 1;
                        let word = round.to_ne_bytes();
                        let mut moved = mapping.write_at(page * 4096, &word).expect("write");
                        let mut back = [0; 8];
                        moved += mapping.read_at(page * 4096, &mut back).expect("read");
                        assert_eq!(u64::from_ne_bytes(back), round, "page {page}");
                        direct.fetch_add(moved.direct(), Ordering::Relaxed);
                    }
                }
                (page, round)
            }
        };
        let workers: Vec<_> = (0..2).map(|page| scope.spawn(worker(page))).collect();
        let mut revoked = 0;
        while revoked < 100 {
            revoked += server.revoke(0..u64::MAX, PATIENT).grants;
            thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
        let last: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("no panic")).collect();
        server.revoke(0..u64::MAX, PATIENT);
        let content = server.content();
        for (page, round) in last {
            let start = page as usize * 4096;
            assert_eq!(content[start..start + 8], round.to_ne_bytes());
        }
    });
    let direct = direct.into_inner();
    println!("{direct} bytes went directly");
    assert!(direct > 0, "nothing went directly");
}

#[test]
fn the_device_faults_caches_and_is_shot_down() {
    let size = 2 * CHUNK + 5000;
    let server = FakeServer::with_holes(pattern(size), std::iter::once(CHUNK..CHUNK + 4096).collect(), 100);
    let session = server.session(SessionOptions::default());
    let file = server.file();
    let device = Device::new(&session, DeviceConfig::default());
    let base = 1 << 40;
    device.bind(base, &file, 0, size, MapFlags::WRITE).expect("bind");
    let mut buffer = vec![0; size as usize];
    assert_eq!(device.load(base, &mut buffer).expect("load"), size as usize);
    assert!(buffer == pattern(size));
    let stats = device.stats();
    assert_eq!(stats.faults, 3, "one for each large page");
    assert_eq!((stats.moved.fallback, stats.moved.direct()), (4096, size - 4096));

    // The sweep has pushed the first translation out of the cache; the second access finds it.
    device.load(base + 77, &mut [0; 8]).expect("load");
    let cold = device.stats();
    assert_eq!((cold.cache_hits, cold.faults), (stats.cache_hits, 3));
    device.load(base + 4096, &mut [0; 8]).expect("load");
    assert_eq!(device.stats().cache_hits, cold.cache_hits + 1);
    device.store(base + 77, b"device").expect("store");
    assert_eq!(server.revoke(0..1, PATIENT), outcome(1, 0));
    assert_eq!(device.stats().shootdowns, 1);
    assert_eq!(&server.content()[77..83], b"device");
    let mut back = [0; 6];
    device.load(base + 77, &mut back).expect("load");
    assert_eq!((&back, device.stats().faults), (b"device", 4));

    assert_eq!(device.copy(base + CHUNK, base, 9000).expect("copy"), 9000);
    let mut copied = vec![0; 9000];
    device.load(base + CHUNK, &mut copied).expect("load");
    assert_eq!(&copied[77..83], b"device");
    device.unbind(base).expect("unbind");
    assert!(matches!(device.load(base, &mut back), Err(Error::DeviceAddress { .. })));
    assert!(!server.unmapped().is_empty());
}

#[test]
fn device_addresses_are_checked() {
    let server = FakeServer::new(pattern(CHUNK));
    let session = server.session(SessionOptions::default());
    let file = server.file();
    let config = DeviceConfig { va_bits: 32, ..DeviceConfig::default() };
    let device = Device::new(&session, config);
    device.bind(8192, &file, 4096, 10_000, MapFlags::empty()).expect("bind");
    for (address, offset, length) in [(1, 0, 1), (0, 1, 1), (0, 0, 0), (4096, 0, 4097), (16384, 0, 1), (1 << 32, 0, 1)] {
        let answer = device.bind(address, &file, offset, length, MapFlags::empty());
        assert!(matches!(answer, Err(Error::DeviceAddress { .. })), "{address}");
    }
    assert!(matches!(device.store(8192, b"x"), Err(Error::ReadOnly)));
    assert!(device.load(8192 + 9_999, &mut [0; 1]).is_ok());
    assert!(device.load(8192 + 9_999, &mut [0; 2]).is_err());
    let misaligned = Device::new(&session, DeviceConfig { fallback_lifetime: Duration::ZERO, ..config });
    assert!(misaligned.load(0, &mut [0; 1]).is_err());
}

#[test]
fn a_session_ends_with_its_last_user() {
    let server = FakeServer::new(pattern(CHUNK));
    let session = server.session(SessionOptions::default());
    let mapping = session.map(&server.file(), .., MapFlags::empty()).expect("map");
    drop(session);
    assert_eq!(server.revoke(0..1, PATIENT), outcome(1, 0));
    let keep = Arc::clone(&server);
    drop(mapping);
    assert_eq!(keep.unmapped().len(), 1);
}

#[test]
fn atomic_operations_are_done_or_refused() {
    let server = FakeServer::with_holes(vec![0; CHUNK as usize + 4], std::iter::once(8192..12288).collect(), 100);
    let session = server.session(SessionOptions::default());
    let atomic = MapFlags::WRITE | MapFlags::ATOMIC;
    let mapping = session.map(&server.file(), .., atomic).expect("map");
    assert_eq!(mapping.fetch_add(16, 5_u64).expect("add"), 0);
    assert_eq!(mapping.fetch_add(16, u64::MAX).expect("add"), 5);
    assert_eq!(mapping.compare_exchange(16, 4_u64, 9).expect("exchange"), Ok(4));
    assert_eq!(mapping.compare_exchange(16, 4_u32, 1).expect("exchange"), Err(9));
    assert_eq!(mapping.moved().direct(), 28);
    assert!(matches!(mapping.fetch_add(18, 1_u32), Err(Error::Misaligned { word_bytes: 4, .. })));
    assert!(matches!(mapping.fetch_add(8192, 1_u32), Err(Error::AtomicUnsupported { reason: Reason::Hole, .. })));
    assert!(matches!(mapping.fetch_add(CHUNK, 1_u64), Err(Error::Range { .. })));
    server.revoke(0..CHUNK + 4, PATIENT);
    assert!(matches!(mapping.fetch_add(16, 1_u64), Err(Error::Revoked { file_offset: 16 })));
    assert_eq!(server.content()[16], 9);
    let plain = session.map(&server.file(), .., MapFlags::WRITE).expect("map");
    assert!(matches!(plain.fetch_add(16, 1_u64), Err(Error::AtomicUnsupported { reason: Reason::AtomicUnsupported, .. })));
    let reader = session.map(&server.file(), .., MapFlags::empty()).expect("map");
    assert!(matches!(reader.fetch_add(16, 1_u64), Err(Error::ReadOnly)));
    let implied = session.map(&server.file(), .., MapFlags::ATOMIC).expect("map");
    assert_eq!(implied.fetch_add(16, 1_u64).expect("atomic operations write"), 9);
}

#[test]
fn the_device_adds_across_revocations() {
    let server = FakeServer::with_holes(vec![0; CHUNK as usize], std::iter::once(8192..12288).collect(), 100);
    let session = server.session(SessionOptions::default());
    let device = Device::new(&session, DeviceConfig::default());
    let base = 1 << 30;
    device.bind(base, &server.file(), 0, CHUNK, MapFlags::WRITE | MapFlags::ATOMIC).expect("bind");
    device.bind(base + CHUNK, &server.file(), 0, 4096, MapFlags::WRITE).expect("bind");
    for round in 0..20_u64 {
        assert_eq!(device.fetch_add(base + 8, 1_u64).expect("add"), round);
        server.revoke(0..1, PATIENT);
    }
    assert_eq!(device.stats().faults, 20);
    assert_eq!(device.compare_exchange(base + 8, 20_u64, 3).expect("exchange"), Ok(20));
    let refused = device.fetch_add(base + 8192, 1_u64);
    assert!(matches!(refused, Err(Error::AtomicUnsupported { reason: Reason::Hole, .. })), "{refused:?}");
    assert!(matches!(device.fetch_add(base + CHUNK, 1_u32), Err(Error::AtomicUnsupported { .. })));
    assert!(matches!(device.fetch_add(base + CHUNK - 4, 1_u64), Err(Error::Misaligned { .. })));
}

/// A mapping that a callback ends.
type Slot = Arc<Mutex<Option<(Mapping, Option<Session>)>>>;

#[test]
fn the_end_of_a_mapping_waits_for_its_callback() {
    let server = FakeServer::new(pattern(CHUNK));
    let session = server.session(SessionOptions::default());
    let mapping = session.map(&server.file(), .., MapFlags::empty()).expect("map");
    let returned = Arc::new(AtomicBool::new(false));
    let (entered, inside) = mpsc::channel();
    let (leave, left) = mpsc::channel();
    let (left, flag) = (Mutex::new(left), Arc::clone(&returned));
    mapping.on_revoke(move |_| {
        entered.send(()).expect("receiver");
        lock(&left).recv().expect("sender");
        flag.store(true, Ordering::Release);
    });
    thread::scope(|scope| {
        let revoking = scope.spawn(|| server.revoke(0..1, PATIENT));
        inside.recv().expect("the callback runs");
        let ending = scope.spawn(|| {
            mapping.end().expect("end");
            returned.load(Ordering::Acquire)
        });
        while mapping.shared().callbacks.waiters() == 0 {
            assert!(!ending.is_finished(), "it did not wait");
            thread::yield_now();
        }
        leave.send(()).expect("the callback waits for it");
        assert!(ending.join().expect("no panic"), "it has ended while the callback ran");
        assert_eq!(revoking.join().expect("no panic"), outcome(1, 0));
    });
    // Also when the server is gone, which is the same to a callback that runs.
    server.die();
    assert!(matches!(mapping.end(), Err(Error::ServerGone)));
}

#[test]
fn an_ended_mapping_does_not_call_back() {
    let server = FakeServer::new(pattern(2 * CHUNK));
    let session = server.session(SessionOptions::default());
    let mapping = session.map(&server.file(), .., MapFlags::empty()).expect("map");
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    mapping.on_revoke(move |_| _ = count.fetch_add(1, Ordering::Relaxed));
    assert_eq!(server.revoke(0..1, PATIENT), outcome(1, 0));
    mapping.end().expect("end");
    assert_eq!(Arc::strong_count(&calls), 1, "the callback is kept");
    mapping.on_revoke(|_| panic!("added too late"));
    assert_eq!(server.revoke(CHUNK..CHUNK + 1, PATIENT), outcome(1, 0));
    assert_eq!((calls.load(Ordering::Relaxed), server.unmapped().len()), (1, 1));
    mapping.end().expect("end again");
    drop(mapping);
    assert_eq!(server.unmapped().len(), 1, "told once");
}

#[test]
fn a_callback_may_end_its_own_mapping_and_others() {
    let server = FakeServer::new(pattern(CHUNK));
    let session = server.session(SessionOptions::default());
    let map = || session.map(&server.file(), .., MapFlags::empty()).expect("map");
    // Both have the same grant; the first is told first.
    let (first, second) = (map(), map());
    let slots: [Slot; 2] = Default::default();
    let own = slots.clone();
    first.on_revoke(move |_| own.iter().for_each(|slot| drop(lock(slot).take())));
    first.on_revoke(|_| panic!("its mapping has ended"));
    second.on_revoke(|_| panic!("its mapping has ended"));
    *lock(&slots[0]) = Some((first, None));
    *lock(&slots[1]) = Some((second, None));
    assert_eq!(server.revoke(0..1, PATIENT), outcome(1, 0));
    assert_eq!(server.unmapped().len(), 2);
}

/// Callbacks on two service threads, each of which ends the other's mapping, and then perhaps session, while it runs.
fn crosswise(with_sessions: bool) {
    let servers = [FakeServer::new(pattern(CHUNK)), FakeServer::new(pattern(CHUNK))];
    let slots: [Slot; 2] = Default::default();
    let returned: [Arc<AtomicBool>; 2] = Default::default();
    let both_run = Arc::new(Barrier::new(2));
    let (tell, told) = mpsc::channel();
    let mut kept = Vec::new();
    for (index, server) in servers.iter().enumerate() {
        let session = server.session(SessionOptions::default());
        let mapping = session.map(&server.file(), .., MapFlags::empty()).expect("map");
        let (own, other) = (Arc::clone(&returned[index]), Arc::clone(&returned[1 - index]));
        let (slot, barrier, tell) = (Arc::clone(&slots[1 - index]), Arc::clone(&both_run), tell.clone());
        mapping.on_revoke(move |_| {
            barrier.wait();
            drop(lock(&slot).take());
            tell.send(other.load(Ordering::Acquire)).expect("receiver");
            own.store(true, Ordering::Release);
        });
        let session = if with_sessions {
            Some(session)
        } else {
            kept.push(session);
            None
        };
        *lock(&slots[index]) = Some((mapping, session));
    }
    thread::scope(|scope| {
        let revoking = servers.each_ref().map(|server| scope.spawn(|| server.revoke(0..1, PATIENT)));
        for thread in revoking {
            assert_eq!(thread.join().expect("no panic"), outcome(1, 0));
        }
    });
    let waited = [told.recv().expect("told"), told.recv().expect("told")];
    assert_ne!(waited[0], waited[1], "one of them waits for the other");
}

#[test]
fn callbacks_that_end_each_others_mappings_do_not_wait_in_a_circle() {
    crosswise(false);
    crosswise(true);
}
