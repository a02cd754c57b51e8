//! The page of messages: each of its entries says how its message comes about, and is tried.
//!
//! An entry is a heading of the third level that is a message in code style, with `...` for what differs, and below it a
//! comment `<!-- recipe`, lines of shell, `-->`. The last line of the recipe that begins as messages do must be the heading.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::pattern::line_matches;
use super::shell::Shell;

/// What recipes may call.
const HELPERS: &str = r#"
volume() { mkdir -p mnt && peerfs mkfs vol.img --size 64M >made; }
mounted() { volume && peerfs mount vol.img mnt "$@"; }
file() { dd if=/dev/urandom of="mnt/$1" bs=1M count=2 status=none; }
"#;
const RECIPE: &str = "<!-- recipe";
const PROGRAM: &str = "peerfs: ";

/// An entry of the page.
#[derive(Debug)]
pub struct Entry {
    /// Where in the document, from 1.
    pub line: usize,
    /// The message as printed.
    pub message: String,
    /// Commands that lead to it.
    pub recipe: String,
}

/// All entries, in order.
pub fn entries(document: &str) -> Result<Vec<Entry>> {
    let mut lines = document.lines().enumerate().map(|(index, line)| (index + 1, line));
    let mut entries = Vec::new();
    while let Some((line, text)) = lines.next() {
        let Some(heading) = text.strip_prefix("### ") else { continue };
        let message = heading.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
        let message = message.with_context(|| format!("line {line}: the heading is no message"))?.to_owned();
        let begins = lines.next().is_some_and(|(_, text)| text == RECIPE);
        ensure!(begins, "line {line}: {message} has no recipe");
        let recipe: Vec<&str> = lines.by_ref().map(|(_, text)| text).take_while(|text| *text != "-->").collect();
        ensure!(!recipe.is_empty(), "line {line}: the recipe is empty");
        entries.push(Entry { line, message, recipe: recipe.join("\n") });
    }
    Ok(entries)
}

/// Follows a recipe in a directory of its own. `programs` is where `peerfs` is.
pub fn try_entry(entry: &Entry, programs: &Path) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("peerfs-message-").tempdir()?;
    let outcome = follow(entry, directory.path(), programs).with_context(|| format!("line {}: {}", entry.line, entry.message));
    super::tidy(directory.path(), programs).and(outcome)
}

fn follow(entry: &Entry, directory: &Path, programs: &Path) -> Result<()> {
    fs::write(directory.join("helpers"), HELPERS)?;
    let mut shell = Shell::start(directory, programs)?;
    shell.run(". ./helpers")?;
    let answer = shell.run(&entry.recipe)?;
    match answer.lines.iter().rev().find(|line| line.starts_with(PROGRAM)) {
        Some(line) if line_matches(&entry.message, line) => Ok(()),
        Some(line) => bail!("printed is: {line}"),
        None => bail!("no message, but:\n{}", answer.lines.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_recipes() -> Result<()> {
        let entries = entries("# Page\n\n### `peerfs: a ... b`\n<!-- recipe\none\ntwo\n-->\ntext\n")?;
        assert_eq!((entries[0].line, &*entries[0].message, &*entries[0].recipe), (3, "peerfs: a ... b", "one\ntwo"));
        Ok(())
    }

    #[test]
    fn entries_without_are_refused() {
        for page in
            ["### `peerfs: a`\ntext\n", "### `peerfs: a`\n", "### a\n<!-- recipe\none\n-->\n", "### `a`\n<!-- recipe\n-->\n"]
        {
            assert!(entries(page).is_err(), "{page}");
        }
    }
}
