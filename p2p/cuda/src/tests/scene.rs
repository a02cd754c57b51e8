//! A mount with one file, and a GPU that registers there.

use std::fs::{File as PlainFile, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use peerfs_client::{File, MapFlags, Reason, Session};
use peerfs_conformance::kit::{Random, ScratchMount, seed};

use super::fake::FakeGpu;
use crate::{Gpu, GpuBuffer, GpuMapping, Moved, spec};

/// Not whole blocks.
pub const SIZE: u64 = (1 << 20) + 1000;
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Dropped in this order.
pub struct Scene {
    pub session: Session,
    pub file: File,
    pub content: Vec<u8>,
    pub mount: ScratchMount,
}

impl Scene {
    pub fn new() -> Scene {
        Scene::with(0..0, 100)
    }

    /// The file has no blocks there, and reads as zeros.
    pub fn with_hole(hole: Range<u64>) -> Scene {
        Scene::with(hole, 100)
    }

    /// Importers may take so long to acknowledge.
    pub fn with_deadline_ms(deadline_ms: u64) -> Scene {
        Scene::with(0..0, deadline_ms)
    }

    fn with(hole: Range<u64>, deadline_ms: u64) -> Scene {
        let deadline = format!("deadline_ms={deadline_ms}");
        let mount = ScratchMount::new("64M", &["--cmb", "16M", "-o", &deadline]).expect("a mount");
        let path = mount.join("file");
        let mut content = vec![0; SIZE as usize];
        Random::new(seed(1)).fill(&mut content);
        content[hole.start as usize..hole.end as usize].fill(0);
        let plain = PlainFile::create(&path).expect("a file");
        for part in [0..hole.start, hole.end..SIZE] {
            plain.write_all_at(&content[part.start as usize..part.end as usize], part.start).expect("write");
        }
        plain.sync_all().expect("sync");
        drop(plain);
        let file = File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
        let session = Session::open(mount.path(), spec(0)).expect("a session");
        Scene { session, file, content, mount }
    }

    /// The kernel tells the server of a closed handle some time after close(2): until then it counts as a writer.
    pub fn map<G: Gpu>(&self, gpu: &Arc<G>, flags: MapFlags) -> GpuMapping<G> {
        self.map_file(gpu, &self.file, flags)
    }

    pub fn map_file<G: Gpu>(&self, gpu: &Arc<G>, file: &File, flags: MapFlags) -> GpuMapping<G> {
        self.await_no_writers(file, flags);
        GpuMapping::new(gpu, &self.session, file, .., flags).expect("map")
    }

    /// Until a pin would be granted.
    pub fn await_no_writers(&self, file: &File, flags: MapFlags) {
        let start = Instant::now();
        loop {
            let table = self.session.query(file, .., flags | MapFlags::PIN).expect("query");
            if !table.refusals().iter().any(|(reason, _)| *reason == Reason::CpuWriter) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "the file keeps a writer");
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn pins(&self) -> u64 {
        self.mount.info().expect("info")["pins"].as_u64().expect("a number")
    }

    pub fn await_pins(&self, count: u64) {
        let start = Instant::now();
        while self.pins() != count {
            assert!(start.elapsed() < PATIENCE, "{} pins instead of {count}", self.pins());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Another file of the mount.
    pub fn other(&self) -> File {
        let path = self.mount.join("other");
        std::fs::write(&path, [7; 4096]).expect("another file");
        File::open(&path).expect("open")
    }

    /// Waits until the server has looked for pins without holders once more: it has ended another one meanwhile.
    pub fn await_look_at_pins(&self) {
        let before = self.pins();
        let gpu = FakeGpu::new();
        let mapping = self.map_file(&gpu, &self.other(), MapFlags::empty());
        assert_eq!((mapping.registered_bytes(), self.pins()), (4096, before + 1));
        drop(mapping);
        self.await_pins(before);
    }

    /// Reads the whole file, and compares every byte.
    pub fn read_all<G: Gpu>(&self, gpu: &Arc<G>, mapping: &GpuMapping<G>) -> Moved {
        let mut buffer = GpuBuffer::new(gpu, SIZE as usize).expect("a buffer");
        let moved = mapping.read(0, SIZE, &mut buffer).expect("read");
        assert_eq!(moved.total(), SIZE);
        assert!(content_of(&mut buffer, SIZE) == self.content, "other bytes");
        moved
    }

    /// The file, as read(2) gives it.
    pub fn file_content(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        assert_eq!(self.file.read_at(0, &mut bytes).expect("read"), bytes.len());
        bytes
    }
}

pub fn content_of<G: Gpu>(buffer: &mut GpuBuffer<G>, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    buffer.for_each_piece(length, |piece| bytes.extend_from_slice(piece)).expect("download");
    bytes
}
