//! Draws a [`State`]. The lines at the top go first where there is little room, the table last.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar::NINE_LEVELS;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Sparkline, Widget};

use super::input::KEYS;
use super::model::{Paths, Picture};
use super::state::State;
use crate::output;

/// Columns of the names at the left.
const LABEL: usize = 10;
/// Rows that the table keeps: titles and a few mappings.
const TABLE_ROWS: u16 = 4;
/// Pins that are listed where there is much room, and how much that is.
const PINS_LISTED: usize = 5;
const MUCH: u16 = 30;
/// Files that have a letter of their own in the map of the aperture.
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz";

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws all of it.
pub fn draw(state: &State, area: Rect, buffer: &mut Buffer) {
    let Some(last) = area.rows().next_back() else { return };
    last_line(state).render(last, buffer);
    draw_report(state, Rect { height: area.height - 1, ..area }, buffer);
    if state.help {
        help(area, buffer);
    }
}

/// Draws what there is to see, without the line of keys and answers.
pub fn draw_report(state: &State, area: Rect, buffer: &mut Buffer) {
    let rows: Vec<Rect> = area.rows().collect();
    let Some((first, below)) = rows.split_first() else { return };
    title(state, first.width).render(*first, buffer);
    let room = (below.len() as u16).saturating_sub(TABLE_ROWS);
    let lines = summary(&state.picture, area);
    let shown = lines.len().min(usize::from(room));
    for (row, line) in below.iter().zip(&lines[..shown]) {
        line.draw(*row, buffer);
    }
    let rest = &below[shown..];
    if let Some(top) = rest.first() {
        table(state, Rect { height: rest.len() as u16, ..*top }, buffer);
    }
}

/// A named line of the summary.
enum Summary<'a> {
    Text(&'static str, Line<'a>),
    Latencies(&'a [u64]),
}

impl Summary<'_> {
    fn draw(&self, row: Rect, buffer: &mut Buffer) {
        let label = (LABEL as u16).min(row.width);
        let rest = Rect { x: row.x + label, width: row.width - label, ..row };
        match self {
            Summary::Text(name, line) => {
                buffer.set_stringn(row.x, row.y, name, label.into(), BOLD);
                line.render(rest, buffer);
            }
            Summary::Latencies(cut_ns) => {
                buffer.set_stringn(row.x, row.y, "  latency", label.into(), BOLD);
                let skipped = cut_ns.len().saturating_sub(rest.width.into());
                Sparkline::default().data(cut_ns[skipped..].iter().copied()).bar_set(NINE_LEVELS).render(rest, buffer);
            }
        }
    }
}

fn title(state: &State, width: u16) -> Line<'static> {
    let mappings = output::count(state.picture.mapping_count, "mapping");
    let paused = if state.paused { " PAUSED" } else { "" };
    let line = format!("peerfs top{paused}  {}  {mappings}", state.picture.title);
    Line::styled(format!("{line:<width$}", width = usize::from(width)), REVERSED)
}

fn last_line(state: &State) -> Line<'_> {
    if let Some(question) = &state.question {
        let count = question.mappings.len();
        let more = if count > 1 { format!(" ({})", output::count(count as u64, "mapping")) } else { String::new() };
        return Line::styled(format!("revoke {}{more}? y/n", question.what), BOLD);
    }
    if let Some(why) = &state.lost {
        return Line::styled(format!("OLD: {why}"), Style::new().fg(Color::Red).add_modifier(Modifier::BOLD));
    }
    if !state.status.is_empty() {
        return Line::raw(state.status.as_str());
    }
    Line::raw("q quit  j k select  s sort  r reverse  R revoke  p i group  space pause  h help")
}

fn summary(picture: &Picture, area: Rect) -> Vec<Summary<'_>> {
    let width = usize::from(area.width).saturating_sub(LABEL);
    let mut lines = vec![Summary::Text("aperture", aperture(picture, width))];
    if !picture.windows.is_empty() {
        lines.push(Summary::Text("  files", map(picture, width)));
    }
    lines.push(Summary::Text("rates", rates(picture)));
    lines.push(Summary::Text("revoked", revoked(picture)));
    if !picture.revocations.cut_ns.is_empty() {
        lines.push(Summary::Latencies(&picture.revocations.cut_ns));
    }
    lines.push(Summary::Text("refused", refused(picture)));
    lines.push(Summary::Text("pins", pins(picture)));
    if area.height >= MUCH {
        let listed = picture.pins.lines.iter().take(PINS_LISTED);
        lines.extend(listed.map(|line| Summary::Text("", Line::raw(line.as_str()))));
    }
    for importer in &picture.transfers {
        let transfers = output::count(importer.in_flight, "transfer");
        let text = format!("{} with {}: {transfers} under way", importer.importer, importer.namespace);
        lines.push(Summary::Text("transfers", Line::raw(text)));
    }
    if let Some(memory) = &picture.device_memory {
        lines.push(Summary::Text("devmem", Line::raw(memory.as_str())));
    }
    lines
}

/// A bar of what is used, then the numbers.
fn aperture(picture: &Picture, width: usize) -> Line<'static> {
    let Some(aperture) = &picture.aperture else { return Line::raw("none: everything falls back (NoAperture)") };
    let (used, capacity) = (aperture.used_bytes, aperture.capacity_bytes.max(1));
    let windows = output::count(aperture.windows, "window");
    let numbers =
        format!(" {} of {} in {windows}, {}", output::bytes(used), output::bytes(aperture.capacity_bytes), aperture.name);
    let cells = width.saturating_sub(numbers.len() + 2).min(40);
    let full = share(used, capacity, cells);
    let colour = if full * 10 >= cells * 9 { Color::Red } else { Color::Green };
    Line::from(vec![
        Span::raw("["),
        Span::styled("#".repeat(full), Style::new().fg(colour)),
        Span::raw("-".repeat(cells - full)),
        Span::raw("]"),
        Span::raw(numbers),
    ])
}

/// `cells` in the proportion of `part` to `whole`; a cell at least where there is anything.
fn share(part: u64, whole: u64, cells: usize) -> usize {
    let share = (u128::from(part) * cells as u128).div_ceil(u128::from(whole.max(1)));
    usize::try_from(share).unwrap_or(cells).min(cells)
}

/// Which file has how much of the aperture: letters in proportion, with what they stand for. Windows have a size and no place.
fn map(picture: &Picture, width: usize) -> Line<'static> {
    let capacity = picture.aperture.as_ref().map_or(0, |aperture| aperture.capacity_bytes);
    let cells = (width / 2).min(40);
    let (mut letters, mut legend) = (String::new(), String::new());
    for ((object, bytes), letter) in picture.windows.iter().zip(LETTERS.chars()) {
        let count = share(*bytes, capacity, cells).min(cells - letters.len());
        letters.extend(std::iter::repeat_n(letter, count));
        legend.push_str(&format!(" {letter}=inode {object} {}", output::bytes(*bytes)));
    }
    let pinned = share(picture.pins.used_bytes, capacity, cells).min(cells - letters.len());
    letters.push_str(&"P".repeat(pinned));
    if pinned > 0 {
        legend.push_str(" P=pins");
    }
    let free = cells - letters.len();
    Line::raw(format!("[{letters}{}]{legend}", "-".repeat(free)))
}

fn rates(picture: &Picture) -> Line<'static> {
    let paths = |paths: &Paths, unit: &str| {
        let bytes = |bytes: f64| format!("{}{unit}", output::bytes(bytes as u64));
        format!("direct-window {}  direct-bar {}  fallback {}", bytes(paths.window), bytes(paths.bar), bytes(paths.fallback))
    };
    Line::raw(match &picture.rates {
        Some(rates) => paths(rates, "/s"),
        None => format!("{} since the mount", paths(&picture.moved, "")),
    })
}

fn revoked(picture: &Picture) -> Line<'static> {
    let revocations = &picture.revocations;
    let mut text = output::count(revocations.grants, "grant");
    if let Some(rate) = revocations.per_second {
        text.push_str(&format!(", {rate:.1}/s"));
    }
    if let Some(trigger) = &revocations.last_trigger {
        text.push_str(&format!(
            "; last {} ({trigger}): median {}, p99 {}",
            revocations.cut_ns.len(),
            output::nanoseconds(revocations.median_ns),
            output::nanoseconds(revocations.p99_ns)
        ));
    }
    if revocations.enforced > 0 {
        text.push_str(&format!("; {} without an acknowledgement", revocations.enforced));
    }
    Line::raw(text)
}

fn refused(picture: &Picture) -> Line<'static> {
    if picture.refusals.is_empty() {
        return Line::raw("nothing");
    }
    let one = |refusals: &super::model::Refusals| match refusals.per_second {
        rate if rate > 0.0 => format!("{} {} ({rate:.1}/s)", refusals.total, refusals.reason),
        _ => format!("{} {}", refusals.total, refusals.reason),
    };
    Line::raw(picture.refusals.iter().map(one).collect::<Vec<_>>().join("  "))
}

fn pins(picture: &Picture) -> Line<'static> {
    let pins = &picture.pins;
    Line::raw(format!(
        "{}, {} of {}",
        output::count(pins.count, "pin"),
        output::bytes(pins.used_bytes),
        output::bytes(pins.quota_bytes)
    ))
}

fn table(state: &State, area: Rect, buffer: &mut Buffer) {
    let (picture, rows) = (&state.picture, &state.table.rows);
    let body = usize::from(area.height).saturating_sub(1);
    let selected = state.selected_row();
    // The selected row is in the middle, where there are rows on both sides.
    let first = selected.map_or(0, |row| row.saturating_sub(body / 2)).min(rows.len().saturating_sub(body));
    let shown = &rows[first..rows.len().min(first + body)];
    let columns = columns(state, shown, usize::from(area.width));
    let title = |(column, width): &(usize, usize)| {
        let sorted = *column == state.sorting.column;
        let sign = if !sorted {
            ""
        } else if state.sorting.reverse {
            "^"
        } else {
            "v"
        };
        format!("{:>width$}", format!("{}{sign}", state.table.titles[*column]))
    };
    let titles: Vec<String> = columns.iter().map(title).collect();
    buffer.set_stringn(area.x, area.y, titles.join("  "), area.width.into(), BOLD);
    for (row, y) in shown.iter().zip(area.y + 1..area.bottom()) {
        let cells: Vec<String> = columns.iter().map(|(column, width)| format!("{:>width$}", row.cells[*column].text)).collect();
        let style = if state.selected.as_ref() == Some(&row.name) { REVERSED } else { Style::new() };
        let line = format!("{:<width$}", cells.join("  "), width = usize::from(area.width));
        buffer.set_stringn(area.x, y, line, area.width.into(), style);
    }
    if let Some(line) = remark(picture, rows.len(), shown.len())
        && shown.len() < body
    {
        buffer.set_stringn(area.x, area.y + 1 + shown.len() as u16, line, area.width.into(), Style::new());
    }
}

/// What the table does not show.
fn remark(picture: &Picture, rows: usize, shown: usize) -> Option<String> {
    if let Some(why) = &picture.no_ledger {
        return Some(format!("mappings are not shown: {why}"));
    }
    let mut parts = Vec::new();
    if rows == 0 {
        parts.push("nothing is mapped".to_owned());
    }
    if picture.fallen_back > 0 {
        parts.push(format!("{} holding nothing (any more)", output::count(picture.fallen_back, "mapping")));
    }
    if picture.left_out > 0 {
        parts.push(format!("{} not listed", output::count(picture.left_out, "mapping")));
    }
    (shown == rows && !parts.is_empty()).then(|| parts.join("; "))
}

/// Columns that fit, with their widths; the first one always.
fn columns(state: &State, shown: &[super::table::Row], room: usize) -> Vec<(usize, usize)> {
    let width = |column: usize| {
        let cells = shown.iter().map(|row| row.cells[column].text.chars().count());
        // One more for the sign of the order.
        cells.max().unwrap_or(0).max(state.table.titles[column].len() + 1)
    };
    let mut left = room;
    let mut columns = Vec::new();
    for column in 0..state.table.titles.len() {
        let width = width(column);
        let needed = if columns.is_empty() { width } else { width + 2 };
        if needed > left && !columns.is_empty() {
            break;
        }
        left = left.saturating_sub(needed);
        columns.push((column, width));
    }
    columns
}

fn help(area: Rect, buffer: &mut Buffer) {
    let lines: Vec<Line> = KEYS.iter().map(|(key, what)| Line::raw(format!("{key:<12} {what}"))).collect();
    let wanted = lines.iter().map(Line::width).max().unwrap_or(0) as u16 + 2;
    let (width, height) = (wanted.min(area.width), (lines.len() as u16 + 2).min(area.height));
    let place = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    Clear.render(place, buffer);
    Paragraph::new(lines).block(Block::bordered().title("keys")).render(place, buffer);
}
