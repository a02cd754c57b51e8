//! `peerfs conformance`: the rules of mapping, tried on scratch volumes.

use std::process::ExitCode;

use anyhow::Result;
use peerfs_conformance::kit::tidy_on_signal;
use peerfs_conformance::{Backend, Case, Line, Report, all_cases, puppet, run as run_cases, software_backends};
use serde_json::json;

use crate::args::{ConformanceArgs, ConformanceClientArgs};
use crate::failure::Usage;
use crate::output;

pub fn run(args: ConformanceArgs) -> Result<ExitCode> {
    let cases = chosen_cases(args.case.as_deref())?;
    let backends = chosen_backends(args.backend.as_deref())?;
    if args.list {
        return list(&cases, args.json);
    }
    tidy_on_signal()?;
    let mut report = Report::default();
    if !args.json {
        output::print(&format!("seed {} (replay with --seed {})\n", args.seed, args.seed))?;
    }
    for backend in &backends {
        let show = |line: &Line| {
            if !args.json {
                // A reader that has gone does not end the run: its exit code still counts.
                let _ = output::print(&format!("{line}\n"));
            }
        };
        report.lines.extend(run_cases(&**backend, &cases, args.seed, show).lines);
    }
    if args.json {
        let mut document = report.json();
        document["seed"] = json!(args.seed);
        output::print_json(&document)?;
    } else {
        output::print(&format!("{}\n", report.summary()))?;
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub fn client(args: ConformanceClientArgs) -> Result<ExitCode> {
    puppet::run(&args.words)?;
    Ok(ExitCode::SUCCESS)
}

fn list(cases: &[Case], json: bool) -> Result<ExitCode> {
    if json {
        let all: Vec<_> = cases.iter().map(|case| json!({ "case": case.name, "rule": case.rule })).collect();
        output::print_json(&json!(all))?;
    } else {
        let lines: String = cases.iter().map(|case| format!("{}: {}\n", case.name, case.rule)).collect();
        output::print(&lines)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn chosen_cases(part: Option<&str>) -> Result<Vec<Case>> {
    let mut cases = all_cases();
    if let Some(part) = part {
        let exact = cases.iter().any(|case| case.name == part);
        cases.retain(|case| if exact { case.name == part } else { case.name.contains(part) });
        if cases.is_empty() {
            return Err(Usage(format!("--case {part}: no case has this name; --list shows them")).into());
        }
    }
    Ok(cases)
}

fn chosen_backends(name: Option<&str>) -> Result<Vec<Box<dyn Backend>>> {
    let mut backends = software_backends();
    if let Some(name) = name {
        backends.retain(|backend| backend.name() == name);
        if backends.is_empty() {
            return Err(Usage(format!("--backend {name}: not built into this version; give image or mem")).into());
        }
    }
    Ok(backends)
}
