//! `peerfs`: the command line.

mod args;
mod commands;
mod config;
mod controller;
mod demo;
mod explain;
mod failure;
mod mount_options;
mod output;
mod ranges;
mod top;
mod volume_check;

use std::process::ExitCode;

use args::{Cli, Command, Parsed};

fn main() -> ExitCode {
    report_panics_in_one_line();
    trace_to_stderr();
    match args::parse(std::env::args_os()) {
        Parsed::Run(cli) => failure::exit_code(run(*cli)),
        Parsed::Print(text) => failure::exit_code(output::print(&text).map(|()| ExitCode::SUCCESS)),
        Parsed::Usage(line) => failure::usage(&line),
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Mkfs(args) => commands::mkfs::run(args),
        Command::Mount(args) => commands::mount::run(args),
        Command::Umount(args) => commands::umount::run(args),
        Command::Info(args) => commands::info::run(args),
        Command::Query(args) => commands::query::run(args),
        Command::Map(args) => commands::map::run(args),
        Command::Mappings(args) => commands::mappings::run(args),
        Command::Top(args) => top::run(args),
        Command::Devmem(args) => commands::devmem::run(args),
        Command::Revoke(args) => commands::revoke::run(args),
        Command::Reflink(args) => commands::reflink::run(args),
        Command::Copy(args) => commands::copy::run(args),
        Command::Importers(args) => commands::importers::run(args),
        Command::Topology(args) => commands::topology::run(args),
        Command::Nvme(command) => commands::nvme::run(command),
        Command::Fsck(args) => commands::fsck::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Conformance(args) => commands::conformance::run(args),
        Command::ConformanceClient(args) => commands::conformance::client(args),
        Command::Guardian => commands::guardian::run(),
        Command::CheckMetadata(args) => commands::check_metadata::run(args),
        Command::DemoHung(args) => demo::hung::run(args),
    }
}

/// Diagnostics follow RUST_LOG and stay out of the way of results.
fn trace_to_stderr() {
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// The contract promises one line on stderr, whatever goes wrong.
fn report_panics_in_one_line() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        let text: Vec<&str> = text.split_whitespace().collect();
        eprintln!("peerfs: internal error: {}; please report it", text.join(" "));
    }));
}
