//! A pool on a real aperture under a real engine, and clients of both.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peerfs_abi::{ImporterFlags, MapFlags, Reason};
use peerfs_blockdev::{DeviceSpec, OpenMode};

use super::super::*;
use crate::api::*;
use crate::clock::SystemClock;
use crate::custody::MemoryCustody;
use crate::types::*;

pub(super) const MIB: u64 = 1 << 20;

struct Ids(AtomicU64);

impl ContextIds for Ids {
    fn next_id(&self) -> Option<u64> {
        Some(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

pub(super) struct World {
    pub(super) engine: Arc<Engine>,
    pub(super) pool: Arc<Pool>,
    custody: Arc<MemoryCustody>,
}

/// A session with a context, which also owns memory.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    pub(super) context: ContextId,
    pub(super) owner: Owner,
}

pub(super) fn me() -> Client {
    Client { tgid: std::process::id(), uid: nix::unistd::getuid().as_raw() }
}

pub(super) fn config(main_bytes_max: u64) -> PoolConfig {
    PoolConfig { main_bytes_max, user_bytes_max: u64::MAX, process_bytes_max: u64::MAX, user_allocations_max: 1024 }
}

impl World {
    /// Importers never acknowledge here, and the deadline is now.
    pub(super) fn new(device_bytes: u64, config: PoolConfig) -> World {
        World::on(None, device_bytes, config)
    }

    /// With a software CMB of this many bytes instead of the memory's own aperture.
    pub(super) fn windowed(cmb_bytes: u64, device_bytes: u64, config: PoolConfig) -> World {
        World::on(Some(cmb_bytes), device_bytes, config)
    }

    fn on(cmb: Option<u64>, device_bytes: u64, config: PoolConfig) -> World {
        let custody = Arc::new(MemoryCustody::default());
        let engine = Engine::new(
            EngineConfig { deadline: Duration::ZERO, ..Default::default() },
            EngineParts {
                aperture: None,
                custody: custody.clone(),
                clock: Arc::new(SystemClock::default()),
                context_ids: Arc::new(Ids(AtomicU64::new(1))),
            },
        );
        let opened = DeviceSpec::Mem(device_bytes).open(cmb, OpenMode::ReadWrite, Duration::ZERO).expect("device");
        let pool = Pool::new(opened.device, opened.aperture, config);
        pool.attach(&engine).expect("thread");
        World { engine, pool, custody }
    }

    pub(super) fn peer(&self) -> Peer {
        let session = self.engine.open_session(me().uid, Arc::new(|| {})).expect("session");
        let importer = Importer {
            name: "cpu".into(),
            flags: ImporterFlags::DYNAMIC | ImporterFlags::WRITE,
            dma_bits: 64,
            va_bits: 47,
            page_bytes: 4096,
            pci_address: None,
            in_client: true,
        };
        let context = self.engine.bind_context(session, importer, me(), None).expect("context").id;
        Peer { context, owner: Owner { session, client: me(), gid: 0, mode: 0o600 } }
    }

    pub(super) fn allocate(&self, peer: Peer, bytes: u64) -> u64 {
        self.pool.allocate(peer.owner, bytes).expect("allocate").id
    }

    pub(super) fn map(&self, peer: Peer, id: u64, range: Range, flags: MapFlags) -> MapAnswer {
        self.try_map(peer, id, range, flags).expect("map")
    }

    pub(super) fn try_map(&self, peer: Peer, id: u64, range: Range, flags: MapFlags) -> Result<MapAnswer, MapError> {
        let object = ObjectId::device_memory(id);
        let request = MapRequest { object, range, flags, handle_writable: true, uid: 0, cache_probe: None };
        let call = MapCall { context: peer.context, client: me(), request: &request, mapping: None, segments_max: 200 };
        self.engine.device_map(&call)
    }

    pub(super) fn query(&self, peer: Peer, id: u64) -> QueryAnswer {
        let object = ObjectId::device_memory(id);
        let request =
            MapRequest { object, range: Range::ALL, flags: MapFlags::QUERY, handle_writable: true, uid: 0, cache_probe: None };
        self.engine.device_query(Asker::Context(peer.context, me()), &request, 200).expect("query")
    }

    /// The grants of an answer: where in the object each begins, and its memory.
    pub(super) fn windows(&self, answer: &MapAnswer, writable: bool) -> Vec<(Range, Mapped)> {
        let open = |segment: &MapSegment| {
            let part = segment.access.ok()?;
            match self.engine.take_grant(part.id, me(), writable) {
                Ok(memory) => Some((segment.range, Mapped { memory: File::from(memory), offset: part.offset })),
                // Revoked since the answer.
                Err(GrantError::Gone | GrantError::Failed { .. }) => None,
                Err(error) => panic!("grant: {error}"),
            }
        };
        answer.segments.iter().filter_map(open).collect()
    }

    /// Whatever an importer, pool and engine did: the books balance.
    pub(super) fn assert_balanced(&self) {
        let record = self.pool.record();
        let sum = |of: &dyn Fn(&AllocationRecord) -> u64| record.allocations.iter().map(of).sum::<u64>();
        let on_device = sum(&|a| if a.migrated { 0 } else { a.bytes });
        let migrated = sum(&|a| if a.migrated { a.bytes } else { 0 });
        assert_eq!(record.device_bytes - record.free_bytes - record.quarantined_bytes, on_device, "{record:?}");
        assert_eq!(record.main_bytes_used, migrated, "{record:?}");
        assert!(record.main_bytes_used <= record.main_bytes_max);
        for accounts in [&record.users, &record.processes] {
            assert_eq!(accounts.iter().map(|usage| usage.device_bytes).sum::<u64>(), on_device);
            assert_eq!(accounts.iter().map(|usage| usage.migrated_bytes).sum::<u64>(), migrated);
            assert_eq!(accounts.iter().map(|usage| usage.allocations).sum::<u64>(), record.allocations.len() as u64);
        }
    }

    /// Nothing is handed out, mapped or guarded.
    pub(super) fn assert_empty(&self) {
        self.assert_balanced();
        let record = self.pool.record();
        assert_eq!((record.free_bytes, record.free_runs), (record.device_bytes, 1));
        assert_eq!((record.users.len(), record.processes.len()), (0, 0));
        assert!(!self.engine.is_mapped(None));
        assert_eq!(self.custody.windows(), 0);
    }
}

/// What an importer reaches.
pub(super) struct Mapped {
    memory: File,
    offset: u64,
}

impl Mapped {
    /// False: it was cut.
    pub(super) fn store(&self, at: u64, data: &[u8]) -> bool {
        self.is_live() && self.memory.write_all_at(data, self.offset + at).is_ok()
    }

    /// `None`: it was cut.
    pub(super) fn load(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; length];
        self.memory.read_exact_at(&mut out, self.offset + at).ok()?;
        Some(out)
    }

    pub(super) fn is_live(&self) -> bool {
        self.memory.metadata().expect("stat").len() > 0
    }
}

/// The one reason all of an answer was refused for.
pub(super) fn refusal(answer: &MapAnswer) -> Option<Reason> {
    match answer.segments.as_slice() {
        [segment] => segment.access.err(),
        _ => None,
    }
}
