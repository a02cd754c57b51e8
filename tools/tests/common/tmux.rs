//! A terminal of known size: tmux, with a server of its own.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a screen may take to become what is awaited.
const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal in which a shell runs one line. It ends with this value.
pub struct Tmux(String);

impl Tmux {
    /// Runs `line` in a terminal of this size. When the line has ended, the terminal stays.
    pub fn run(line: &str, columns: u16, rows: u16) -> Tmux {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tmux = Tmux(format!("peerfs-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let held = format!("{line}; exec cat");
        tmux.call(&["new-session", "-d", "-x", &columns, "-y", &rows, "sh", "-c", &held]);
        tmux.call(&["set-option", "-g", "window-size", "manual"]);
        tmux
    }

    fn call(&self, arguments: &[&str]) -> String {
        let ran = Command::new("tmux")
            .args(["-u", "-f", "/dev/null", "-L", &self.0])
            .args(arguments)
            .env_remove("TMUX")
            .env_remove("NO_COLOR")
            .output()
            .expect("tmux runs (Debian package tmux)");
        let Output { status, stdout, stderr } = ran;
        assert!(status.success(), "tmux {arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8_lossy(&stdout).into_owned()
    }

    /// Presses keys, named as tmux names them.
    pub fn press(&self, keys: &[&str]) {
        self.call(&[&["send-keys"], keys].concat());
    }

    /// The screen as text.
    pub fn screen(&self) -> String {
        self.call(&["capture-pane", "-p"])
    }

    /// The screen as text with the commands for colours.
    pub fn coloured(&self) -> String {
        self.call(&["capture-pane", "-p", "-e"])
    }

    /// The program has taken the alternate screen.
    pub fn is_alternate(&self) -> bool {
        self.call(&["display-message", "-p", "#{alternate_on}"]).trim() == "1"
    }

    /// Gives the terminal another size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.call(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// Waits until the screen is such; answers it.
    pub fn until(&self, what: &str, is_such: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if is_such(&screen) {
                return screen;
            }
            assert!(start.elapsed() < PATIENCE, "no screen with {what}:\n{screen}");
        }
    }

    /// Waits until the screen has this text; answers the screen.
    pub fn shows(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text))
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ended = Command::new("tmux").args(["-L", &self.0, "kill-server"]).env_remove("TMUX").output();
    }
}
