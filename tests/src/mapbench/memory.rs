//! What a live mapping costs the server in memory.

use std::fs::File;

use anyhow::{Context, Result, ensure};
use peerfs_abi::MapFlags;
use peerfs_conformance::kit::ScratchMount;
use peerfs_conformance::kit::raw::{RawSession, direct_segments, open_direct};

use super::{Plan, make_file};
use crate::report::{Report, resident_bytes};

const FILE_BYTES: u64 = 64 << 20;
const SESSIONS: u64 = 1000;
/// Threads that map.
const THREADS: u64 = 4;

pub(super) fn measure(plan: &Plan) -> Result<Report> {
    let title = "Memory of the server by live mapping of 4 KiB (resident set, what the volume caches was there before)";
    let mut report =
        Report::new(title, &["live mappings", "sessions", "server before, MiB", "with them, MiB", "bytes a mapping"]);
    for sessions in [1, SESSIONS.min(plan.mappings / 100)] {
        one(plan, sessions, &mut report)?;
    }
    Ok(report)
}

fn one(plan: &Plan, sessions: u64, report: &mut Report) -> Result<()> {
    let scratch = ScratchMount::new("256M", &["--cmb", "96M"])?;
    let path = scratch.join("mapped");
    make_file(&path, FILE_BYTES)?;
    let file = open_direct(&path, false)?;
    let keeper = RawSession::open(&scratch.path())?;
    let whole = keeper.map_calmly(&file, 0, 0, MapFlags::empty())?;
    ensure!(direct_segments(&whole).count() == (FILE_BYTES >> 21) as usize, "the file is not direct");
    let open = |_| RawSession::open(&scratch.path()).context("a session");
    let crowd = (0..sessions).map(open).collect::<Result<Vec<_>>>()?;
    let before = resident_bytes(scratch.server_pid()?)?;
    let each = plan.mappings / sessions;
    std::thread::scope(|scope| -> Result<()> {
        let shares = (0..THREADS).map(|thread| {
            let (crowd, file) = (&crowd, &file);
            scope.spawn(move || map_share(crowd, file, each, thread))
        });
        let threads: Vec<_> = shares.collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    let live = scratch.info()?["mappings"].as_u64().context("info.json counts mappings")? - 1;
    ensure!(live == each * sessions, "{live} mappings are live, not {}", each * sessions);
    let after = resident_bytes(scratch.server_pid()?)?;
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    report.row([
        live.to_string(),
        sessions.to_string(),
        mib(before),
        mib(after),
        format!("{:.0}", after.saturating_sub(before) as f64 / live as f64),
    ]);
    Ok(())
}

/// Every fourth mapping of each session, each of another block.
fn map_share(crowd: &[RawSession], file: &File, each: u64, thread: u64) -> Result<()> {
    for session in crowd {
        for number in (thread..each).step_by(THREADS as usize) {
            let answer = session.map(file, number * 4096 % FILE_BYTES, 4096, MapFlags::empty())?;
            ensure!(direct_segments(&answer).count() == 1, "refused: {:?}", answer.segments[0]);
        }
    }
    Ok(())
}
