//! One importer in a process of its own that adds 1 to a word of a file, again and again, by atomic operations.
//! Prints how many additions took place and how often it had to map again.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use peerfs_client::{Error, File, ImporterSpec, MapFlags, Session};

/// Adds 1 to the u64 at an offset of a file.
#[derive(Parser)]
struct Cli {
    /// A directory of the mount.
    directory: PathBuf,
    /// The file.
    file: PathBuf,
    /// Offset of the word, bytes.
    offset: u64,
    /// Additions.
    count: u64,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let file = File::open_with(&cli.file, OpenOptions::new().read(true).write(true))?;
    let session = Session::open(&cli.directory, ImporterSpec::cpu())?;
    let (mut done, mut remaps) = (0, 0);
    while done < cli.count {
        let mapping = session.map(&file, .., MapFlags::WRITE | MapFlags::ATOMIC)?;
        remaps += 1;
        let end = loop {
            match mapping.fetch_add(cli.offset, 1_u64) {
                Ok(_) => done += 1,
                Err(error) => break Some(error),
            }
            if done == cli.count {
                break None;
            }
        };
        match end {
            None | Some(Error::Revoked { .. }) => {}
            // Contested: the server says when it is worth asking again.
            Some(Error::AtomicUnsupported { reason: peerfs_client::Reason::Busy, .. }) => {
                thread::sleep(mapping.retry_after().unwrap_or(Duration::from_millis(1)));
            }
            Some(error) => return Err(error.into()),
        }
    }
    println!("{done} {remaps}");
    Ok(())
}
