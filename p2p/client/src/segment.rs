//! Decision tables: the server's answer, checked before anything relies on it.

use std::time::Duration;

use peerfs_abi::ioctl::{self, Map, SEGMENTS_MAX, grant_kind};
use peerfs_abi::{Path, Reason, ReasonSet, TriggerSet};

use crate::Error;

/// What a pin's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinKind {
    /// A memory file of its own.
    Memfd,
    /// A dma-buf, which drivers import.
    Dmabuf,
}

impl PinKind {
    /// The name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            PinKind::Memfd => "memfd",
            PinKind::Dmabuf => "dmabuf",
        }
    }
}

/// A stretch of a file and how the importer reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file, bytes.
    pub file_offset: u64,
    /// Length, bytes.
    pub length: u64,
    /// Which way its bytes go.
    pub path: Path,
    /// Why it falls back; `None` when it is direct.
    pub reason: Option<Reason>,
    /// Where it lies on the storage device, bytes (answer of a query, direct).
    pub device_offset: Option<u64>,
    /// What it is pinned as (answer of a map with PIN, direct).
    pub pin: Option<PinKind>,
    /// Every reason that refuses it, not only the first (answer of a query).
    pub refusals: ReasonSet,
    /// What could end a mapping of it later (answer of a query, direct).
    pub triggers: TriggerSet,
}

impl Segment {
    /// One past the last byte, in the file.
    pub fn end(&self) -> u64 {
        self.file_offset + self.length
    }

    /// It falls back, if for nothing else because this process can be given no grants.
    pub(crate) fn refuse_grant(&mut self) {
        if self.reason.is_none() {
            self.path = Path::Fallback;
            self.reason = Some(Reason::NoGrantObject);
            self.device_offset = None;
            self.triggers = TriggerSet::EMPTY;
        }
        self.refusals = self.refusals.with(Reason::NoGrantObject);
    }
}

/// What a query answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionTable {
    /// Segments, sorted, without gaps.
    pub segments: Vec<Segment>,
    /// End of the range, bytes; of the file when none was named.
    pub end: u64,
    /// After a refusal: when it is worth trying again.
    pub retry_after: Option<Duration>,
}

impl DecisionTable {
    /// Bytes that would go directly.
    pub fn direct_bytes(&self) -> u64 {
        let direct = self.segments.iter().filter(|segment| segment.reason.is_none());
        direct.map(|segment| segment.length).sum()
    }

    /// Bytes that each reason refuses, in pipeline order. A stretch counts for every reason that refuses it.
    pub fn refusals(&self) -> Vec<(Reason, u64)> {
        let bytes = |reason: Reason| {
            let refused = self.segments.iter().filter(|segment| segment.refusals.contains(reason));
            refused.map(|segment| segment.length).sum()
        };
        Reason::ALL.iter().map(|reason| (*reason, bytes(*reason))).filter(|refused| refused.1 > 0).collect()
    }

    /// What could end a mapping of any of the direct stretches later.
    pub fn triggers(&self) -> TriggerSet {
        self.segments.iter().fold(TriggerSet::EMPTY, |all, segment| all.union(segment.triggers))
    }
}

/// A checked segment together with the grant it is reached through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Granted {
    pub(crate) segment: Segment,
    pub(crate) grant: Option<GrantPlace>,
}

/// Where in which grant a segment lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GrantPlace {
    pub(crate) id: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) slot: u32,
    pub(crate) sequence: u64,
}

/// Runs a query or map to the end of its range: calls again until the answer is complete.
/// `each` sees the raw answer (for the mapping's id) and its checked segments.
pub(crate) fn collect(
    mut argument: Box<Map>,
    mut call: impl FnMut(&mut Map) -> Result<(), Error>,
    mut each: impl FnMut(&Map, Vec<Granted>) -> Result<(), Error>,
) -> Result<(), Error> {
    let limit = match argument.length {
        0 => u64::MAX,
        length => argument.offset.saturating_add(length),
    };
    loop {
        let start = argument.offset;
        call(&mut argument)?;
        argument.end_offset = argument.end_offset.min(limit);
        let (next, end) = (argument.next_offset, argument.end_offset);
        let granted = checked(&argument, start)?;
        each(&argument, granted)?;
        if next >= end {
            return Ok(());
        }
        if next <= start || argument.segment_count == 0 {
            return Err(protocol("it does not advance"));
        }
        argument.offset = next;
        argument.length = end - next;
    }
}

fn checked(answer: &Map, start: u64) -> Result<Vec<Granted>, Error> {
    let count = answer.segment_count as usize;
    if count > SEGMENTS_MAX {
        return Err(protocol("more segments than fit"));
    }
    let mut expected = start;
    let mut granted = Vec::with_capacity(count);
    for raw in &answer.segments[..count] {
        if raw.file_offset != expected || raw.length == 0 {
            return Err(protocol("segments have gaps"));
        }
        expected = expected.checked_add(raw.length).ok_or_else(|| protocol("a segment overflows"))?;
        // The last block may reach beyond what was asked for, or beyond the end of the file.
        let length = raw.length.min(answer.end_offset.saturating_sub(raw.file_offset));
        if length > 0 {
            granted.push(one(raw, length)?);
        }
    }
    if expected != answer.next_offset && count > 0 {
        return Err(protocol("segments do not end at next_offset"));
    }
    Ok(granted)
}

fn one(raw: &ioctl::Segment, length: u64) -> Result<Granted, Error> {
    let path = Path::from_code(raw.path).ok_or_else(|| protocol("unknown path"))?;
    let direct = path != Path::Fallback;
    let reason = match direct {
        true => None,
        false => Some(Reason::from_code(raw.reason).ok_or_else(|| protocol("unknown reason"))?),
    };
    let segment = Segment {
        file_offset: raw.file_offset,
        length,
        path,
        reason,
        device_offset: (direct && raw.device_offset != 0).then_some(raw.device_offset),
        pin: match raw.grant_kind {
            grant_kind::PINNED_MEMFD if direct => Some(PinKind::Memfd),
            grant_kind::PINNED_DMABUF if direct => Some(PinKind::Dmabuf),
            _ => None,
        },
        refusals: ReasonSet::from_bits(raw.refusals),
        triggers: TriggerSet::from_bits(raw.triggers),
    };
    let grant = (direct && raw.grant_id != 0).then_some(GrantPlace {
        id: raw.grant_id,
        offset: raw.grant_offset,
        length: raw.grant_length,
        slot: raw.sequence_slot,
        sequence: raw.sequence,
    });
    if let Some(place) = grant {
        let inside = place.offset.checked_add(length);
        if inside.is_none_or(|end| end > place.length) {
            return Err(protocol("a segment leaves its grant"));
        }
    }
    Ok(Granted { segment, grant })
}

/// Milliseconds of an answer as a duration; 0 means none.
pub(crate) fn retry_after(answer: &Map) -> Option<Duration> {
    (answer.retry_after_ms > 0).then(|| Duration::from_millis(answer.retry_after_ms.into()))
}

fn protocol(what: &'static str) -> Error {
    Error::Protocol { what }
}
