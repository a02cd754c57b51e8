//! The table of mappings: one row for each, or for each process or importer, sorted. Pure.

use std::collections::BTreeMap;

use peerfs_abi::MapFlags;

use super::model::Mapping;
use crate::output;

/// What a row stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Grouping {
    /// A mapping.
    #[default]
    Mapping,
    /// All of a process.
    Process,
    /// All of an importer.
    Importer,
}

/// How rows are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Order {
    /// Column.
    pub column: usize,
    /// Largest first.
    pub reverse: bool,
}

/// A value: what is shown, and what it is sorted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// As shown.
    pub text: String,
    key: Key,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(u64),
    Text(String),
}

/// A row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it stands for, as in `mapping 17`: the same at every look.
    pub name: String,
    /// A cell for each column.
    pub cells: Vec<Cell>,
    /// Numbers of its mappings.
    pub mappings: Vec<u64>,
}

/// Rows under titles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Of the columns.
    pub titles: Vec<&'static str>,
    /// In order.
    pub rows: Vec<Row>,
}

/// Titles of the columns, those first that are to stay where there is no room for all.
pub fn titles(grouping: Grouping) -> &'static [&'static str] {
    match grouping {
        Grouping::Mapping => &[
            "mapping", "importer", "process", "length", "grants", "direct", "fallback", "age", "inode", "offset", "flags", "user",
        ],
        Grouping::Process => &["process", "importer", "mappings", "length", "grants", "direct", "fallback", "user"],
        Grouping::Importer => &["importer", "processes", "mappings", "length", "grants", "direct", "fallback"],
    }
}

impl Table {
    /// The table of these mappings.
    pub fn new(mappings: &[Mapping], grouping: Grouping, order: Order) -> Table {
        let mut rows = match grouping {
            Grouping::Mapping => mappings.iter().map(one).collect(),
            Grouping::Process => groups(mappings, |mapping| mapping.pid, process),
            Grouping::Importer => groups(mappings, |mapping| mapping.importer.clone(), importer),
        };
        // Stable: what is alike in this column keeps the ledger's order.
        rows.sort_by(|left, right| {
            let keys =
                left.cells.get(order.column).map(|cell| &cell.key).cmp(&right.cells.get(order.column).map(|cell| &cell.key));
            if order.reverse { keys.reverse() } else { keys }
        });
        Table { titles: titles(grouping).to_vec(), rows }
    }

    /// Where the row of this name is.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.rows.iter().position(|row| row.name == name)
    }
}

fn plain(number: u64) -> Cell {
    Cell { text: number.to_string(), key: Key::Number(number) }
}

fn bytes(number: u64) -> Cell {
    Cell { text: output::bytes(number), key: Key::Number(number) }
}

fn word(text: &str) -> Cell {
    Cell { text: text.to_owned(), key: Key::Text(text.to_owned()) }
}

fn age(milliseconds: u64) -> Cell {
    Cell { text: format!("{}.{} s", milliseconds / 1000, milliseconds % 1000 / 100), key: Key::Number(milliseconds) }
}

fn one(mapping: &Mapping) -> Row {
    let flags = MapFlags::from_bits_truncate(mapping.flags);
    Row {
        name: format!("mapping {}", mapping.number),
        cells: vec![
            plain(mapping.number),
            word(&mapping.importer),
            plain(mapping.pid),
            bytes(mapping.length),
            plain(mapping.grants),
            bytes(mapping.direct_bytes),
            bytes(mapping.fallback_bytes),
            age(mapping.age_ms),
            word(&mapping.object),
            plain(mapping.offset),
            word(&flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join("+")),
            plain(mapping.uid),
        ],
        mappings: vec![mapping.number],
    }
}

fn groups<K: Ord>(mappings: &[Mapping], key: impl Fn(&Mapping) -> K, row: impl Fn(&[&Mapping]) -> Row) -> Vec<Row> {
    let mut groups: BTreeMap<K, Vec<&Mapping>> = BTreeMap::new();
    for mapping in mappings {
        groups.entry(key(mapping)).or_default().push(mapping);
    }
    groups.values().map(|group| row(group)).collect()
}

fn process(group: &[&Mapping]) -> Row {
    let first = group[0];
    let mut cells = vec![plain(first.pid), names(group)];
    cells.extend(sums(group));
    cells.push(plain(first.uid));
    Row { name: format!("process {}", first.pid), cells, mappings: numbers(group) }
}

fn importer(group: &[&Mapping]) -> Row {
    let mut processes: Vec<u64> = group.iter().map(|mapping| mapping.pid).collect();
    processes.sort_unstable();
    processes.dedup();
    let name = &group[0].importer;
    let mut cells = vec![word(name), plain(processes.len() as u64)];
    cells.extend(sums(group));
    Row { name: format!("importer {name}"), cells, mappings: numbers(group) }
}

/// Mappings, length, grants, direct, fallback.
fn sums(group: &[&Mapping]) -> [Cell; 5] {
    let sum = |what: fn(&Mapping) -> u64| group.iter().fold(0u64, |sum, mapping| sum.saturating_add(what(mapping)));
    [
        plain(group.len() as u64),
        bytes(sum(|mapping| mapping.length)),
        plain(sum(|mapping| mapping.grants)),
        bytes(sum(|mapping| mapping.direct_bytes)),
        bytes(sum(|mapping| mapping.fallback_bytes)),
    ]
}

fn names(group: &[&Mapping]) -> Cell {
    let mut names: Vec<&str> = group.iter().map(|mapping| mapping.importer.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    word(&names.join("+"))
}

fn numbers(group: &[&Mapping]) -> Vec<u64> {
    group.iter().map(|mapping| mapping.number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::scenes::mapping;

    fn column(table: &Table, title: &str) -> Vec<String> {
        let column = table.titles.iter().position(|known| *known == title).expect("a column");
        table.rows.iter().map(|row| row.cells[column].text.clone()).collect()
    }

    #[test]
    fn numbers_sort_as_numbers_and_reverse() {
        let mappings: Vec<Mapping> = [9u64, 100, 20].map(|number| mapping(number, "cpu", 1)).to_vec();
        let order = Order { column: 0, reverse: false };
        assert_eq!(column(&Table::new(&mappings, Grouping::Mapping, order), "mapping"), ["9", "20", "100"]);
        let order = Order { reverse: true, ..order };
        assert_eq!(column(&Table::new(&mappings, Grouping::Mapping, order), "mapping"), ["100", "20", "9"]);
        // A column that is not there changes nothing.
        let order = Order { column: 99, reverse: true };
        assert_eq!(column(&Table::new(&mappings, Grouping::Mapping, order), "mapping"), ["9", "100", "20"]);
    }

    #[test]
    fn groups_add_up_and_know_their_mappings() {
        let mappings = [mapping(1, "cpu", 7), mapping(2, "nvme", 7), mapping(3, "cpu", 8)];
        let table = Table::new(&mappings, Grouping::Process, Order::default());
        assert_eq!(
            (column(&table, "process"), column(&table, "importer")),
            (vec!["7".into(), "8".into()], vec!["cpu+nvme".into(), "cpu".into()])
        );
        assert_eq!((column(&table, "mappings"), table.rows[0].mappings.clone()), (vec!["2".into(), "1".into()], vec![1, 2]));
        let table = Table::new(&mappings, Grouping::Importer, Order::default());
        assert_eq!(
            (column(&table, "importer"), column(&table, "processes")),
            (vec!["cpu".into(), "nvme".into()], vec!["2".into(), "1".into()])
        );
        assert_eq!(table.position("importer nvme"), Some(1));
        for grouping in [Grouping::Mapping, Grouping::Process, Grouping::Importer] {
            let table = Table::new(&mappings, grouping, Order::default());
            assert!(table.rows.iter().all(|row| row.cells.len() == table.titles.len()));
        }
    }
}
