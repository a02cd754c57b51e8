//! `peerfs top`: what a mount does, as it does it.
//!
//! One direction: [`watcher`] asks the mount, [`model`] makes a picture of two answers, [`state`] holds it with what was chosen,
//! [`view`] draws that. [`input`] says what keys mean. Of these only the watcher and [`terminal`] touch the world.

mod input;
mod model;
mod sample;
#[cfg(test)]
mod scenes;
mod state;
mod table;
mod terminal;
mod view;
#[cfg(test)]
mod view_tests;
mod watcher;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event as TerminalEvent};
use ratatui::layout::Rect;

use crate::args::TopArgs;
use crate::failure::Usage;
use crate::output;
use sample::Sample;
use state::{Outcome, State};
use terminal::{Screen, Signals};
use watcher::News;

/// Lines around the mappings in the text of `--once`, at most.
const ONCE_LINES: usize = 32;
/// Most lines of that text. `peerfs mappings` lists more.
const ONCE_LINES_MAX: usize = 1000;
/// Its columns, at least; a terminal may have more.
const ONCE_COLUMNS: usize = 120;

pub fn run(args: TopArgs) -> Result<ExitCode> {
    let interval = Duration::try_from_secs_f64(args.interval).ok().filter(|interval| *interval >= SHORTEST);
    let Some(interval) = interval else {
        return Err(Usage(format!("--interval {}: at least {} seconds", args.interval, SHORTEST.as_secs_f64())).into());
    };
    // An answer now, rather than a screen that shows nothing.
    let first = Sample::take(&args.mountpoint, Instant::now())?;
    if args.once {
        output::print(&once(first))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        bail!("top {}: stdin and stdout are not a terminal; --once prints one screen", args.mountpoint.display());
    }
    live(&args, interval)
}

/// How long to wait for something to happen before a look at the clock.
const PATIENCE: Duration = Duration::from_secs(1);
/// Shortest time between two looks.
const SHORTEST: Duration = Duration::from_millis(50);

/// One screen as text, with all mappings.
fn once(sample: Sample) -> String {
    let mut state = State::default();
    state.looked(Ok(sample));
    let lines = (state.table.rows.len() + ONCE_LINES).min(ONCE_LINES_MAX);
    let width = output::width().max(ONCE_COLUMNS);
    let area = Rect::new(0, 0, u16::try_from(width).unwrap_or(u16::MAX), u16::try_from(lines).unwrap_or(u16::MAX));
    let mut buffer = Buffer::empty(area);
    view::draw_report(&state, area, &mut buffer);
    text_of(&buffer)
}

/// What a buffer shows, without colours, blank lines at its end or blanks at the ends of lines.
fn text_of(buffer: &Buffer) -> String {
    let symbols = buffer.content().iter().map(|cell| cell.symbol()).collect::<Vec<_>>();
    let lines = symbols.chunks(usize::from(buffer.area.width).max(1)).map(|line| line.concat().trim_end().to_owned());
    let mut text = lines.collect::<Vec<_>>().join("\n").trim_end().to_owned();
    text.push('\n');
    text
}

/// What happens to a view.
enum Event {
    Terminal(TerminalEvent),
    /// Nothing can be read from the terminal any more.
    TerminalGone,
    News(News),
    Signal(Signal),
}

fn live(args: &TopArgs, interval: Duration) -> Result<ExitCode> {
    let signals = Signals::block()?;
    let (tell, events) = mpsc::channel();
    let (orders, taken) = mpsc::channel();
    start("top-signals", tell.clone(), move |tell| {
        if let Ok(signal) = signals.wait() {
            let _ = tell.send(Event::Signal(signal));
        }
    })?;
    let mut screen = Screen::take()?;
    start("top-keys", tell.clone(), read_keys)?;
    let mountpoint = args.mountpoint.clone();
    start("top-mount", tell, move |tell| {
        watcher::watch(&mountpoint, interval, &taken, |news| tell.send(Event::News(news)).is_ok());
    })?;
    let end = follow(&mut screen, interval, &events, &orders)?;
    drop(screen);
    match end {
        Some(signal) => terminal::die_of(signal).map(|()| ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// A thread that is not waited for: the end of the program ends it.
fn start(name: &str, tell: Sender<Event>, work: impl FnOnce(Sender<Event>) + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(|| work(tell)).map(drop).context("cannot start a thread")
}

fn read_keys(tell: Sender<Event>) {
    while let Ok(event) = event::read() {
        if tell.send(Event::Terminal(event)).is_err() {
            return;
        }
    }
    let _ = tell.send(Event::TerminalGone);
}

/// Shows what happens until the view is ended; answers the signal that did.
fn follow(
    screen: &mut Screen,
    interval: Duration,
    events: &Receiver<Event>,
    orders: &Sender<state::Order>,
) -> Result<Option<Signal>> {
    let mut state = State::default();
    let mut heard = Instant::now();
    loop {
        state.silent(heard.elapsed().saturating_sub(interval));
        screen.draw(|frame| view::draw(&state, frame.area(), frame.buffer_mut()))?;
        let first = match events.recv_timeout(PATIENCE) {
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        };
        // All that has come is taken in before the next frame.
        for event in std::iter::once(first).chain(events.try_iter()) {
            let outcome = match event {
                Event::Terminal(TerminalEvent::Key(key)) => {
                    input::action(key, state.mode()).map_or(Outcome::Continue, |action| state.act(action))
                }
                // The next frame has the new size.
                Event::Terminal(_) => Outcome::Continue,
                Event::News(News::Look(look)) => {
                    heard = Instant::now();
                    state.looked(*look);
                    Outcome::Continue
                }
                Event::News(News::Done(said)) => {
                    state.answered(said);
                    Outcome::Continue
                }
                Event::TerminalGone => Outcome::Quit,
                Event::Signal(signal) => return Ok(Some(signal)),
            };
            match outcome {
                Outcome::Continue => {}
                Outcome::Send(order) => orders.send(order).context("the thread that talks to the mount has ended")?,
                Outcome::Quit => return Ok(None),
            }
        }
    }
}
