//! `peerfs generate`: manual pages and completions, for packages and for who installs with cargo.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, GenerateCommand};
use crate::{manual, output};

pub fn run(command: GenerateCommand) -> Result<ExitCode> {
    match command {
        GenerateCommand::Man { directory } => write_pages(&directory)?,
        GenerateCommand::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "peerfs", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write_pages(directory: &Path) -> Result<()> {
    for page in manual::pages()? {
        let path = directory.join(&page.file_name);
        fs::write(&path, page.text).with_context(|| format!("generate man: write {}", path.display()))?;
    }
    Ok(())
}
