//! Runs all commands of a document in one shell, and compares what they print.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::console::{self, Step};
use super::pattern::lines_match;
use super::shell::Shell;

/// Runs the document in a temporary directory. `programs` is where `peerfs` is. Answers the number of commands.
pub fn run(document: &str, programs: &Path) -> Result<usize> {
    let steps = console::steps(document)?;
    ensure!(!steps.is_empty(), "the document has no commands");
    let directory = tempfile::Builder::new().prefix("peerfs-tutorial-").tempdir()?;
    let outcome = run_all(&steps, directory.path(), programs);
    super::tidy(directory.path(), programs).and(outcome)?;
    Ok(steps.len())
}

fn run_all(steps: &[Step], directory: &Path, programs: &Path) -> Result<()> {
    let mut shell = Shell::start(directory, programs)?;
    steps.iter().try_for_each(|step| run_one(&mut shell, step).with_context(|| format!("line {}", step.line)))
}

fn run_one(shell: &mut Shell, step: &Step) -> Result<()> {
    let answer = shell.run(&step.command)?;
    let (printed, expected) = (answer.lines.join("\n"), step.output.join("\n"));
    ensure!((answer.status != 0) == step.fails, "`{}` ended with {}:\n{printed}", step.command, answer.status);
    ensure!(lines_match(&step.output, &answer.lines), "`{}` printed:\n{printed}\nexpected:\n{expected}", step.command);
    Ok(())
}
