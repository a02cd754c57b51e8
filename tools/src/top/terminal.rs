//! The terminal while a view is on it, and its way back: at the end, on a panic of any thread, and on signals.

use std::io::{self, Stdout};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, raise};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};

/// Signals that end a view.
const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
/// Exit code after a panic, as without a hook.
const PANICKED: i32 = 101;

/// The terminal is ours and has to be given back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// A terminal in raw mode, on its alternate screen.
pub struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Takes the terminal that stdin and stdout are.
    pub fn take() -> Result<Screen> {
        give_back_on_panic();
        enable_raw_mode().context("cannot set the terminal up")?;
        TAKEN.store(true, Ordering::SeqCst);
        // From here on dropping it gives the terminal back.
        let screen = Terminal::new(CrosstermBackend::new(io::stdout())).map(Screen);
        let entered = execute!(io::stdout(), EnterAlternateScreen);
        if screen.is_err() || entered.is_err() {
            give_back();
        }
        entered.context("cannot set the terminal up")?;
        screen.context("cannot set the terminal up")
    }

    /// Draws a frame, as large as the terminal is now.
    pub fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> Result<()> {
        if !TAKEN.load(Ordering::SeqCst) {
            // Another thread has panicked and is about to end the program.
            return Ok(());
        }
        self.0.draw(draw).map(drop).context("cannot draw on the terminal")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// As it was before. Does nothing when it is not ours.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Nothing is left to be done where the terminal has gone.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}

/// A panic is told on the screen that was there before, and ends the program, whichever thread it is in.
fn give_back_on_panic() {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        give_back();
        tell(info);
        std::process::exit(PANICKED);
    }));
}

/// The signals that end a view, for a thread that waits for them. To be made before any other thread, which inherits that they wait.
pub struct Signals(SigSet);

impl Signals {
    /// From now on these signals wait for [`Signals::wait`].
    pub fn block() -> Result<Signals> {
        let signals: SigSet = ENDING.into_iter().collect();
        signals.thread_block().context("cannot block signals")?;
        Ok(Signals(signals))
    }

    /// Waits for one.
    pub fn wait(&self) -> Result<Signal> {
        self.0.wait().context("cannot wait for signals")
    }
}

/// Dies of a signal that had been blocked, as the program would have without a view.
pub fn die_of(signal: Signal) -> Result<()> {
    let only: SigSet = [signal].into_iter().collect();
    only.thread_unblock().context("cannot unblock a signal")?;
    raise(signal).context("cannot end")
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use nix::pty::openpty;
    use nix::sys::termios::tcgetattr;

    use super::*;

    const LEAVE: &str = "\x1b[?1049l";

    /// Run by the test below in a terminal of its own.
    #[test]
    #[ignore = "panics; a_panic_of_any_thread_gives_the_terminal_back runs it"]
    fn panicking_view() {
        let _screen = Screen::take().expect("a terminal");
        let thread = std::thread::spawn(|| panic!("on purpose"));
        thread.join().expect("the program has ended by now");
    }

    #[test]
    fn a_panic_of_any_thread_gives_the_terminal_back() {
        let terminal = openpty(None, None).expect("a terminal");
        let before = tcgetattr(&terminal.slave).expect("its state");
        let end = || Stdio::from(terminal.slave.as_fd().try_clone_to_owned().expect("a descriptor"));
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args(["--ignored", "--exact", "top::terminal::tests::panicking_view", "--nocapture"])
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .expect("a child");
        let code = child.wait().expect("it ends").code();
        let after = tcgetattr(&terminal.slave).expect("its state");
        drop(terminal.slave);
        let mut said = Vec::new();
        // EIO is how the other end of a terminal says that everybody has closed it.
        let _closed = File::from(terminal.master).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        assert_eq!(code, Some(PANICKED), "{said}");
        assert_eq!(after, before, "{said}");
        let (left, told) = (said.find(LEAVE).expect("it leaves the screen"), said.find("on purpose").expect("it says why"));
        assert!(left < told, "{said}");
    }
}
