//! Console blocks of a Markdown document: commands after `$ `, and what they print.

use anyhow::{Result, ensure};

/// A command that says this after it is expected to fail.
const FAILS: &str = "# fails";

/// A command of a block.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// Where in the document, from 1.
    pub line: usize,
    /// What a person types.
    pub command: String,
    /// Whether its exit status is another than 0.
    pub fails: bool,
    /// What it prints, on both streams; see [`super::pattern`].
    pub output: Vec<String>,
}

/// The steps of all blocks ```` ```console ````, in order.
pub fn steps(document: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (number, line) in document.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        match (inside, line.strip_prefix("$ ")) {
            (false, _) => {
                inside = line == "```console";
                continue;
            }
            (true, _) if line == "```" => inside = false,
            (true, Some(command)) => {
                steps.push(Step { line: number, command: command.into(), fails: command.contains(FAILS), output: Vec::new() });
            }
            (true, None) => match steps.last_mut() {
                Some(step) => step.output.push(line.into()),
                None => ensure!(false, "line {number}: output of no command"),
            },
        }
    }
    ensure!(!inside, "a console block does not end");
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_commands_and_their_output() -> Result<()> {
        let document = "text\n$ no command\n```console\n$ echo a\na\n$ false # fails\n```\n```\n$ neither\n```\n";
        let steps = steps(document)?;
        assert_eq!(steps.len(), 2);
        assert_eq!(
            (steps[0].line, &*steps[0].command, steps[0].fails, &steps[0].output[..]),
            (4, "echo a", false, &["a".to_owned()][..])
        );
        assert_eq!((steps[1].line, steps[1].fails, steps[1].output.len()), (6, true, 0));
        Ok(())
    }

    #[test]
    fn a_block_that_is_wrong_is_refused() {
        assert!(steps("```console\na\n```\n").is_err());
        assert!(steps("```console\n$ a\n").is_err());
    }
}
