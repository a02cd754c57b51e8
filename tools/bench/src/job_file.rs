//! Job files: sections of options, as fio reads them.
//!
//! Sections may have the same name, an option may be given without a value, and the order of both
//! counts, which is why no INI library serves.

use std::path::Path;

use crate::{Error, Place};

/// Name of the sections whose options all later jobs begin with.
pub const GLOBAL: &str = "global";

/// One option as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name.
    pub key: String,
    /// What is behind `=`; `None` without one.
    pub value: Option<String>,
    /// Where it is.
    pub place: Place,
}

/// A section: a job, or global options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Name between the brackets.
    pub name: String,
    /// Where it begins.
    pub place: Place,
    /// Its options, in order.
    pub entries: Vec<Entry>,
}

/// Splits a job file into sections. `;` and `#` begin comments, at the start of a line or behind an option.
///
/// # Errors
/// [`Error::Input`] for an option before the first section, and for a section without name or bracket.
pub fn sections(file: &Path, text: &str) -> Result<Vec<Section>, Error> {
    let mut sections: Vec<Section> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = Place::Line { file: file.to_owned(), line: index + 1 };
        let line = line.split([';', '#']).next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let name = rest.strip_suffix(']').map(str::trim).filter(|name| !name.is_empty());
            let name = name.ok_or_else(|| Error::input(&place, format!("{line}: expected a section, [NAME]")))?.to_owned();
            sections.push(Section { name, place, entries: Vec::new() });
            continue;
        }
        let section =
            sections.last_mut().ok_or_else(|| Error::input(&place, format!("{line}: an option before the first [section]")))?;
        section.entries.push(entry(line, place));
    }
    Ok(sections)
}

/// `key=value`, or `key` alone.
pub(crate) fn entry(text: &str, place: Place) -> Entry {
    match text.split_once('=') {
        Some((key, value)) => Entry { key: key.trim().to_owned(), value: Some(value.trim().to_owned()), place },
        None => Entry { key: text.trim().to_owned(), value: None, place },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Section>, String> {
        sections(Path::new("a.fio"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn bare_keys_duplicates_and_comments_are_kept_apart() {
        let parsed = parse("; head\n[a]\nstonewall\nbs = 4k # small\n\n[a]\n#no\nrw=read;yes\n").expect("parses");
        let shape: Vec<_> = parsed
            .iter()
            .map(|section| {
                let entries = section.entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_deref()));
                (section.name.as_str(), entries.collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(shape, [("a", vec![("stonewall", None), ("bs", Some("4k"))]), ("a", vec![("rw", Some("read"))])]);
        assert_eq!(parsed[1].entries[0].place.to_string(), "a.fio:8");
    }

    #[test]
    fn mistakes_name_file_and_line() {
        assert_eq!(parse("\nrw=read"), Err("a.fio:2: rw=read: an option before the first [section]".to_owned()));
        assert_eq!(parse("[a"), Err("a.fio:1: [a: expected a section, [NAME]".to_owned()));
        assert!(parse("[ ]").is_err());
    }

    #[test]
    fn a_value_may_contain_the_separator() {
        let parsed = parse("[a]\nfilename=x=y").expect("parses");
        assert_eq!(parsed[0].entries[0].value.as_deref(), Some("x=y"));
    }
}
