//! What a case works with: its directory on the mount, files that no cached handle was ever open on, and the
//! assertions, which all leave evidence.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use peerfs_abi::ioctl::Map;
use peerfs_abi::names::SERVER_IMPORTER;
use peerfs_abi::{MapFlags, Path, Reason};
use peerfs_client::{DecisionTable, ImporterSpec, Mapping, Session};
use peerfs_sys::{FileView, Sharing};

use crate::backend::{Backend, Capability};
use crate::case::Setup;
use crate::evidence::{Evidence, Fact, Ungranted, Way};
use crate::kit::raw::segments;
use crate::kit::{Random, ScratchMount};
use crate::witness::PATIENCE;

/// Bytes of a page and of a block.
pub const PAGE: u64 = 4096;
/// Bytes of a chunk, the unit of a grant.
pub const CHUNK: u64 = 2 << 20;

/// One case at work.
pub struct Scene<'a> {
    /// The backend.
    pub backend: &'a dyn Backend,
    /// The mount.
    pub mount: &'a mut ScratchMount,
    /// The case's own directory on it.
    pub directory: PathBuf,
    /// What the case has asserted.
    pub evidence: Evidence,
    setup: Setup,
    seed: u64,
}

/// A file and what is in it.
pub struct Subject {
    /// Where it is.
    pub path: PathBuf,
    /// A handle for reading and writing past the page cache.
    pub handle: peerfs_client::File,
    /// Its content.
    pub content: Vec<u8>,
}

/// One stretch of an answer, of the library or of the ABI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    range: Range<u64>,
    path: Path,
    reason: Option<Reason>,
}

impl Stretch {
    pub(crate) fn new(range: Range<u64>, path: Path, reason: Option<Reason>) -> Stretch {
        Stretch { range, path, reason }
    }

    pub(crate) fn path(&self) -> Path {
        self.path
    }

    pub(crate) fn reason(&self) -> Option<Reason> {
        self.reason
    }
}

impl<'a> Scene<'a> {
    pub(crate) fn new(
        backend: &'a dyn Backend,
        mount: &'a mut ScratchMount,
        directory: PathBuf,
        setup: Setup,
        seed: u64,
    ) -> Scene<'a> {
        Scene { backend, mount, directory, evidence: Evidence::default(), setup, seed }
    }

    /// The label that direct bytes carry, of whichever importer reaches them.
    pub fn direct_path(&self) -> Path {
        if self.setup.device_memory { Path::DirectWindow } else { self.backend.direct_path() }
    }

    /// Clients are given windows of what is mapped here.
    pub fn grants(&self) -> bool {
        self.setup.device_memory || self.backend.has(Capability::Grants)
    }

    /// How a client is answered where this is so of the blocks and of the way to them. Without windows it is refused for
    /// that, unless something comes before it.
    fn for_client(&self, way: Way) -> Way {
        let refused = match way {
            Way::Direct => true,
            Way::Fallback(reason) => reason > Reason::NoGrantObject && reason != Reason::StaleContext,
        };
        if refused && !self.grants() { Way::Fallback(Reason::NoGrantObject) } else { way }
    }

    pub(crate) fn into_evidence(self) -> BTreeSet<Fact> {
        self.evidence.into_facts()
    }

    /// Choices that the seed of the run decides.
    pub fn random(&self) -> Random {
        Random::new(self.seed)
    }

    /// A path in the case's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A new file of random bytes, on the device, with no page in the cache.
    pub fn file(&self, name: &str, length: u64) -> Result<Subject> {
        let mut content = vec![0; length as usize];
        self.random().fill(&mut content);
        let subject = self.empty(name)?;
        subject.handle.write_at(0, &content)?;
        subject.reader()?.sync_all()?;
        Ok(Subject { content, ..subject })
    }

    /// A new file without bytes.
    pub fn empty(&self, name: &str) -> Result<Subject> {
        let path = self.path(name);
        let handle = peerfs_client::File::open_with(&path, OpenOptions::new().read(true).write(true).create_new(true))?;
        Ok(Subject { path, handle, content: Vec::new() })
    }

    /// A session of the library for an importer without limits.
    pub fn session(&self) -> Result<Session> {
        Ok(Session::open(&self.directory, ImporterSpec::cpu())?)
    }

    /// Maps all of a file, all of which must be direct; tries again while it is busy. Without windows the case ends here:
    /// see [`Scene::expect_no_window`].
    pub fn map_direct(&self, session: &Session, subject: &Subject, flags: MapFlags) -> Result<Mapping> {
        for _ in 0..100 {
            let mapping = session.map(&subject.handle, .., flags)?;
            if mapping.segments().iter().all(|segment| segment.reason != Some(Reason::Busy)) {
                let length = mapping.range().end;
                self.expect_map(&mapping, &[(0..length, Way::Direct)])?;
                if !self.grants() {
                    self.expect_no_window(&mapping, &subject.handle)?;
                }
                return Ok(mapping);
            }
            std::thread::sleep(mapping.retry_after().unwrap_or_default());
        }
        bail!("the file stays busy")
    }

    /// What the case does next takes a window in a client. Without windows it ends here: all of the file is refused for that,
    /// and read otherwise.
    pub fn needs_window(&self, subject: &Subject) -> Result<()> {
        if self.grants() { Ok(()) } else { self.map_direct(&self.session()?, subject, MapFlags::empty()).map(drop) }
    }

    /// Why a client's stretch falls back that would be direct with a window.
    pub fn refusal(&self) -> Option<Reason> {
        (!self.grants()).then_some(Reason::NoGrantObject)
    }

    /// So many bytes went directly as far as clients are given windows, and so many by fallback whatever they are given.
    pub fn expect_moved(&self, moved: peerfs_client::Attestation, direct: u64, fallback: u64) -> Result<()> {
        let wanted = if self.grants() { (direct, fallback) } else { (0, direct + fallback) };
        ensure!((moved.direct(), moved.fallback) == wanted, "bytes went as {moved:?} instead of {wanted:?}");
        Ok(())
    }

    /// Clients are given no windows: by fallback the mapping reads what the filesystem does, and the importer in the server
    /// reads it directly. A case that needs more than that ends with this, always with an error.
    pub fn expect_no_window(&self, mapping: &Mapping, file: &peerfs_client::File) -> Result<()> {
        let range = mapping.range();
        let mut plain = vec![0; (range.end - range.start) as usize];
        let length = file.read_at(range.start, &mut plain)?;
        self.reads(mapping, range.start, &plain[..length], Path::Fallback)?;
        self.server_reads(file, range.start, &plain[..length], Way::Direct)?;
        Err(Ungranted.into())
    }

    /// The importer in the server reads these bytes, all of them this way; tries again while they are busy.
    pub fn server_reads(&self, file: &peerfs_client::File, offset: u64, expected: &[u8], way: Way) -> Result<()> {
        let start = Instant::now();
        let reading = loop {
            let reading = file.read_by_server(offset, expected.len() as u64)?;
            if reading.reason != Some(Reason::Busy) || way == Way::Fallback(Reason::Busy) || start.elapsed() > PATIENCE {
                break reading;
            }
            std::thread::yield_now();
        };
        ensure!(reading.bytes() == expected.len() as u64, "the server reads {reading:?} instead of {} bytes", expected.len());
        ensure!(reading.crc32c == crc32c::crc32c(expected), "the server reads other bytes at {offset}");
        let (path, reason) = match way {
            Way::Direct => (self.direct_path(), None),
            Way::Fallback(reason) => (Path::Fallback, Some(reason)),
        };
        let right = match path {
            Path::Fallback => reading.fallback,
            Path::DirectWindow => reading.direct_window,
            Path::DirectBar => reading.direct_bar,
        };
        ensure!(right == reading.bytes() && reading.reason == reason, "the server reads {reading:?} instead of {way:?}");
        self.evidence.path(path);
        reason.into_iter().for_each(|reason| self.evidence.reason(reason));
        Ok(())
    }

    /// The stretches of a mapping, neighbours joined, are exactly these.
    pub fn expect_map(&self, mapping: &Mapping, expected: &[(Range<u64>, Way)]) -> Result<()> {
        self.expect_stretches(of_library(mapping.segments()), expected)
    }

    /// The stretches of a decision table are exactly these. A reason that only comes after what every client is refused
    /// for must be among those of its stretch.
    pub fn expect_table(&self, table: &DecisionTable, expected: &[(Range<u64>, Way)]) -> Result<()> {
        self.expect_stretches(of_library(&table.segments), expected)?;
        for (range, way) in expected {
            let Way::Fallback(reason) = *way else { continue };
            let mut segments =
                table.segments.iter().filter(|segment| segment.file_offset < range.end && range.start < segment.end());
            ensure!(
                segments.all(|segment| segment.refusals.contains(reason)),
                "{range:?} is not refused for {reason}: {table:?}"
            );
            self.evidence.reason(reason);
        }
        Ok(())
    }

    /// As [`Scene::expect_table`], asked for an importer of this name. The one in the server needs no window.
    pub fn expect_table_of(&self, importer: &str, table: &DecisionTable, expected: &[(Range<u64>, Way)]) -> Result<()> {
        match importer {
            SERVER_IMPORTER => self.expect_ways(of_library(&table.segments), expected),
            _ => self.expect_table(table, expected),
        }
    }

    /// These segments of the library, neighbours joined, are exactly these.
    pub fn expect_segments(&self, segments: &[peerfs_client::Segment], expected: &[(Range<u64>, Way)]) -> Result<()> {
        self.expect_stretches(of_library(segments), expected)
    }

    /// The stretches of an answer of the ABI, neighbours joined, are exactly these.
    pub fn expect_answer(&self, answer: &Map, expected: &[(Range<u64>, Way)]) -> Result<()> {
        self.expect_stretches(of_abi(answer)?, expected)
    }

    /// All of an answer of the ABI is direct. Without windows the case ends here.
    pub fn expect_direct(&self, answer: &Map) -> Result<()> {
        let stretches = of_abi(answer)?;
        let (path, reason) = match self.for_client(Way::Direct) {
            Way::Direct => (self.direct_path(), None),
            Way::Fallback(reason) => (Path::Fallback, Some(reason)),
        };
        let other = stretches.iter().find(|stretch| (stretch.path, stretch.reason) != (path, reason));
        ensure!(other.is_none() && !stretches.is_empty(), "not all is {path}: {stretches:?}");
        self.evidence.path(path);
        match reason {
            None => Ok(()),
            Some(reason) => {
                self.evidence.reason(reason);
                Err(Ungranted.into())
            }
        }
    }

    /// The stretches that a client is answered are these, where clients are given windows, and refused accordingly where
    /// they are not.
    pub(crate) fn expect_stretches(&self, found: Vec<Stretch>, expected: &[(Range<u64>, Way)]) -> Result<()> {
        let expected: Vec<_> = expected.iter().map(|(range, way)| (range.clone(), self.for_client(*way))).collect();
        self.expect_ways(found, &expected)
    }

    fn expect_ways(&self, found: Vec<Stretch>, expected: &[(Range<u64>, Way)]) -> Result<()> {
        let direct = self.direct_path();
        let wanted: Vec<Stretch> = expected
            .iter()
            .map(|(range, way)| match way {
                Way::Direct => Stretch { range: range.clone(), path: direct, reason: None },
                Way::Fallback(reason) => Stretch { range: range.clone(), path: Path::Fallback, reason: Some(*reason) },
            })
            .collect();
        let (found, wanted) = (joined(found), joined(wanted));
        ensure!(found == wanted, "the answer is {found:?} instead of {wanted:?}");
        for stretch in &found {
            match stretch.reason {
                Some(reason) => self.evidence.reason(reason),
                None => self.evidence.path(stretch.path),
            }
        }
        Ok(())
    }

    /// The device reads these bytes, directly. Without windows they are the same by fallback, and the case ends here.
    pub fn reads_directly(&self, mapping: &Mapping, offset: u64, expected: &[u8]) -> Result<()> {
        if self.grants() {
            return self.reads(mapping, offset, expected, self.direct_path());
        }
        self.reads(mapping, offset, expected, Path::Fallback)?;
        Err(Ungranted.into())
    }

    /// The device reads these bytes, through main memory.
    pub fn reads_by_fallback(&self, mapping: &Mapping, offset: u64, expected: &[u8]) -> Result<()> {
        self.reads(mapping, offset, expected, Path::Fallback)
    }

    fn reads(&self, mapping: &Mapping, offset: u64, expected: &[u8], path: Path) -> Result<()> {
        let mut found = vec![0; expected.len()];
        let moved = mapping.read_at(offset, &mut found)?;
        same_bytes(&found, expected).with_context(|| format!("the device reads at {offset}"))?;
        self.took(moved, path)
    }

    /// The device writes these bytes, by this path.
    pub fn writes(&self, mapping: &Mapping, offset: u64, bytes: &[u8], path: Path) -> Result<()> {
        let moved = mapping.write_at(offset, bytes)?;
        self.took(moved, path)
    }

    /// The device writes these bytes directly.
    pub fn writes_directly(&self, mapping: &Mapping, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writes(mapping, offset, bytes, self.direct_path())
    }

    fn took(&self, moved: peerfs_client::Attestation, path: Path) -> Result<()> {
        let right = match path {
            Path::Fallback => moved.fallback,
            Path::DirectWindow => moved.direct_window,
            Path::DirectBar => moved.direct_bar,
        };
        ensure!(right == moved.total() && right > 0, "bytes went as {moved:?} instead of {path}");
        self.evidence.path(path);
        Ok(())
    }

    /// Calls that the server answers one after the other: it is given the time for whatever it does not wait with.
    pub fn round_trips(&self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.mount.info().map(drop))
    }

    /// Revocations the server has carried out, and those it had to enforce.
    pub fn revocations(&self, subject: &Subject) -> Result<(u64, u64)> {
        let info = subject.handle.info()?;
        Ok((info.revocations, info.revocations_enforced))
    }
}

impl Subject {
    /// A handle for reading through the page cache.
    pub fn reader(&self) -> Result<File> {
        Ok(File::open(&self.path)?)
    }

    /// A handle for reading and writing through the page cache.
    pub fn writer(&self) -> Result<File> {
        self.open(0)
    }

    /// A handle for reading and writing with these flags.
    pub fn open(&self, flags: i32) -> Result<File> {
        Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path)?)
    }

    /// The content of a page.
    pub fn page(&self, number: u64) -> &[u8] {
        let start = (number * PAGE) as usize;
        &self.content[start..(start + PAGE as usize).min(self.content.len())]
    }

    /// Length, bytes.
    pub fn length(&self) -> u64 {
        self.content.len() as u64
    }

    /// The file holds exactly its content.
    pub fn expect_content(&self) -> Result<()> {
        same_bytes(&fs::read(&self.path)?, &self.content).with_context(|| self.path.display().to_string())
    }
}

/// A page full of one byte.
pub fn page_of(byte: u8) -> Vec<u8> {
    vec![byte; PAGE as usize]
}

/// A program reads these bytes.
pub fn cpu_reads(file: &File, offset: u64, expected: &[u8]) -> Result<()> {
    let mut found = vec![0; expected.len()];
    file.read_exact_at(&mut found, offset)?;
    same_bytes(&found, expected).with_context(|| format!("a program reads at {offset}"))
}

/// A program's mmap of the whole file.
pub fn view(file: &File, sharing: Sharing) -> Result<FileView> {
    let length = file.metadata()?.len() as usize;
    Ok(FileView::map(file, length, sharing, sharing == Sharing::Shared)?)
}

/// Stores through a view.
pub fn store(view: &FileView, offset: u64, bytes: &[u8]) -> Result<()> {
    view.write(offset as usize, bytes).ok().context("the store to the view faults")
}

/// Loads through a view.
pub fn loads(view: &FileView, offset: u64, expected: &[u8]) -> Result<()> {
    let mut found = vec![0; expected.len()];
    view.read(offset as usize, &mut found).ok().context("the load from the view faults")?;
    same_bytes(&found, expected).with_context(|| format!("a program loads at {offset}"))
}

/// Pages of a file in the page cache.
pub fn cached_pages(file: &File) -> Result<u64> {
    Ok(peerfs_sys::cachestat(file.as_fd(), 0, 0)?.cached)
}

/// Equal, or where they first differ.
pub fn same_bytes(found: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(found.len() == expected.len(), "{} bytes instead of {}", found.len(), expected.len());
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => bail!("byte {at} is {:#x} instead of {:#x}", found[at], expected[at]),
    }
}

fn of_library(segments: &[peerfs_client::Segment]) -> Vec<Stretch> {
    let stretch = |segment: &peerfs_client::Segment| Stretch {
        range: segment.file_offset..segment.end(),
        path: segment.path,
        reason: segment.reason,
    };
    segments.iter().map(stretch).collect()
}

fn of_abi(answer: &Map) -> Result<Vec<Stretch>> {
    let stretch = |raw: &peerfs_abi::ioctl::Segment| -> Result<Stretch> {
        let path = Path::from_code(raw.path).context("an unknown path")?;
        ensure!((path == Path::Fallback) == (raw.reason != 0), "path {path} with reason {}", raw.reason);
        let range = raw.file_offset..raw.file_offset + raw.length;
        Ok(Stretch { range, path, reason: Reason::from_code(raw.reason) })
    };
    segments(answer).iter().map(stretch).collect()
}

/// Neighbours that go the same way, as one. (The segments of a map end where chunks do.)
fn joined(stretches: Vec<Stretch>) -> Vec<Stretch> {
    let mut out: Vec<Stretch> = Vec::new();
    for stretch in stretches {
        match out.last_mut() {
            Some(last) if last.range.end == stretch.range.start && last.path == stretch.path && last.reason == stretch.reason => {
                last.range.end = stretch.range.end;
            }
            _ => out.push(stretch),
        }
    }
    out
}
