//! Which addresses lead where.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use peerfs_sys::{AddressMap, Vma};

use crate::registry::lock;
use crate::{Error, File, Mapping, Segment};

/// What is behind a stretch of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A file of the mount, mapped for the device.
    File {
        /// Its inode number.
        inode: u64,
        /// Offset in the file of the first address, bytes.
        file_offset: u64,
        /// How each part was decided when it was mapped.
        segments: Vec<Segment>,
    },
    /// Memory that is no shared mapping of a regular file of the mount: reads are served from it, as a fallback.
    Memory {
        /// Why it is not mapped for the device.
        why: &'static str,
    },
    /// Nothing that the device may use: an access is an error.
    Nothing {
        /// What the error says.
        why: &'static str,
    },
    /// The processor's mapping ended or changed: so did the device's.
    Ended,
}

/// Addresses with one thing behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The addresses, in whole pages.
    pub addresses: Range<u64>,
    /// What is behind them.
    pub backing: Backing,
}

/// A stretch of a file of the mount. What is checked before it is used is `identity`.
pub(super) struct FileStretch {
    pub(super) addresses: Range<u64>,
    /// Device and inode number.
    pub(super) identity: (u64, u64),
    /// Offset in the file of the first address.
    pub(super) file_offset: u64,
    /// Held open so that the inode number stays this file's.
    pub(super) file: File,
    pub(super) mapping: Arc<Mapping>,
    /// Access guards that are held. Rises under the table's lock only.
    pub(super) guards: AtomicUsize,
}

impl FileStretch {
    pub(super) fn file_offset_of(&self, address: u64) -> u64 {
        self.file_offset + (address - self.addresses.start)
    }

    /// The range in the file.
    pub(super) fn in_file(&self) -> Range<u64> {
        self.file_offset..self.file_offset_of(self.addresses.end)
    }

    /// The same stretch with another mapping.
    pub(super) fn with(&self, mapping: Mapping) -> FileStretch {
        FileStretch {
            addresses: self.addresses.clone(),
            identity: self.identity,
            file_offset: self.file_offset,
            file: self.file.clone(),
            mapping: Arc::new(mapping),
            guards: AtomicUsize::new(0),
        }
    }

    /// The first of the addresses at which the processor's mapping is not what it was; `None` when all is as it was.
    pub(super) fn is_intact(&self, maps: &AddressMap, addresses: &Range<u64>, write: bool) -> io::Result<Option<u64>> {
        let mut at = addresses.start;
        while at < addresses.end {
            match maps.at(at)? {
                Some(vma) if self.is_mine(&vma, at, write) => at = vma.addresses.end,
                _ => return Ok(Some(at)),
            }
        }
        Ok(None)
    }

    fn is_mine(&self, vma: &Vma, at: u64, write: bool) -> bool {
        let offset = vma.offset.wrapping_add(at.wrapping_sub(vma.addresses.start));
        let same = (vma.device, vma.inode) == self.identity && offset == self.file_offset_of(at);
        same && vma.shared && vma.readable && (vma.writable || !write)
    }
}

/// What an address leads to.
pub(super) enum Known {
    File(Arc<FileStretch>),
    Memory,
}

pub(super) enum Entry {
    File(Arc<FileStretch>),
    Memory(Range<u64>, &'static str),
    Nothing(Range<u64>, &'static str),
    Ended(Range<u64>),
}

impl Entry {
    fn addresses(&self) -> &Range<u64> {
        match self {
            Entry::File(stretch) => &stretch.addresses,
            Entry::Memory(addresses, _) | Entry::Nothing(addresses, _) | Entry::Ended(addresses) => addresses,
        }
    }

    /// What remains of it at some of its addresses, if any.
    fn part(&self, addresses: Range<u64>) -> Option<Entry> {
        let entry = match self {
            Entry::File(_) | Entry::Ended(_) => Entry::Ended(addresses.clone()),
            Entry::Memory(_, why) => Entry::Memory(addresses.clone(), why),
            Entry::Nothing(_, why) => Entry::Nothing(addresses.clone(), why),
        };
        (!addresses.is_empty()).then_some(entry)
    }

    fn public(&self) -> Stretch {
        let backing = match self {
            Entry::File(stretch) => Backing::File {
                inode: stretch.identity.1,
                file_offset: stretch.file_offset,
                segments: stretch.mapping.segments().to_vec(),
            },
            Entry::Memory(_, why) => Backing::Memory { why },
            Entry::Nothing(_, why) => Backing::Nothing { why },
            Entry::Ended(_) => Backing::Ended,
        };
        Stretch { addresses: self.addresses().clone(), backing }
    }
}

/// Stretches by address. A stretch is taken out, and its mapping ended, by whoever finds that it has changed. What calls
/// the server, or waits, does so without the table's lock.
#[derive(Default)]
pub(super) struct Table {
    /// Sorted, without overlaps.
    entries: Mutex<Vec<Entry>>,
}

impl Table {
    pub(super) fn list(&self) -> Vec<Stretch> {
        lock(&self.entries).iter().map(Entry::public).collect()
    }

    pub(super) fn files(&self) -> Vec<Arc<FileStretch>> {
        let file = |entry: &Entry| match entry {
            Entry::File(stretch) => Some(Arc::clone(stretch)),
            _ => None,
        };
        lock(&self.entries).iter().filter_map(file).collect()
    }

    /// What an address leads to, and how many bytes from there on do.
    pub(super) fn find(&self, address: u64) -> Result<(Known, usize), Error> {
        let entries = lock(&self.entries);
        let after = entries.partition_point(|entry| entry.addresses().start <= address);
        let entry = after.checked_sub(1).map(|index| &entries[index]);
        let entry = entry.filter(|entry| address < entry.addresses().end);
        let entry = entry.ok_or(Error::Address { address, what: "it lies outside what was mapped for the device" })?;
        let room = usize::try_from(entry.addresses().end - address).unwrap_or(usize::MAX);
        match entry {
            Entry::File(stretch) => Ok((Known::File(Arc::clone(stretch)), room)),
            Entry::Memory(..) => Ok((Known::Memory, room)),
            Entry::Nothing(_, what) => Err(Error::Address { address, what }),
            Entry::Ended(_) => Err(Error::AddressChanged { address }),
        }
    }

    /// New stretches, which are adjacent, replace what was known of their addresses.
    pub(super) fn insert(&self, stretches: Vec<Entry>) {
        let (Some(first), Some(last)) = (stretches.first(), stretches.last()) else { return };
        let span = first.addresses().start..last.addresses().end;
        let mut entries = lock(&self.entries);
        let replaced = take_files(&mut entries, &span);
        let old: Vec<Entry> = entries.extract_if(.., |entry| overlap(entry.addresses(), &span)).collect();
        for entry in &old {
            let known = entry.addresses();
            entries.extend(entry.part(known.start..span.start.min(known.end)));
            entries.extend(entry.part(span.end.max(known.start)..known.end));
        }
        entries.extend(stretches);
        entries.sort_by_key(|entry| entry.addresses().start);
        drop(entries);
        end_all(&replaced);
    }

    /// Ends a stretch that turned out to be changed.
    pub(super) fn end(&self, stretch: &FileStretch) {
        self.end_in(&stretch.addresses);
    }

    /// Ends every file's stretch that has an address of the range, whole.
    pub(super) fn end_in(&self, addresses: &Range<u64>) {
        let mut entries = lock(&self.entries);
        let ended = take_files(&mut entries, addresses);
        drop(entries);
        end_all(&ended);
    }

    /// As `end_in`, unless a guard is held in one of them; answers where they were.
    pub(super) fn release(&self, addresses: &Range<u64>) -> Result<Vec<Range<u64>>, Error> {
        let mut entries = lock(&self.entries);
        for entry in entries.iter() {
            if let Entry::File(stretch) = entry
                && overlap(&stretch.addresses, addresses)
                && stretch.guards.load(Ordering::Acquire) > 0
            {
                return Err(Error::AddressInUse { address: stretch.addresses.start });
            }
        }
        let ended = take_files(&mut entries, addresses);
        drop(entries);
        end_all(&ended);
        Ok(ended.iter().map(|stretch| stretch.addresses.clone()).collect())
    }

    /// Counts a guard, unless the stretch has ended.
    pub(super) fn enter(&self, stretch: &Arc<FileStretch>) -> bool {
        let entries = lock(&self.entries);
        let held = entries.iter().any(|entry| matches!(entry, Entry::File(held) if Arc::ptr_eq(held, stretch)));
        if held {
            stretch.guards.fetch_add(1, Ordering::AcqRel);
        }
        held
    }

    /// Is a stretch in use by the table still?
    pub(super) fn holds(&self, stretch: &Arc<FileStretch>) -> bool {
        lock(&self.entries).iter().any(|entry| matches!(entry, Entry::File(held) if Arc::ptr_eq(held, stretch)))
    }
}

/// Takes files' stretches out of the table.
fn take_files(entries: &mut [Entry], addresses: &Range<u64>) -> Vec<Arc<FileStretch>> {
    let mut taken = Vec::new();
    for entry in entries {
        if let Entry::File(stretch) = entry
            && overlap(&stretch.addresses, addresses)
        {
            taken.push(Arc::clone(stretch));
            *entry = Entry::Ended(stretch.addresses.clone());
        }
    }
    taken
}

/// Ends the mappings now, though others may still hold the stretches: nothing calls back for them any more.
fn end_all(stretches: &[Arc<FileStretch>]) {
    for stretch in stretches {
        // Nobody is left to tell; the server ends the mapping with the session at the latest.
        let _ = stretch.mapping.end();
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}
