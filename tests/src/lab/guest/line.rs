//! The guest's end of the serial line.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};

use anyhow::{Context, Result};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};

use crate::lab::channel::{Order, Report, line};

/// An open line.
pub struct Line {
    writer: File,
    reader: BufReader<File>,
}

impl Line {
    /// Opens the port; nothing of what goes over it is changed or echoed.
    pub fn open(port: &str) -> Result<Line> {
        let file = OpenOptions::new().read(true).write(true).open(port).with_context(|| port.to_owned())?;
        let mut settings = tcgetattr(&file)?;
        cfmakeraw(&mut settings);
        tcsetattr(&file, SetArg::TCSANOW, &settings)?;
        Ok(Line { reader: BufReader::new(file.try_clone()?), writer: file })
    }

    /// Tells the host.
    pub fn say(&mut self, report: &Report) -> Result<()> {
        self.writer.write_all(format!("{}\n", line(report)).as_bytes()).context("the line to the host")?;
        // What the guest does next may be its last, and must not be ahead of what the host knows.
        tcdrain(&self.writer).context("the line to the host")
    }

    /// Waits for what to do.
    pub fn order(&mut self) -> Result<Order> {
        let mut text = String::new();
        self.reader.read_line(&mut text)?;
        serde_json::from_str(&text).with_context(|| format!("the host says {text:?}"))
    }
}
