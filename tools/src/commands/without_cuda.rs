//! `peerfs map --importer cuda:N` of a program that was built without it.

use std::process::ExitCode;

use anyhow::{Result, bail};
use peerfs_client::{File, ImporterSpec};

use crate::args::MapArgs;
use crate::ranges::FileRange;

pub fn run(_args: &MapArgs, importer: &ImporterSpec, _file: &File, _range: FileRange) -> Result<ExitCode> {
    bail!(
        "importer {}: this peerfs was built without CUDA; build it with: cargo build --release -p peerfs --features cuda",
        importer.name
    )
}
