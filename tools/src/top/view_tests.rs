//! Frames of known states, compared with `snapshots/`. After a change: `PEERFS_UPDATE_SNAPSHOTS=1 cargo test -p peerfs top::`,
//! then look at what git shows.

use std::path::Path;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Modifier;

use super::input::Action;
use super::state::State;
use super::{scenes, text_of, view};

fn frame(state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a backend in memory");
    terminal.draw(|frame| view::draw(state, frame.area(), frame.buffer_mut())).expect("memory");
    text_of(terminal.backend().buffer())
}

fn assert_snapshot(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/top/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("PEERFS_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, found).expect("the source is writable");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{name}: found\n{found}\nbut expected\n{expected}");
}

fn busy() -> State {
    let mut state = State::default();
    scenes::busy().into_iter().for_each(|sample| state.looked(Ok(sample)));
    state.act(Action::Select(1));
    state
}

fn mapped(count: u64) -> State {
    let mut state = State::default();
    state.looked(Ok(scenes::sample(&(1..=count).collect::<Vec<_>>())));
    state
}

#[test]
fn a_busy_mount() {
    assert_snapshot("busy-80x24", &frame(&busy(), 80, 24));
    assert_snapshot("busy-120x40", &frame(&busy(), 120, 40));
}

#[test]
fn the_selected_row_and_no_other_is_reversed() {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a backend in memory");
    let mut state = busy();
    state.act(Action::Select(1));
    terminal.draw(|frame| view::draw(&state, frame.area(), frame.buffer_mut())).expect("memory");
    let buffer = terminal.backend().buffer();
    let reversed = |row: &u16| buffer[(3, *row)].modifier.contains(Modifier::REVERSED);
    let rows: Vec<u16> = (1..24).filter(reversed).collect();
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    let text: String = (0..80).map(|column| buffer[(column, *row)].symbol()).collect();
    assert_eq!(text.split_whitespace().next(), state.selected.as_deref().and_then(|name| name.strip_prefix("mapping ")));
}

#[test]
fn nothing_mapped() {
    assert_snapshot("nothing-80x24", &frame(&mapped(0), 80, 24));
    assert_snapshot("nothing-120x40", &frame(&mapped(0), 120, 40));
}

#[test]
fn a_thousand_mappings_and_the_selection_far_down() {
    let mut state = mapped(1000);
    assert_snapshot("thousand-80x24", &frame(&state, 80, 24));
    state.act(Action::Select(isize::MAX));
    state.act(Action::Select(-500));
    assert_snapshot("thousand-selected-120x40", &frame(&state, 120, 40));
    assert!(frame(&state, 120, 40).contains(" 500 "));
}

#[test]
fn groups_questions_help_and_a_lost_mount() {
    let mut state = busy();
    state.act(Action::ByProcess);
    state.act(Action::Select(1));
    state.act(Action::AskRevoke);
    assert_snapshot("question-80x24", &frame(&state, 80, 24));
    state.act(Action::Dismiss);
    state.act(Action::Help);
    assert_snapshot("help-80x24", &frame(&state, 80, 24));
    state.act(Action::Dismiss);
    state.looked(Err("the server of this mount has gone".to_owned()));
    assert_snapshot("lost-80x24", &frame(&state, 80, 24));
}

#[test]
fn the_ledger_is_the_owners() {
    let mut sample = scenes::sample(&[1]);
    sample.info["mappings"] = 12.into();
    sample.ledger = Err("/mnt/peer: only the owner of the mount may ask this".to_owned());
    let mut state = State::default();
    state.looked(Ok(sample));
    let shown = frame(&state, 120, 40);
    assert!(shown.contains("mappings are not shown: /mnt/peer: only the owner of the mount may ask this"), "{shown}");
    assert!(shown.contains("server 1234  12 mappings"), "{shown}");
}

#[test]
fn terminals_of_every_size() {
    assert_snapshot("busy-20x5", &frame(&busy(), 20, 5));
    let mut with_help = busy();
    with_help.act(Action::Help);
    for (width, height) in [(1, 1), (1, 40), (200, 1), (2, 2), (9, 3), (500, 200)] {
        for state in [&busy(), &mapped(1000), &State::default(), &with_help] {
            assert!(frame(state, width, height).lines().count() <= usize::from(height), "{width}x{height}");
        }
    }
}
