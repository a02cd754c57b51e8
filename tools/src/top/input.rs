//! What a key means. Pure.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What the view is doing, which decides what keys mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Showing mappings.
    Browsing,
    /// Waiting for yes or no.
    Asking,
    /// Showing what keys do.
    Help,
}

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End the view.
    Quit,
    /// Select another row, so many down (negative: up).
    Select(isize),
    /// Sort by the next column.
    NextColumn,
    /// Turn the order around.
    Reverse,
    /// Stop or go on following the mount.
    Pause,
    /// Ask whether to revoke what is selected.
    AskRevoke,
    /// Yes, revoke it.
    Confirm,
    /// No; or leave the help.
    Dismiss,
    /// A row for each process, or for each mapping again.
    ByProcess,
    /// A row for each importer, or for each mapping again.
    ByImporter,
    /// Show what keys do.
    Help,
}

/// Rows that a page key moves by.
const PAGE: isize = 10;

/// The keys, for the help.
pub const KEYS: [(&str, &str); 10] = [
    ("q", "quit"),
    ("arrows, j k", "select a row (page keys, Home, End: further)"),
    ("s", "sort by the next column"),
    ("r", "reverse the order"),
    ("space", "pause"),
    ("R", "revoke the selected mapping, or all of the selected process or importer"),
    ("p", "a row for each process"),
    ("i", "a row for each importer"),
    ("h", "help"),
    ("y, n", "answer a question"),
];

/// What a key asks for in this mode, if anything.
pub fn action(key: KeyEvent, mode: Mode) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Action::Quit);
    }
    match mode {
        Mode::Browsing => browsing(key.code),
        Mode::Asking => match key.code {
            KeyCode::Char('y' | 'Y') => Some(Action::Confirm),
            KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc => Some(Action::Dismiss),
            _ => None,
        },
        Mode::Help => Some(Action::Dismiss),
    }
}

fn browsing(code: KeyCode) -> Option<Action> {
    Some(match code {
        KeyCode::Char('q') => Action::Quit,
        KeyCode::Down | KeyCode::Char('j') => Action::Select(1),
        KeyCode::Up | KeyCode::Char('k') => Action::Select(-1),
        KeyCode::PageDown => Action::Select(PAGE),
        KeyCode::PageUp => Action::Select(-PAGE),
        KeyCode::End => Action::Select(isize::MAX),
        KeyCode::Home => Action::Select(isize::MIN),
        KeyCode::Char('s') => Action::NextColumn,
        KeyCode::Char('r') => Action::Reverse,
        KeyCode::Char(' ') => Action::Pause,
        KeyCode::Char('R') => Action::AskRevoke,
        KeyCode::Char('p') => Action::ByProcess,
        KeyCode::Char('i') => Action::ByImporter,
        KeyCode::Char('h' | '?') => Action::Help,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(character: char) -> KeyEvent {
        KeyEvent::new(KeyCode::Char(character), KeyModifiers::NONE)
    }

    #[test]
    fn keys_mean_what_the_help_says() {
        let browsing = |character| action(press(character), Mode::Browsing);
        for (character, expected) in [
            ('q', Action::Quit),
            ('j', Action::Select(1)),
            ('k', Action::Select(-1)),
            ('s', Action::NextColumn),
            ('r', Action::Reverse),
            (' ', Action::Pause),
            ('R', Action::AskRevoke),
            ('p', Action::ByProcess),
            ('i', Action::ByImporter),
            ('h', Action::Help),
        ] {
            assert_eq!(browsing(character), Some(expected), "{character}");
        }
        assert_eq!((browsing('y'), browsing('x')), (None, None));
    }

    #[test]
    fn nothing_but_yes_revokes_and_ctrl_c_always_quits() {
        assert_eq!(action(press('y'), Mode::Asking), Some(Action::Confirm));
        for character in ['n', 'q'] {
            assert_eq!(action(press(character), Mode::Asking), Some(Action::Dismiss));
        }
        for character in ['R', ' ', 'j'] {
            assert_eq!(action(press(character), Mode::Asking), None, "{character}");
        }
        assert_eq!(action(press('q'), Mode::Help), Some(Action::Dismiss));
        for mode in [Mode::Browsing, Mode::Asking, Mode::Help] {
            let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
            assert_eq!(action(ctrl_c, mode), Some(Action::Quit));
            let released = KeyEvent::new_with_kind(KeyCode::Char('q'), KeyModifiers::NONE, KeyEventKind::Release);
            assert_eq!(action(released, mode), None);
        }
    }
}
