//! `peerfs demo-hung` (hidden): an importer that ignores revocations and goes
//! on loading by address. The cut ends it with SIGBUS.

use std::hint::black_box;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use peerfs_client::{AccessGuard, File, ImporterSpec, MapFlags, Session, SessionOptions};

use crate::args::DemoHungArgs;
use crate::{output, ranges};

const PAGE_BYTES: usize = 4096;

pub fn run(args: DemoHungArgs) -> Result<ExitCode> {
    // Nobody else would end it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let file = File::open(&args.file)?;
    let options = SessionOptions { acknowledge: false };
    let session = Session::open_with(ranges::directory_of(&args.file)?, ImporterSpec::cpu(), options)?;
    let mapping = session.map(&file, .., MapFlags::empty())?;
    let direct = mapping.segments().iter().filter(|segment| segment.reason.is_none());
    let guards: Vec<AccessGuard> =
        direct.map(|segment| mapping.access(segment.file_offset..segment.end())).collect::<Result<_, _>>()?;
    ensure!(!guards.is_empty(), "{}: nothing maps directly", args.file.display());
    output::print(&format!("mapped {}\n", mapping.id()))?;
    loop {
        for guard in &guards {
            for index in (0..guard.len()).step_by(PAGE_BYTES) {
                black_box(guard.load(index)?);
            }
        }
    }
}
