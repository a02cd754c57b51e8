//! The coherence stress: programs read and write a few files in every way there is, with device mappings among
//! them, and every value read must be one that some legal order of the writes explains.
//!
//! A run is a row of episodes, each on a mount of its own; an episode is a row of rounds. In a round all actors work
//! and note what they did and when; then all is quiet, all ways of reading must agree, and the notes are checked.

mod actor;
mod change;
mod checker;
mod cpu;
mod device;
mod note;
mod plan;
mod round;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::Random;

pub use actor::work;
use round::{Episode, Totals};

/// Length of a round: short, so that notes stay small.
const ROUND: Duration = Duration::from_millis(1500);
const ROUNDS_PER_EPISODE: u64 = 4;

/// Runs for about `seconds` and prints what was done. The seed chooses what actors do and how the mounts are made;
/// how they interleave is up to the machine.
///
/// # Errors
/// When a value was read that no legal order explains (with the history of its place), when ways of reading disagree
/// while nothing happens, when nothing went directly, or when a call fails.
pub fn run(seed: u64, seconds: u64) -> Result<()> {
    let start = Instant::now();
    let mut totals = Totals::default();
    for number in 0.. {
        let own = seed.wrapping_add(number);
        let played = Episode::new(&mut Random::new(own)).and_then(|episode| episode.play(ROUNDS_PER_EPISODE, &mut totals));
        played.with_context(|| format!("episode {number} of seed {seed} (alone: seed {own})"))?;
        if start.elapsed().as_secs() >= seconds {
            break;
        }
    }
    println!("{totals}");
    ensure!(totals.direct_share() > 0.0, "no device access went directly, so nothing was tested");
    Ok(())
}
