//! The control side without a transport: what an ioctl may do with which handle, and to whose cached pages.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use peerfs_abi::devmem::{self, DeviceMemory, device_memory_call};
use peerfs_abi::ioctl::{self as abi, Context, Map, Segment};
use peerfs_abi::{ABI_VERSION, ImporterFlags, Reason};
use peerfs_blockdev::{DeviceSpec, OpenMode};
use peerfs_p2p::devmem::PoolConfig;
use peerfs_p2p::{CacheProbe, ContextIds, DirectPolicy, EngineConfig, EngineParts, Exporter, MemoryCustody, Range, SystemClock};
use peerfs_sys::CacheState;
use zerocopy::{FromBytes, FromZeros};

use super::*;
use crate::coherence::NoMappings;
use crate::core::MountOptions;
use crate::mapping::{EngineCoherence, FileExporter};
use crate::ops::Operations;
use crate::store::{FormatOptions, OpenOptions, Volume};
use crate::types::{ROOT_INO, WriteOrigin};

const MIB: u64 = 1 << 20;
/// All of a file here.
const ALL: Range = Range { start: 0, end: 12288 };

/// The page cache of one file: pages that do not change, and whether anybody dropped some.
#[derive(Default)]
struct Pages {
    cached: Vec<Range>,
    dropped: AtomicBool,
}

impl CpuCache for Pages {
    fn invalidate(&self, _ino: Ino, range: Range) -> io::Result<()> {
        let hit = self.cached.iter().any(|page| page.overlaps(range));
        self.dropped.fetch_or(hit, Ordering::SeqCst);
        Ok(())
    }
    fn invalidate_attributes(&self, _ino: Ino) {}
    fn state(&self, _ino: Ino, _range: Range, _probe: CacheProbe) -> io::Result<CacheState> {
        Ok(CacheState { cached: 0, dirty: 0 })
    }
    fn cached_ranges(&self, _ino: Ino, range: Range, _probe: CacheProbe) -> io::Result<Vec<Range>> {
        Ok(self.cached.iter().copied().filter(|page| page.overlaps(range)).collect())
    }
}

struct Ids(AtomicU64);

impl ContextIds for Ids {
    fn next_id(&self) -> Option<u64> {
        Some(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

struct World {
    control: Control,
    core: Arc<Core>,
    pages: Arc<Pages>,
    caller: Caller,
    session: Handle,
    context: u64,
    _exporter: Arc<dyn Exporter>,
}

fn flags(read: bool, write: bool) -> OpenFlags {
    OpenFlags { read, write, direct: true, ..OpenFlags::default() }
}

impl World {
    fn new(policy: DirectPolicy, pages: Pages) -> World {
        let open = |bytes, cmb| DeviceSpec::Mem(bytes).open(cmb, OpenMode::ReadWrite, Duration::ZERO).expect("device");
        let (storage, memory) = (open(64 * MIB, Some(4 * MIB)), open(4 * MIB, None));
        Volume::format(storage.device.clone(), &FormatOptions::default()).expect("mkfs");
        let volume = Volume::open(storage.device.clone(), &OpenOptions::default()).expect("open");
        let options = MountOptions { commit_interval: Duration::from_secs(3600), ..MountOptions::default() };
        let core = Core::open(volume, storage.device.clone(), Arc::new(NoMappings), options).expect("mount");
        let engine = Engine::new(
            EngineConfig { deadline: Duration::ZERO, ..Default::default() },
            EngineParts {
                aperture: storage.aperture.clone(),
                custody: Arc::new(MemoryCustody::default()),
                clock: Arc::new(SystemClock::default()),
                context_ids: Arc::new(Ids(AtomicU64::new(1))),
            },
        );
        let pages = Arc::new(pages);
        let exporter: Arc<dyn Exporter> = Arc::new(FileExporter::new(core.clone(), pages.clone(), policy, false));
        engine.attach_exporter(Arc::downgrade(&exporter));
        core.set_coherence(Arc::new(EngineCoherence::new(&engine)));
        let limits = PoolConfig { main_bytes_max: 0, user_bytes_max: MIB, process_bytes_max: MIB, user_allocations_max: 8 };
        let pool = Pool::new(memory.device, memory.aperture, limits);
        pool.attach(&engine).expect("thread");
        let caller = Caller {
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            tid: nix::unistd::gettid().as_raw().cast_unsigned(),
            umask: 0,
        };
        let facts = MountFacts {
            device: "mem".into(),
            mountpoint: "/".into(),
            label: String::new(),
            uuid: String::new(),
            owner_uid: caller.uid,
            started: crate::types::Timestamp { seconds: 0, nanoseconds: 0 },
            deadline_ms: 0,
            direct: String::new(),
            read_only: false,
            metrics: None,
        };
        let control = Control::new(ControlParts {
            storage: Arc::default(),
            importers: Vec::new(),
            core: core.clone(),
            engine,
            cache: pages.clone(),
            device: storage.device,
            aperture: storage.aperture,
            pool: Some(pool),
            facts,
            passthrough: false,
            socket_path: None,
            bus: None,
            faults: None,
        });
        let session = match control.open(caller, Virtual::Session.ino(), flags(true, true)) {
            Ok(ControlOpened::Plain(session)) => session,
            _ => panic!("no session"),
        };
        let mut world = World { control, core, pages, caller, session, context: 0, _exporter: exporter };
        world.bind();
        world
    }

    fn call<T: FromBytes + IntoBytes + zerocopy::Immutable>(
        &self,
        ino: Ino,
        handle: Handle,
        command: u32,
        argument: &T,
    ) -> Result<T> {
        let output = self.control.ioctl(self.caller, ino, handle, command, argument.as_bytes(), size_of::<T>())?;
        Ok(T::read_from_bytes(&output).unwrap_or_else(|_| panic!("size of the answer")))
    }

    fn bind(&mut self) {
        let mut context = Context::new_zeroed();
        context.abi_version = ABI_VERSION;
        context.importer_flags = (ImporterFlags::DYNAMIC | ImporterFlags::WRITE).bits();
        (context.dma_bits, context.va_bits, context.page_bytes, context.mem_fd) = (64, 47, 4096, -1);
        let bound = self.call(Virtual::Session.ino(), self.session, abi::CONTEXT, &context).expect("context");
        self.context = bound.context_id;
    }

    /// A file of three blocks, open for nothing.
    fn file(&self, name: &str) -> Ino {
        let (attr, opened) =
            self.core.create(self.caller, ROOT_INO, name.as_bytes(), 0o644, true, flags(true, true)).expect("create");
        let origin = WriteOrigin::default();
        assert_eq!(self.core.write(self.caller, opened.handle, 0, &[1; 12288], origin), Ok(12288));
        self.core.release(opened.handle);
        attr.ino
    }

    fn map(&self, ino: Ino, handle: Handle, range: Range) -> Result<Vec<Segment>> {
        let mut map = Map::new_zeroed();
        (map.abi_version, map.context_id) = (ABI_VERSION, self.context);
        (map.offset, map.length) = (range.start, range.length());
        let answer = self.call(ino, handle, abi::MAP, &map)?;
        Ok(answer.segments[..answer.segment_count as usize].to_vec())
    }
}

/// Files of the volume and virtual files number their handles each for themselves.
#[test]
fn a_handle_is_taken_for_no_other_with_the_same_number() {
    let world = World::new(DirectPolicy::Prefer, Pages::default());
    let mut call = DeviceMemory::new_zeroed();
    (call.abi_version, call.call, call.bytes, call.mode) = (ABI_VERSION, device_memory_call::ALLOCATE, 12288, 0o600);
    let session = Virtual::Session.ino();
    let id = world.call(session, world.session, devmem::DEVICE_MEMORY, &call).expect("allocate").id;
    let ino = world.file("secret");
    // As many as it takes for each number of the volume's handles to be one of device memory, too.
    for _ in 0..16 {
        world.control.open(world.caller, Virtual::DeviceMemory(id).ino(), flags(true, true)).expect("open");
    }
    for _ in 0..8 {
        let open = |read, write| world.core.open(world.caller, ino, flags(read, write)).expect("open").handle;
        let refused = world.map(ino, open(false, true), ALL).map(|segments| segments.len());
        assert_eq!(refused.map_err(|error| error.code()), Err(libc::EACCES), "it may not be read through this handle");
        assert_ne!(world.map(ino, open(true, false), ALL).expect("map")[0].grant_id, 0);
    }
}

#[test]
fn a_policy_that_respects_the_cache_drops_no_page_of_a_chunk() {
    let world =
        World::new(DirectPolicy::RespectCache, Pages { cached: vec![Range::new(4096, 4096)], dropped: AtomicBool::new(false) });
    let ino = world.file("half cached");
    let handle = world.core.open(world.caller, ino, flags(true, false)).expect("open").handle;
    let reasons = |segments: &[Segment]| segments.iter().map(|segment| segment.reason).collect::<Vec<_>>();
    // Also where a map that finds too small a window builds a larger one.
    for range in [Range::new(0, 4096), Range::new(8192, 4096)] {
        assert_eq!(reasons(&world.map(ino, handle, range).expect("map")), [0]);
        assert!(!world.pages.dropped.load(Ordering::SeqCst), "pages nobody asked for");
    }
    world.control.engine.revoke(None, Range::ALL, peerfs_p2p::Trigger::Administrator);
    let segments = world.map(ino, handle, ALL).expect("map");
    assert_eq!(reasons(&segments), [0, Reason::PageCached.code(), 0]);
    assert!(!world.pages.dropped.load(Ordering::SeqCst), "the page in between");
    let client = Client { tgid: std::process::id(), uid: world.caller.uid };
    let grant = peerfs_p2p::GrantId(segments[0].grant_id);
    let window = std::fs::File::from(world.control.engine.take_grant(grant, client, false).expect("grant"));
    let block = |number: u64| {
        let mut block = [9; 4096];
        window.read_exact_at(&mut block, number * 4096).expect("window");
        block
    };
    assert_eq!((block(0), block(1), block(2)), ([1; 4096], [0; 4096], [1; 4096]), "what is cached is in no window");
}
