//! A bar of a file: one cell for each part of it, by decision.

use std::fmt::Write;

use peerfs_abi::Stage;
use peerfs_client::{DecisionTable, Path, Reason, Segment};

use crate::output;

/// How a bar is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Columns of the terminal.
    pub width: usize,
    /// With the colours of a terminal.
    pub colours: bool,
}

/// A decision as a cell shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Mapped, by this path.
    Direct(Path),
    /// Refused, for this reason first.
    Refused(Reason),
}

impl Kind {
    fn of(segment: &Segment) -> Kind {
        segment.reason.map_or(Kind::Direct(segment.path), Kind::Refused)
    }

    /// What stands for it where there are no colours: no two are alike.
    pub fn letter(self) -> char {
        match self {
            Kind::Direct(Path::DirectWindow) => '#',
            Kind::Direct(Path::DirectBar) => '=',
            Kind::Direct(Path::Fallback) => '?',
            Kind::Refused(reason) => letter(reason),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Direct(path) => path.name(),
            Kind::Refused(reason) => reason.name(),
        }
    }

    /// Parameters of SGR, the terminal's command for colours: text and background.
    fn colour(self) -> &'static str {
        match self {
            Kind::Direct(Path::DirectWindow) => "30;42",
            Kind::Direct(Path::DirectBar) => "30;46",
            Kind::Direct(Path::Fallback) => "0",
            Kind::Refused(Reason::Hole | Reason::BeyondEof) => "90",
            Kind::Refused(Reason::Unwritten) => "97;44",
            Kind::Refused(reason) => match reason.stage() {
                Stage::Filesystem => "30;43",
                Stage::BlockDevice => "97;41",
                Stage::PeerPath => "97;45",
            },
        }
    }
}

fn letter(reason: Reason) -> char {
    match reason {
        Reason::NotRegularFile => 'N',
        Reason::Hole => '.',
        Reason::Unwritten => '_',
        Reason::BeyondEof => '>',
        Reason::Misaligned => '%',
        Reason::PageCacheDirty => 'd',
        Reason::PageCached => 'c',
        Reason::CpuWriter => 'w',
        Reason::SharedExtent => 's',
        Reason::Policy => 'p',
        Reason::ReadOnly => 'r',
        Reason::Busy => 'b',
        Reason::NoAperture => 'A',
        Reason::ApertureFull => 'F',
        Reason::NoGrantObject => 'G',
        Reason::WriteForbidden => 'W',
        Reason::AtomicUnsupported => 'a',
        Reason::PinQuota => 'Q',
        Reason::DeviceResetting => 'R',
        Reason::MediaError => 'X',
        Reason::NoPeerPath => 'P',
        Reason::DmaMaskExceeded => 'D',
        Reason::IommuRejected => 'I',
        Reason::NotifierRequired => 'n',
        Reason::ImporterQuota => 'q',
        Reason::StaleContext => 'C',
    }
}

/// The cells of a table, and the bytes of each decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    cells: Vec<Kind>,
    /// In the order of the file.
    legend: Vec<(Kind, u64)>,
}

impl Bar {
    /// A bar of at most `width` cells, fewer where there are fewer bytes. What has most of a cell's bytes is shown there; nothing
    /// is left out while there are cells enough.
    pub fn new(table: &DecisionTable, width: usize) -> Bar {
        let legend = legend(&table.segments);
        let start = table.segments.first().map_or(table.end, |segment| segment.file_offset);
        let length = table.segments.last().map_or(start, Segment::end) - start;
        let count = (width as u64).min(length);
        let edge = |cell: u64| start + (u128::from(length) * u128::from(cell) / u128::from(count.max(1))) as u64;
        let shares: Vec<Vec<(Kind, u64)>> = (0..count).map(|cell| shares(&table.segments, edge(cell), edge(cell + 1))).collect();
        let largest = |shares: &Vec<(Kind, u64)>| shares.iter().max_by_key(|share| share.1).map(|share| share.0);
        let mut cells: Vec<Kind> = shares.iter().filter_map(largest).collect();
        legend.iter().for_each(|(kind, _)| show(*kind, &mut cells, &shares));
        Bar { cells, legend }
    }

    /// The bar between brackets and a line of the legend for each decision.
    pub fn render(&self, colours: bool) -> String {
        let mut text = String::from("[");
        for run in self.cells.chunk_by(|left, right| left == right) {
            let letters: String = run.iter().map(|kind| kind.letter()).collect();
            text.push_str(&coloured(&letters, run[0], colours));
        }
        text.push_str("]\n");
        let width = self.legend.iter().map(|(kind, _)| kind.name().len()).max().unwrap_or(0);
        for (kind, bytes) in &self.legend {
            let sign = coloured(&format!(" {} ", kind.letter()), *kind, colours);
            let _ = writeln!(text, "{sign} {:<width$} {:>10}  {}", kind.name(), output::bytes(*bytes), meaning(*kind));
        }
        text
    }
}

/// Gives a decision that no cell shows the cell of which it has most, or the nearest one that can be spared: whose own decision
/// is shown elsewhere too.
fn show(kind: Kind, cells: &mut [Kind], shares: &[Vec<(Kind, u64)>]) {
    if cells.contains(&kind) {
        return;
    }
    let share = |cell: usize| shares[cell].iter().find(|share| share.0 == kind).map_or(0, |share| share.1);
    let Some(home) = (0..cells.len()).max_by_key(|cell| share(*cell)) else { return };
    let spared = |cell: &usize| cells.iter().filter(|shown| **shown == cells[*cell]).count() > 1;
    if let Some(cell) = (0..cells.len()).filter(spared).min_by_key(|cell| cell.abs_diff(home)) {
        cells[cell] = kind;
    }
}

fn meaning(kind: Kind) -> &'static str {
    match kind {
        Kind::Direct(Path::DirectWindow) => "mapped: a window of main memory",
        Kind::Direct(Path::DirectBar) => "mapped: memory of the device",
        Kind::Direct(Path::Fallback) => "by fallback",
        Kind::Refused(reason) => reason.text(),
    }
}

fn coloured(text: &str, kind: Kind, colours: bool) -> String {
    if colours { format!("\x1b[{}m{text}\x1b[0m", kind.colour()) } else { text.to_owned() }
}

fn legend(segments: &[Segment]) -> Vec<(Kind, u64)> {
    let mut legend: Vec<(Kind, u64)> = Vec::new();
    for segment in segments {
        let kind = Kind::of(segment);
        match legend.iter_mut().find(|entry| entry.0 == kind) {
            Some(entry) => entry.1 += segment.length,
            None => legend.push((kind, segment.length)),
        }
    }
    legend
}

/// How many bytes each decision has between two offsets.
fn shares(segments: &[Segment], start: u64, end: u64) -> Vec<(Kind, u64)> {
    let first = segments.partition_point(|segment| segment.end() <= start);
    let inside = segments[first..].iter().take_while(|segment| segment.file_offset < end);
    let mut shares: Vec<(Kind, u64)> = Vec::new();
    for segment in inside {
        let bytes = segment.end().min(end) - segment.file_offset.max(start);
        match shares.iter_mut().find(|share| share.0 == Kind::of(segment)) {
            Some(share) => share.1 += bytes,
            None => shares.push((Kind::of(segment), bytes)),
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use peerfs_client::{ReasonSet, TriggerSet};

    use super::*;

    fn segment(file_offset: u64, length: u64, reason: Option<Reason>) -> Segment {
        Segment {
            file_offset,
            length,
            path: if reason.is_some() { Path::Fallback } else { Path::DirectWindow },
            reason,
            device_offset: None,
            pin: None,
            refusals: reason.into_iter().collect::<ReasonSet>(),
            triggers: TriggerSet::EMPTY,
        }
    }

    fn bar(parts: &[(u64, Option<Reason>)], width: usize) -> String {
        let mut segments = Vec::new();
        let mut at = 4096;
        for (length, reason) in parts {
            segments.push(segment(at, *length, *reason));
            at += length;
        }
        let table = DecisionTable { segments, end: at, retry_after: None };
        Bar::new(&table, width).render(false).lines().next().expect("a bar").to_owned()
    }

    #[test]
    fn no_two_decisions_look_alike() {
        let direct = [Path::DirectWindow, Path::DirectBar, Path::Fallback].map(Kind::Direct);
        let all: Vec<Kind> = direct.into_iter().chain(Reason::ALL.iter().copied().map(Kind::Refused)).collect();
        let letters: BTreeSet<char> = all.iter().map(|kind| kind.letter()).collect();
        assert_eq!(letters.len(), all.len());
    }

    #[test]
    fn cells_show_what_has_most_of_them_and_nothing_is_hidden() {
        let (direct, hole, busy) = (None, Some(Reason::Hole), Some(Reason::Busy));
        assert_eq!(bar(&[(5 << 20, direct), (5 << 20, hole)], 10), "[#####.....]");
        assert_eq!(bar(&[(95 << 20, direct), (4096, busy), (5 << 20, hole)], 10), "[########b.]");
        assert_eq!(bar(&[(1 << 40, direct), (1, hole), (1 << 40, direct)], 4).matches('.').count(), 1);
        // Never more cells than bytes, and none of nothing.
        assert_eq!(bar(&[(2, direct), (1, hole)], 80), "[##.]");
        assert_eq!(bar(&[], 80), "[]");
        assert_eq!(bar(&[(4096, direct)], 0), "[]");
    }

    #[test]
    fn colours_are_commands_of_the_terminal_around_the_same_letters() {
        let table = DecisionTable { segments: vec![segment(0, 8192, None)], end: 8192, retry_after: None };
        let bar = Bar::new(&table, 4);
        assert!(bar.render(true).starts_with("[\x1b[30;42m####\x1b[0m]"));
        assert!(!bar.render(false).contains('\x1b'));
    }
}
