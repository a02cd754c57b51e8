//! What commands print: plain text, JSON and tables.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

/// Writes to stdout. Unlike `print!` it survives a reader that has gone.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Writes a JSON document to stdout.
pub fn print_json(value: &Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

/// Columns of the terminal that stdout is; 80 where it is none.
pub fn width() -> usize {
    const USUAL: usize = 80;
    if !std::io::stdout().is_terminal() {
        return USUAL;
    }
    ratatui::crossterm::terminal::size().map_or(USUAL, |(columns, _)| usize::from(columns)).max(1)
}

/// Colours are shown: stdout is a terminal that knows them, and NO_COLOR is not set.
pub fn colours() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|name| name == "dumb");
    std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}

/// An empty table with these column titles. The columns at `right` are aligned to the right.
pub fn table(titles: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(titles.to_vec());
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A table as lines without trailing blanks.
pub fn render(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Bytes for people: exact when they are few, else with three or four digits.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Nanoseconds for people.
pub fn nanoseconds(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} ns"),
        10_000..10_000_000 => format!("{} us", count / 1000),
        _ => format!("{} ms", count / 1_000_000),
    }
}

/// `1 file`, `2 files`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(64 << 20), "64.0 MiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
        assert_eq!(nanoseconds(9_999), "9999 ns");
        assert_eq!(nanoseconds(123_456), "123 us");
        assert_eq!(count(1, "file"), "1 file");
        assert_eq!(count(0, "file"), "0 files");
    }
}
