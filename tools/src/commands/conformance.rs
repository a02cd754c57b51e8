//! `peerfs conformance`: the rules of mapping, tried on scratch volumes.

use std::collections::BTreeSet;
use std::process::ExitCode;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use peerfs_abi::Path;
use peerfs_blockdev::DeviceSpec;
use peerfs_blockdev::pci::Reservation;
use peerfs_conformance::kit::{at_signal, tidy_on_signal};
use peerfs_conformance::{Backend, Case, DeviceBackend, Line, Report, all_cases, puppet, run as run_cases, software_backends};
use serde_json::json;

use crate::args::{ConformanceArgs, ConformanceClientArgs};
use crate::failure::Usage;
use crate::{controller, output};

/// A server that is just ending lets go of its controller within this.
const LOCK_WAIT: Duration = Duration::from_secs(2);

pub fn run(args: ConformanceArgs) -> Result<ExitCode> {
    let cases = chosen_cases(&args.cases)?;
    let chosen = Chosen::of(&args)?;
    if args.list {
        return list(&cases, args.json);
    }
    tidy_on_signal()?;
    let (backends, _reserved) = chosen.ready(args.force)?;
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

fn chosen_cases(parts: &[String]) -> Result<Vec<Case>> {
    let mut cases = all_cases();
    let mut chosen = BTreeSet::new();
    for part in parts {
        let exact = cases.iter().any(|case| case.name == part);
        let named = cases.iter().filter(|case| if exact { case.name == part } else { case.name.contains(part.as_str()) });
        let named: Vec<&str> = named.map(|case| case.name).collect();
        if named.is_empty() {
            return Err(Usage(format!("--case {part}: no case has this name; --list shows them")).into());
        }
        chosen.extend(named);
    }
    cases.retain(|case| parts.is_empty() || chosen.contains(case.name));
    Ok(cases)
}

/// What the cases run on.
enum Chosen {
    Software(Vec<Box<dyn Backend>>),
    Device(DeviceSpec, DeviceBackend),
}

/// A controller that is given back when this is dropped, or a signal ends the run.
#[derive(Default)]
struct Reserved(Arc<Mutex<Option<Reservation>>>);

impl Reserved {
    fn new(reservation: Option<Reservation>) -> Reserved {
        let reserved = Arc::new(Mutex::new(reservation));
        let at_end = Reserved(reserved.clone());
        at_signal(move || drop(at_end));
        Reserved(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Chosen {
    fn of(args: &ConformanceArgs) -> Result<Chosen> {
        let mut software = software_backends();
        let name = args.backend.as_deref();
        software.retain(|backend| name.is_none_or(|name| backend.name() == name));
        if let Some(name) = name.filter(|_| software.is_empty()) {
            return device(name, args.cmb);
        }
        if args.cmb.is_some() || args.force {
            return Err(Usage("--cmb and --force are for a device: --backend nvme:BDF/pmr, for example".into()).into());
        }
        Ok(Chosen::Software(software))
    }

    /// Takes a controller from its driver, and makes a volume where there may be none to lose.
    fn ready(self, force: bool) -> Result<(Vec<Box<dyn Backend>>, Reserved)> {
        let (spec, backend) = match self {
            Chosen::Software(backends) => return Ok((backends, Reserved::default())),
            Chosen::Device(spec, backend) => (spec, backend),
        };
        let reserved = Reserved::new(controller::reserve(&spec, LOCK_WAIT)?);
        backend.erase(force)?;
        Ok((vec![Box::new(backend)], reserved))
    }
}

fn device(name: &str, windows: Option<u64>) -> Result<Chosen> {
    let unknown = || Usage(format!("--backend {name}: give image, mem, nvme:BDF/nsN, nvme:BDF/pmr or pmem:PATH"));
    let spec: DeviceSpec = name.parse().map_err(|_| unknown())?;
    let own = match &spec {
        DeviceSpec::Nvme(..) => Path::DirectBar,
        DeviceSpec::Pmem(..) => Path::DirectWindow,
        DeviceSpec::Image(_) | DeviceSpec::Mem(_) => return Err(unknown().into()),
    };
    if windows == Some(0) {
        return Err(Usage("--cmb 0: without any aperture no rule can be tried".into()).into());
    }
    let backend = DeviceBackend::new(&spec.to_string(), own, windows);
    Ok(Chosen::Device(spec, backend))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn chosen(words: &[&str]) -> Result<Chosen> {
        let cli = Cli::try_parse_from(["peerfs", "conformance"].iter().chain(words)).expect("good arguments");
        let Command::Conformance(args) = cli.command else { panic!("another command") };
        Chosen::of(&args)
    }

    #[test]
    fn backends() {
        assert!(matches!(chosen(&[]), Ok(Chosen::Software(all)) if all.len() == 2));
        assert!(matches!(chosen(&["--backend", "mem"]), Ok(Chosen::Software(one)) if one.len() == 1));
        for (words, name, path) in [
            (&["--backend", "nvme:01:00.0"][..], "nvme:0000:01:00.0/ns1", Path::DirectBar),
            (&["--backend", "nvme:0000:01:00.0/pmr", "--cmb", "32M"], "nvme:0000:01:00.0/pmr+cmb", Path::DirectWindow),
            (&["--backend", "pmem:/a,nodax", "--force"], "pmem:/a,nodax", Path::DirectWindow),
        ] {
            let Ok(Chosen::Device(_, backend)) = chosen(words) else { panic!("{words:?} name no device") };
            assert_eq!((backend.name(), backend.direct_path()), (name, path));
        }
        let wrong: [&[&str]; 6] = [
            &["--backend", "tape"],
            &["--backend", "image:/a"],
            &["--backend", "nvme:01:00.0/x"],
            &["--backend", "image", "--cmb", "1M"],
            &["--force"],
            &["--backend", "nvme:01:00.0/pmr", "--cmb", "0"],
        ];
        for words in wrong {
            let Err(error) = chosen(words) else { panic!("{words:?} are accepted") };
            assert!(error.is::<Usage>(), "{error}");
        }
    }

    #[test]
    fn cases_by_name_and_by_part_of_a_name() {
        let names = |parts: &[&str]| -> Vec<&str> {
            let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
            chosen_cases(&parts).expect("known").iter().map(|case| case.name).collect()
        };
        assert_eq!(names(&["reason-hole"]), ["reason-hole"]);
        assert_eq!(names(&["effects-fsync", "reason-hole"]), ["reason-hole", "effects-fsync"]);
        assert!(names(&["pin-"]).len() > 5 && names(&[]).len() == all_cases().len());
        assert!(chosen_cases(&["reason-hole".into(), "nonsense".into()]).is_err());
    }
}
