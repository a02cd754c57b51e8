//! Input fuzzing inside one process: the real decoding of ioctls and of grant socket messages, on a volume in memory,
//! with no kernel in between. Inputs are mutations of valid ones and plain noise; a seed replays a run.
//!
//! [`nvme`] does the same to the NVMe driver: a controller that lies to it.
//!
//! A panic ends the run, a call that takes too long fails it, and after the sessions have closed nothing may be mapped.

mod ioctls;
mod nvme;
mod socket;
mod stage;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

pub use nvme::nvme;

use crate::Random;
use stage::Stage;

/// No call waits for anything but a deadline of this length.
const DEADLINE: Duration = Duration::from_millis(5);
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Calls between two moments at which everything is closed and looked at.
const CALLS_PER_LIFE: u64 = 2000;

/// What a run did.
#[derive(Debug, Default)]
struct Tally {
    calls: u64,
    answers: BTreeMap<i32, u64>,
}

impl Tally {
    fn count(&mut self, errno: i32) {
        self.calls += 1;
        *self.answers.entry(errno).or_default() += 1;
    }

    fn print(&self, what: &str) {
        let name = |code: i32| if code == 0 { "success".to_owned() } else { format!("{:?}", nix::errno::Errno::from_raw(code)) };
        let answers: Vec<String> = self.answers.iter().map(|(code, times)| format!("{}: {times}", name(*code))).collect();
        println!("{what}: {} calls, {}", self.calls, answers.join(", "));
    }
}

/// Sends garbage and nearly valid ioctls for so many seconds.
///
/// # Errors
/// When a call answers EIO or takes too long, when nothing succeeds, or when something stays mapped.
pub fn ioctls(seed: u64, seconds: u64) -> Result<()> {
    fuzz("ioctls", seed, seconds, |fuzzer, tally| fuzzer.one(tally))
}

/// Sends garbage and nearly valid messages to the grant socket for so many seconds.
///
/// # Errors
/// As [`ioctls`]; also when a descriptor is handed out that was not granted.
pub fn socket(seed: u64, seconds: u64) -> Result<()> {
    fuzz("socket", seed, seconds, socket::one)
}

fn fuzz(what: &str, seed: u64, seconds: u64, one: impl Fn(&mut ioctls::Fuzzer<'_>, &mut Tally) -> Result<()>) -> Result<()> {
    println!("fuzzing {what}, seed {seed}");
    let (start, mut tally) = (Instant::now(), Tally::default());
    let mut random = Random::new(seed);
    let stage = Stage::new()?;
    while start.elapsed().as_secs() < seconds {
        let mut fuzzer = ioctls::Fuzzer::new(&stage, Random::new(random.bits()))?;
        for _ in 0..CALLS_PER_LIFE {
            let begin = Instant::now();
            one(&mut fuzzer, &mut tally)?;
            ensure!(begin.elapsed() < CALL_LIMIT, "one call took {:?}", begin.elapsed());
            if start.elapsed().as_secs() >= seconds {
                break;
            }
        }
        drop(fuzzer);
        stage.assert_nothing_is_left()?;
    }
    tally.print(what);
    ensure!(tally.answers.contains_key(&0), "nothing succeeded, so nothing was tested");
    Ok(())
}
