//! `peerfs generate`: manual pages and completions, for packages and for who installs with cargo.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};

use crate::args::{Cli, GenerateCommand};
use crate::{manual, output};

pub fn run(command: GenerateCommand) -> Result<ExitCode> {
    match command {
        GenerateCommand::Man { directory } => write_pages(&directory)?,
        GenerateCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut for_people(), "peerfs", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Without the commands that only the program itself starts: completions would offer them.
fn for_people() -> Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("peerfs").version(env!("CARGO_PKG_VERSION")).subcommands(shown)
}

fn write_pages(directory: &Path) -> Result<()> {
    for page in manual::pages()? {
        let path = directory.join(&page.file_name);
        fs::write(&path, page.text).with_context(|| format!("generate man: write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_completed_is_for_people() {
        let names: Vec<String> = for_people().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        assert!(names.iter().any(|name| name == "mount") && !names.iter().any(|name| name == "guardian"), "{names:?}");
    }
}
