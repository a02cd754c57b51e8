//! A client process that does what it is told, line by line: rules about processes need real ones.
//!
//! A command is a line of words on its standard input, which is a socket so that descriptors can be passed too. The
//! answer is a line: `ok` and words, `errno N` when a system call fails, or `no` and why.

mod host;
mod program;
mod reuse;

use std::ffi::OsString;

use anyhow::{Context, Result, bail};

pub use host::Puppet;

/// The hidden subcommand of `peerfs` that is a puppet.
pub const SUBCOMMAND: &str = "conformance-client";

/// The subcommand.
///
/// # Errors
/// When it cannot go on; a command that fails is an answer and no error.
pub fn run(words: &[OsString]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(|word| word.to_str().context("not a word")).collect::<Result<_>>()?;
    match words[..] {
        [] => program::serve(),
        ["inherited", file, context] => program::resume(file.parse()?, context.parse()?),
        ["pid-reuse", backend, directory] => reuse::run(backend, directory.as_ref()),
        _ => bail!("not a command: {words:?}"),
    }
}
