//! In the guest: takes the order from the host and runs the cases.

mod context;
mod line;
pub mod tree;

pub use context::{A, B, Beside, Controller, Guest, PORT_A, PORT_B, PORT_SLOW, set, text, until, until_within};

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use super::cases::{self, Case};
use super::channel::{Order, Report};
use line::Line;

/// `length` bytes of a seed: what a case leaves where the host looks ([`Report::Holds`]).
pub fn contents(seed: u64, length: usize) -> Vec<u8> {
    let mut contents = vec![0; length];
    crate::Random::new(seed).fill(&mut contents);
    contents
}

/// Everything of one boot.
///
/// # Errors
/// When the host cannot be talked to; what cases find goes to the host.
pub fn run() -> Result<()> {
    let mut line = Line::open("/dev/ttyS1").context("the line to the host")?;
    line.say(&Report::Hello)?;
    let order = line.order()?;
    for name in &order.cases {
        line.say(&Report::Begin { case: name.clone() })?;
        let start = Instant::now();
        let failure = perform(&mut line, &order, name).err().map(|error| format!("{error:#}"));
        let milliseconds = start.elapsed().as_millis() as u64;
        line.say(&Report::End { case: name.clone(), failure, milliseconds })?;
    }
    line.say(&Report::Bye)
}

fn perform(line: &mut Line, order: &Order, name: &str) -> Result<()> {
    let case: &Case = cases::named(name)?;
    let step = case.step(order.boot).with_context(|| format!("{name} has nothing to do in boot {}", order.boot))?;
    let mut guest = Guest::new(order, line);
    // One case's mistake must not take the others with it.
    let outcome = catch_unwind(AssertUnwindSafe(|| step(&mut guest)));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(anyhow!("panicked: {}", text.unwrap_or_default()))
    });
    let outcome = outcome.and(guest.tidy());
    outcome.with_context(|| format!("the server's log ends with {:?}", last_lines("/tmp/server.log")))
}

fn last_lines(path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(8)..].to_vec()
}
