//! The kernel's page cache above a mount, as far as it matters here: pages enter
//! it by READs and whole-page WRITEs, stores to them are silent until they are
//! written back, and direct I/O flushes or drops them first.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use peerfs_fs::core::Core;
use peerfs_fs::cpu_cache::CpuCache;
use peerfs_fs::error::Result;
use peerfs_fs::ops::Operations;
use peerfs_fs::types::{Caller, Handle, Ino, WriteOrigin};
use peerfs_p2p::{CacheProbe, Range};
use peerfs_sys::CacheState;

use super::oracle::BLOCK;

/// Write-back has no caller.
const NOBODY: Caller = Caller { uid: 0, gid: 0, tid: 0, umask: 0 };

#[derive(Debug, Clone)]
struct Page {
    data: Vec<u8>,
    dirty: bool,
}

#[derive(Debug, Default)]
struct Cached {
    size: u64,
    pages: BTreeMap<u64, Page>,
    /// Cached handles open for writing: write-back goes through one of them.
    writers: Vec<Handle>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<Ino, Cached>,
    written_back: Vec<(Ino, u64)>,
    stubborn: bool,
}

/// See the module.
pub(super) struct PageCache {
    core: Weak<Core>,
    state: Mutex<State>,
}

impl PageCache {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        PageCache { core: Arc::downgrade(core), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn core(&self) -> Arc<Core> {
        self.core.upgrade().expect("the volume is mounted while its pages are used")
    }

    /// The next invalidation leaves a page behind, as the kernel does with one that is in use.
    pub(super) fn be_stubborn(&self, stubborn: bool) {
        self.lock().stubborn = stubborn;
    }

    /// A writable cached handle was opened.
    pub(super) fn add_writer(&self, ino: Ino, handle: Handle) {
        self.lock().files.entry(ino).or_default().writers.push(handle);
    }

    /// It is about to be closed: what was stored through it is written back first.
    pub(super) fn remove_writer(&self, ino: Ino, handle: Handle) -> Result<()> {
        self.flush(ino, Range::ALL)?;
        self.lock().files.entry(ino).or_default().writers.retain(|writer| *writer != handle);
        Ok(())
    }

    /// The size the kernel knows: pages behind it go, the rest of the last one becomes zeros.
    pub(super) fn set_size(&self, ino: Ino, size: u64) {
        let mut state = self.lock();
        let cached = state.files.entry(ino).or_default();
        cached.size = size;
        cached.pages.split_off(&size.div_ceil(BLOCK));
        if let Some(page) = cached.pages.get_mut(&(size / BLOCK)) {
            page.data[(size % BLOCK) as usize..].fill(0);
        }
    }

    /// read(2) on a cached handle, or loads from a mapping of it. `ahead`: pages that are read beyond what is missing.
    pub(super) fn read(&self, ino: Ino, handle: Handle, offset: u64, length: u64, ahead: u64) -> Result<Vec<u8>> {
        let size = self.lock().files.entry(ino).or_default().size;
        let end = offset.saturating_add(length).min(size);
        let mut out = Vec::new();
        let mut at = offset;
        while at < end {
            let number = at / BLOCK;
            self.fill(ino, handle, number, ahead)?;
            let upto = (number + 1) * BLOCK;
            let state = self.lock();
            let page = &state.files[&ino].pages[&number];
            out.extend_from_slice(&page.data[(at % BLOCK) as usize..(end.min(upto) - number * BLOCK) as usize]);
            at = upto;
        }
        Ok(out)
    }

    /// write(2) on a cached handle: the server gets exactly the bytes, whole pages stay cached.
    pub(super) fn write(&self, caller: Caller, ino: Ino, handle: Handle, offset: u64, data: &[u8]) -> Result<()> {
        let origin = WriteOrigin { through_cache: true, ..WriteOrigin::default() };
        let written = self.core().write(caller, handle, offset, data, origin)? as usize;
        assert_eq!(written, data.len(), "a write was cut short without an error");
        let mut state = self.lock();
        let cached = state.files.entry(ino).or_default();
        let end = offset + data.len() as u64;
        cached.size = cached.size.max(end);
        for number in offset / BLOCK..end.div_ceil(BLOCK) {
            let start = number * BLOCK;
            let (from, to) = (offset.max(start), end.min(start + BLOCK));
            let piece = &data[(from - offset) as usize..(to - offset) as usize];
            if piece.len() as u64 == BLOCK {
                let dirty = cached.pages.get(&number).is_some_and(|page| page.dirty);
                cached.pages.insert(number, Page { data: piece.to_vec(), dirty });
            } else if let Some(page) = cached.pages.get_mut(&number) {
                page.data[(from - start) as usize..(to - start) as usize].copy_from_slice(piece);
            }
        }
        Ok(())
    }

    /// Stores through a shared mapping of a cached handle, within the file. The server hears of pages that were not
    /// there, never of the stores.
    pub(super) fn store(&self, ino: Ino, handle: Handle, offset: u64, data: &[u8], ahead: u64) -> Result<()> {
        for (at, byte) in data.iter().enumerate() {
            let place = offset + at as u64;
            let number = place / BLOCK;
            if at == 0 || place.is_multiple_of(BLOCK) {
                self.fill(ino, handle, number, ahead)?;
            }
            let mut state = self.lock();
            let page = state.files.get_mut(&ino).and_then(|cached| cached.pages.get_mut(&number)).expect("just filled");
            page.data[(place % BLOCK) as usize] = *byte;
            page.dirty = true;
        }
        Ok(())
    }

    /// A READ for a missing page and those after it.
    fn fill(&self, ino: Ino, handle: Handle, number: u64, ahead: u64) -> Result<()> {
        let missing = {
            let mut state = self.lock();
            let cached = state.files.entry(ino).or_default();
            let last = (number + 1 + ahead).min(cached.size.div_ceil(BLOCK)).max(number + 1);
            (number..last).take_while(|page| !cached.pages.contains_key(page)).count() as u64
        };
        if missing == 0 {
            return Ok(());
        }
        let data = self.core().read(handle, number * BLOCK, (missing * BLOCK) as u32, true)?;
        let mut state = self.lock();
        let cached = state.files.entry(ino).or_default();
        for index in 0..missing {
            let mut page = vec![0; BLOCK as usize];
            let start = (data.len() as u64).min(index * BLOCK) as usize;
            let end = (data.len() as u64).min((index + 1) * BLOCK) as usize;
            page[..end - start].copy_from_slice(&data[start..end]);
            cached.pages.insert(number + index, Page { data: page, dirty: false });
        }
        Ok(())
    }

    /// Writes dirty pages of the range back.
    pub(super) fn flush(&self, ino: Ino, range: Range) -> Result<()> {
        let (dirty, size, writer) = {
            let state = self.lock();
            let Some(cached) = state.files.get(&ino) else { return Ok(()) };
            let dirty: Vec<(u64, Vec<u8>)> = in_range(cached, range)
                .filter(|(_, page)| page.dirty)
                .map(|(number, page)| (*number, page.data.clone()))
                .collect();
            (dirty, cached.size, cached.writers.first().copied())
        };
        let origin = WriteOrigin { through_cache: true, from_page_cache: true, ..WriteOrigin::default() };
        for (number, data) in dirty {
            let start = number * BLOCK;
            let length = BLOCK.min(size - start) as usize;
            // Clean before the WRITE, as in the kernel: a store during it makes the page dirty again.
            let mut state = self.lock();
            if let Some(page) = state.files.get_mut(&ino).and_then(|cached| cached.pages.get_mut(&number)) {
                page.dirty = false;
            }
            state.written_back.push((ino, number));
            drop(state);
            let writer = writer.expect("dirty pages belong to a writable handle");
            self.core().write(NOBODY, writer, start, &data[..length], origin)?;
        }
        Ok(())
    }

    /// Drops pages, dirty ones included (truncation).
    pub(super) fn forget(&self, ino: Ino, range: Range) {
        let mut state = self.lock();
        let Some(cached) = state.files.get_mut(&ino) else { return };
        let gone: Vec<u64> = in_range(cached, range).map(|(number, _)| *number).collect();
        gone.iter().for_each(|number| drop(cached.pages.remove(number)));
    }

    /// What direct I/O and an open that keeps no pages do.
    pub(super) fn flush_and_drop(&self, ino: Ino, range: Range) -> Result<()> {
        self.flush(ino, range)?;
        self.forget(ino, range);
        Ok(())
    }

    /// Bytes `start..end` of the file become zeros where they are cached (punch): whole pages go.
    pub(super) fn punched(&self, ino: Ino, range: Range) {
        let whole = Range { start: range.start.next_multiple_of(BLOCK), end: range.end / BLOCK * BLOCK };
        if !whole.is_empty() {
            self.forget(ino, whole);
        }
        let mut state = self.lock();
        let Some(cached) = state.files.get_mut(&ino) else { return };
        for number in [range.start / BLOCK, range.end / BLOCK] {
            let start = number * BLOCK;
            let part = Range::new(start, BLOCK).intersect(range);
            if let Some(page) = cached.pages.get_mut(&number).filter(|_| !part.is_empty()) {
                page.data[(part.start - start) as usize..(part.end - start) as usize].fill(0);
            }
        }
    }

    /// Some page of the range is cached.
    pub(super) fn holds(&self, ino: Ino, range: Range) -> bool {
        self.lock().files.get(&ino).is_some_and(|cached| in_range(cached, range).next().is_some())
    }

    /// Pages written back since the last call.
    pub(super) fn take_written_back(&self) -> Vec<(Ino, u64)> {
        std::mem::take(&mut self.lock().written_back)
    }
}

fn in_range(cached: &Cached, range: Range) -> impl Iterator<Item = (&u64, &Page)> {
    let last = range.end.div_ceil(BLOCK).max(range.start / BLOCK);
    cached.pages.range(range.start / BLOCK..last)
}

impl CpuCache for PageCache {
    fn invalidate(&self, ino: Ino, range: Range) -> io::Result<()> {
        self.flush(ino, range).map_err(|error| io::Error::from_raw_os_error(error.code()))?;
        let kept = {
            let state = self.lock();
            let cached = state.files.get(&ino).filter(|_| state.stubborn);
            cached.and_then(|cached| in_range(cached, range).next().map(|(number, page)| (*number, page.clone())))
        };
        self.forget(ino, range);
        if let (Some((number, page)), Some(cached)) = (kept, self.lock().files.get_mut(&ino)) {
            cached.pages.insert(number, page);
        }
        Ok(())
    }

    fn invalidate_attributes(&self, _ino: Ino) {}

    fn state(&self, ino: Ino, range: Range, _probe: CacheProbe) -> io::Result<CacheState> {
        let state = self.lock();
        let Some(cached) = state.files.get(&ino) else { return Ok(CacheState { cached: 0, dirty: 0 }) };
        let pages: Vec<&Page> = in_range(cached, range).map(|(_, page)| page).collect();
        let dirty = pages.iter().filter(|page| page.dirty).count() as u64;
        Ok(CacheState { cached: pages.len() as u64, dirty })
    }

    fn cached_ranges(&self, ino: Ino, range: Range, _probe: CacheProbe) -> io::Result<Vec<Range>> {
        let state = self.lock();
        let Some(cached) = state.files.get(&ino) else { return Ok(Vec::new()) };
        Ok(in_range(cached, range).map(|(number, _)| Range::new(number * BLOCK, BLOCK)).collect())
    }
}
