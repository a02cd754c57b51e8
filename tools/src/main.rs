//! `peerfs`: the command line.

mod args;
mod busy;
mod commands;
mod config;
mod controller;
mod demo;
mod explain;
mod failure;
mod log;
mod manual;
mod mount_helper;
mod mount_options;
mod output;
mod ranges;
mod serve;
mod top;
mod volume_check;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Cli, Command, Parsed};

fn main() -> ExitCode {
    report_panics_in_one_line();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if mount_helper::is_called(&arguments) {
        return mount_helper::run(arguments);
    }
    match args::parse(arguments.into_iter()) {
        Parsed::Run(cli) => {
            log::to_stderr(&cli.log);
            failure::exit_code(run(*cli), failure::COMMAND)
        }
        Parsed::Print(text) => failure::exit_code(output::print(&text).map(|()| ExitCode::SUCCESS), failure::COMMAND),
        Parsed::Usage(line) => failure::usage(&line, failure::COMMAND),
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Mkfs(args) => commands::mkfs::run(args),
        Command::Mount(args) => commands::mount::run(args, &cli.log),
        Command::Umount(args) => commands::umount::run(args),
        Command::Info(args) => commands::info::run(args),
        Command::Query(args) => commands::query::run(args),
        Command::Map(args) => commands::map::run(args),
        Command::Mappings(args) => commands::mappings::run(args),
        Command::Top(args) => top::run(args),
        Command::Devmem(args) => commands::devmem::run(args),
        Command::Serve(args) => serve::run(&args),
        Command::Revoke(args) => commands::revoke::run(args),
        Command::Reflink(args) => commands::reflink::run(args),
        Command::Trim(args) => commands::trim::run(args),
        Command::Copy(args) => commands::copy::run(args),
        Command::Bench(args) => commands::bench::run(args),
        Command::Importers(args) => commands::importers::run(args),
        Command::Topology(args) => commands::topology::run(args),
        Command::Nvme(command) => commands::nvme::run(command),
        Command::Fsck(args) => commands::fsck::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Conformance(args) => commands::conformance::run(args),
        Command::ConformanceClient(args) => commands::conformance::client(args),
        Command::Generate(command) => commands::generate::run(command),
        Command::Guardian => commands::guardian::run(),
        Command::CheckMetadata(args) => commands::check_metadata::run(args),
        Command::DemoHung(args) => demo::hung::run(args),
    }
}

/// The contract promises one line on stderr, whatever goes wrong.
fn report_panics_in_one_line() {
    std::panic::set_hook(Box::new(|info| {
        let text = info.to_string();
        let text: Vec<&str> = text.split_whitespace().collect();
        eprintln!("peerfs: internal error: {}; please report it", text.join(" "));
    }));
}
