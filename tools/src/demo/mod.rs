//! `peerfs demo`: the main job end to end, on a temporary volume with real
//! files. Every step verifies what it shows.

mod contents;
mod corpus;
mod crash;
mod decisions;
pub mod hung;
mod revocation;
mod sandbox;
mod transfer;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::args::DemoArgs;
use crate::output;
use contents::Contents;
use sandbox::Sandbox;
use transfer::Totals;

/// Below this the aperture would be too small to show anything.
const LEAST_BYTES: u64 = 32 << 20;
/// Below this files that change under mappings would not fit into the aperture.
const LEAST_APERTURE_BYTES: u64 = 1 << 20;
/// Revocation deadline of the demo's mount.
const DEADLINE_MS: u64 = 100;

/// What the steps work on.
struct Story {
    sandbox: Sandbox,
    contents: Contents,
    totals: Totals,
    /// Bytes of files wanted.
    size: u64,
    /// Size of the aperture, bytes: smaller than asked for where the user may lock less memory.
    aperture: u64,
}

type Step = fn(&mut Story) -> Result<String>;

/// The demo. Each step answers its figures.
const STEPS: &[(&str, Step)] = &[
    ("make a volume and mount it", make_and_mount),
    ("copy real files in", corpus::copy_in),
    ("make files that cannot map everywhere", contents::make_special),
    ("read everything back, cache dropped", contents::verify),
    ("ask what would map, and why not", decisions::ask),
    ("map every file as importer cpu, compare each byte with read(2)", transfer::map_and_compare),
    ("write through the device, read back with read(2)", transfer::write_through),
    ("shorten a file under a live mapping", revocation::truncate_live),
    ("revoke the rest, read the same bytes by fallback", revocation::fall_back),
    ("shorten a file whose importer never acknowledges", revocation::truncate_hung),
    ("kill the server while importers hold mappings", crash::kill_server),
    ("mount again, everything synced is there", crash::mount_again),
    ("unmount, check the volume", crash::unmount_and_check),
];

pub fn run(args: DemoArgs) -> Result<ExitCode> {
    ensure!(args.size >= LEAST_BYTES, "demo: --size {}: give at least {}", args.size, output::bytes(LEAST_BYTES));
    sandbox::can_mount().context("demo")?;
    let start = Instant::now();
    let sandbox = Sandbox::create(args.dir.as_deref(), args.keep).context("demo")?;
    let mut story = Story { sandbox, contents: Contents::default(), totals: Totals::default(), size: args.size, aperture: 0 };
    let told = tell(&mut story);
    let kept = story.sandbox.tidy();
    told?;
    output::print(&story.totals.text())?;
    if let Some(image) = kept {
        output::print(&format!("the volume is kept: {}\n", image.display()))?;
    }
    output::print(&format!("all {} steps verified in {:.1} s\n", STEPS.len(), start.elapsed().as_secs_f64()))?;
    Ok(ExitCode::SUCCESS)
}

fn tell(story: &mut Story) -> Result<()> {
    for (name, step) in STEPS {
        let start = Instant::now();
        match step(story) {
            Ok(figures) => {
                output::print(&format!("✓ {name} ({:.1} s)\n", start.elapsed().as_secs_f64()))?;
                output::print(&indented(&figures))?;
            }
            Err(error) => {
                output::print(&format!("✗ {name}\n"))?;
                return Err(error.context(format!("demo: {name}")));
            }
        }
    }
    Ok(())
}

fn indented(figures: &str) -> String {
    figures.lines().map(|line| format!("    {line}\n")).collect()
}

/// Sizes follow from the bytes of files: the aperture is smaller than the largest file, the volume has room to spare.
fn make_and_mount(story: &mut Story) -> Result<String> {
    let volume = story.size * 2 + (128 << 20);
    let made = story.sandbox.peerfs(&["mkfs", &story.sandbox.device(), "--size", &volume.to_string(), "--label", "demo"])?;
    story.sandbox.mount(cmb_bytes(story.size))?;
    let info = story.sandbox.info()?;
    let Some(aperture) = info["aperture"]["capacity_bytes"].as_u64() else { bail!("the mount has no aperture") };
    story.aperture = aperture;
    ensure!(
        aperture >= LEAST_APERTURE_BYTES,
        "an aperture of {} is too small: raise the limit of locked memory (ulimit -l) to at least 2 MiB",
        output::bytes(aperture)
    );
    Ok(format!(
        "{}aperture {} (software CMB), grants by {}, deadline {DEADLINE_MS} ms",
        made,
        output::bytes(aperture),
        info["grants"].as_str().unwrap_or("?"),
    ))
}

/// Two thirds of the largest file, in whole megabytes.
fn cmb_bytes(size: u64) -> u64 {
    (archive_bytes(size) * 2 / 3) >> 20 << 20
}

/// Length of the largest file.
fn archive_bytes(size: u64) -> u64 {
    (size * 3 / 16) >> 12 << 12
}
