//! The state of the view and what actions and answers do to it. Pure: what is to be done comes out as an [`Order`].

use std::time::Duration;

use super::input::{Action, Mode};
use super::model::Picture;
use super::sample::Sample;
use super::table::{Grouping, Order as Sorting, Table, titles};

/// Longest time, beyond that between two looks, that a mount may take before it counts as silent.
const SILENCE: Duration = Duration::from_secs(3);

/// Something for the mount to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Revoke these mappings.
    Revoke(Vec<u64>),
}

/// Whether the view goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more to do.
    Continue,
    /// Send this to the mount.
    Send(Order),
    /// End.
    Quit,
}

/// A question that waits for yes or no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is to be revoked, as in `mapping 17`.
    pub what: String,
    /// Mappings.
    pub mappings: Vec<u64>,
}

/// All that is shown.
#[derive(Debug, Default)]
pub struct State {
    /// The mount as it was at the last look.
    pub picture: Picture,
    /// Its mappings.
    pub table: Table,
    /// What a row stands for.
    pub grouping: Grouping,
    /// How rows are sorted.
    pub sorting: Sorting,
    /// Name of the selected row.
    pub selected: Option<String>,
    /// New looks are not shown.
    pub paused: bool,
    /// The help is shown.
    pub help: bool,
    /// What was asked.
    pub question: Option<Question>,
    /// How the last request ended.
    pub status: String,
    /// Why the mount does not answer; what is shown is old.
    pub lost: Option<String>,
    last: Option<Sample>,
}

impl State {
    /// What keys mean now.
    pub fn mode(&self) -> Mode {
        match (&self.question, self.help) {
            (Some(_), _) => Mode::Asking,
            (None, true) => Mode::Help,
            (None, false) => Mode::Browsing,
        }
    }

    /// A new look at the mount, or why there is none.
    pub fn looked(&mut self, look: Result<Sample, String>) {
        let sample = match look {
            Ok(sample) => sample,
            Err(why) => {
                self.lost = Some(why);
                return;
            }
        };
        self.lost = None;
        if self.paused {
            return;
        }
        self.picture = Picture::new(self.last.as_ref(), &sample);
        self.last = Some(sample);
        self.arrange();
    }

    /// Nothing has come from the mount for this long.
    pub fn silent(&mut self, time: Duration) {
        if time >= SILENCE {
            self.lost = Some(format!("no answer for {} s", time.as_secs()));
        }
    }

    /// How a request ended.
    pub fn answered(&mut self, status: String) {
        self.status = status;
    }

    /// Does what a key asks for.
    pub fn act(&mut self, action: Action) -> Outcome {
        match action {
            Action::Quit => return Outcome::Quit,
            Action::Select(down) => self.select(down),
            Action::NextColumn => {
                self.sorting.column = (self.sorting.column + 1) % titles(self.grouping).len();
                self.arrange();
            }
            Action::Reverse => {
                self.sorting.reverse = !self.sorting.reverse;
                self.arrange();
            }
            Action::Pause => self.paused = !self.paused,
            Action::AskRevoke => self.ask(),
            Action::Confirm => return self.confirm(),
            Action::Dismiss => {
                self.question = None;
                self.help = false;
            }
            Action::ByProcess => self.group(Grouping::Process),
            Action::ByImporter => self.group(Grouping::Importer),
            Action::Help => self.help = true,
        }
        Outcome::Continue
    }

    /// Number of the selected row.
    pub fn selected_row(&self) -> Option<usize> {
        self.table.position(self.selected.as_deref()?)
    }

    fn group(&mut self, grouping: Grouping) {
        self.grouping = if self.grouping == grouping { Grouping::Mapping } else { grouping };
        self.sorting = Sorting::default();
        self.selected = None;
        self.arrange();
    }

    fn select(&mut self, down: isize) {
        let Some(last) = self.table.rows.len().checked_sub(1) else { return };
        // The first one down from nowhere is the first row.
        let row = match self.selected_row() {
            Some(row) => row.saturating_add_signed(down),
            None => 0usize.saturating_add_signed(down.saturating_sub(1)),
        };
        let row = row.min(last);
        self.selected = Some(self.table.rows[row].name.clone());
    }

    fn ask(&mut self) {
        match self.selected_row() {
            Some(row) => {
                let row = &self.table.rows[row];
                self.question = Some(Question { what: row.name.clone(), mappings: row.mappings.clone() });
            }
            None => self.status = "nothing is selected (arrows or j and k select)".to_owned(),
        }
    }

    fn confirm(&mut self) -> Outcome {
        match self.question.take() {
            Some(question) => {
                self.status = format!("revoking {} ...", question.what);
                Outcome::Send(Order::Revoke(question.mappings))
            }
            None => Outcome::Continue,
        }
    }

    /// Makes the table anew. Where the selected row has gone, the one in its place is selected.
    fn arrange(&mut self) {
        let place = self.selected_row();
        self.table = Table::new(&self.picture.mappings, self.grouping, self.sorting);
        if self.selected.is_some() && self.selected_row().is_none() {
            let last = self.table.rows.len().checked_sub(1);
            let next = last.and_then(|last| place.map(|place| place.min(last)));
            self.selected = next.map(|row| self.table.rows[row].name.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::scenes;

    fn state(mappings: &[u64]) -> State {
        let mut state = State::default();
        state.looked(Ok(scenes::sample(mappings)));
        state
    }

    #[test]
    fn the_selection_stays_with_its_row() {
        let mut state = state(&[1, 2, 3]);
        assert_eq!(state.selected_row(), None);
        state.act(Action::Select(1));
        assert_eq!(state.selected.as_deref(), Some("mapping 1"));
        state.act(Action::Select(1));
        assert_eq!(state.selected.as_deref(), Some("mapping 2"));
        state.act(Action::Reverse);
        state.looked(Ok(scenes::sample(&[2, 3, 4, 5])));
        assert_eq!((state.selected.as_deref(), state.selected_row()), (Some("mapping 2"), Some(3)));
        // When it goes, what comes in its place is selected, as far as there is anything.
        state.looked(Ok(scenes::sample(&[3, 4, 5])));
        assert_eq!(state.selected.as_deref(), Some("mapping 3"));
        state.looked(Ok(scenes::sample(&[])));
        assert_eq!(state.selected, None);
        for far in [isize::MAX, isize::MIN, 1] {
            state.act(Action::Select(far));
        }
    }

    #[test]
    fn nothing_is_revoked_without_a_yes() {
        let mut state = state(&[1, 2]);
        assert_eq!(state.act(Action::AskRevoke), Outcome::Continue);
        assert!(state.question.is_none() && state.status.contains("nothing is selected"));
        state.act(Action::Select(isize::MAX));
        state.act(Action::AskRevoke);
        assert_eq!(state.mode(), Mode::Asking);
        assert_eq!(state.act(Action::Dismiss), Outcome::Continue);
        assert_eq!((state.mode(), state.act(Action::Confirm)), (Mode::Browsing, Outcome::Continue));
        state.act(Action::AskRevoke);
        // What was asked about is revoked, whatever has come meanwhile.
        state.looked(Ok(scenes::sample(&[7])));
        assert_eq!(state.act(Action::Confirm), Outcome::Send(Order::Revoke(vec![2])));
    }

    #[test]
    fn a_group_is_revoked_together() {
        let mut state = state(&[1, 2, 3]);
        state.act(Action::ByImporter);
        state.act(Action::Select(1));
        state.act(Action::AskRevoke);
        assert_eq!(state.act(Action::Confirm), Outcome::Send(Order::Revoke(vec![1, 2, 3])));
        state.act(Action::ByImporter);
        assert_eq!(state.grouping, Grouping::Mapping);
    }

    #[test]
    fn a_pause_keeps_what_is_shown_and_a_lost_mount_too() {
        let mut state = state(&[1]);
        state.act(Action::Pause);
        state.looked(Ok(scenes::sample(&[1, 2])));
        assert_eq!(state.table.rows.len(), 1);
        state.act(Action::Pause);
        state.looked(Err("the server has gone".to_owned()));
        assert_eq!((state.table.rows.len(), state.lost.as_deref()), (1, Some("the server has gone")));
        state.looked(Ok(scenes::sample(&[1, 2])));
        assert_eq!((state.table.rows.len(), state.lost.as_deref()), (2, None));
        state.silent(SILENCE - Duration::from_millis(1));
        assert_eq!(state.lost, None);
        state.silent(SILENCE);
        assert_eq!(state.lost.as_deref(), Some("no answer for 3 s"));
    }

    #[test]
    fn every_column_can_be_sorted_by() {
        let mut state = state(&[3, 1, 2]);
        for (grouping, action) in [(Grouping::Mapping, None), (Grouping::Process, Some(Action::ByProcess))] {
            action.into_iter().for_each(|action| drop(state.act(action)));
            let columns = titles(grouping).len();
            for column in 1..=columns {
                state.act(Action::NextColumn);
                assert_eq!(state.sorting.column, column % columns);
            }
        }
    }
}
