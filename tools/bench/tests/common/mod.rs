//! Runs words of the command line.

use peerfs_bench::{Error, Plan, Progress, Report, command_line, run};

/// The plan of these words.
pub fn plan(words: &[&str]) -> Result<Plan, Error> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let request = command_line::parse(&words)?;
    Plan::new(&request.sections, request.ignore_unknown)
}

/// What running these words answers.
pub fn bench(words: &[&str]) -> Report {
    run(&plan(words).expect("good words"), &Progress::new())
}
