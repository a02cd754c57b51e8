//! A context is valid for the address space that made it, and for no other; plain file I/O is not concerned.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use peerfs_abi::{MapFlags, Reason};

use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::kit::peerfs;
use crate::kit::worker::NeedsRoot;
use crate::puppet::Puppet;
use crate::scene::{PAGE, Scene, Subject};

pub const CASES: &[Case] = &[
    Case::new("context-thread", "every thread of the process may use its context", Setup::USUAL, thread),
    Case::new("context-fork", "in a child of fork the context is stale, while the inherited file works", Setup::USUAL, fork)
        .refusing(Reason::StaleContext),
    Case::new("context-vfork", "a child of vfork shares the address space, so the context is its own", Setup::USUAL, vfork),
    Case::new(
        "context-sibling",
        "a sibling made with CLONE_VM shares the address space, so the context is its own",
        Setup::USUAL,
        sibling,
    ),
    Case::new("context-exec", "after exec the context is stale, while the inherited file works", Setup::USUAL, exec)
        .refusing(Reason::StaleContext),
    Case::new(
        "context-exec-with-sibling",
        "after exec the context is stale even while a sibling keeps the old address space alive",
        Setup::USUAL,
        exec_with_sibling,
    )
    .refusing(Reason::StaleContext),
    Case::new("context-exit", "a context whose process has ended is stale for whoever still has its session", Setup::USUAL, exit)
        .refusing(Reason::StaleContext),
    Case::new(
        "context-passed-session",
        "a session passed to another process takes no context along",
        Setup::USUAL,
        passed_session,
    )
    .refusing(Reason::StaleContext),
    Case::new(
        "context-pid-reuse",
        "a new process with the number of the old one does not inherit its context",
        Setup::USUAL.alone(),
        pid_reuse,
    )
    .refusing(Reason::StaleContext)
    .needing(&[Capability::SideBySide]),
];

const STALE: [(std::ops::Range<u64>, crate::evidence::Way); 1] = [(0..PAGE, Fallback(Reason::StaleContext))];
const DIRECT: [(std::ops::Range<u64>, crate::evidence::Way); 1] = [(0..PAGE, Direct)];

/// A process with a file, a session and a context that works.
fn bound(scene: &Scene<'_>) -> Result<(Subject, Puppet)> {
    let file = scene.file("file", PAGE)?;
    let puppet = Puppet::start(scene, 0)?;
    puppet.obey(&format!("open read {}", file.path.display()))?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    puppet.expect_map(scene, 0..PAGE, MapFlags::empty(), &DIRECT)?;
    Ok((file, puppet))
}

fn thread(scene: &mut Scene<'_>) -> Result<()> {
    let (_file, puppet) = bound(scene)?;
    puppet.expect_said(scene, "thread", 0..PAGE, &DIRECT)
}

fn fork(scene: &mut Scene<'_>) -> Result<()> {
    let (file, puppet) = bound(scene)?;
    puppet.expect_said(scene, "child fork", 0..PAGE, &STALE)?;
    let read = puppet.obey("child-reads fork")?;
    ensure!(read == file.content[0].to_string(), "the child reads {read}");
    // The parent's own is untouched.
    puppet.expect_map(scene, 0..PAGE, MapFlags::empty(), &DIRECT)
}

fn vfork(scene: &mut Scene<'_>) -> Result<()> {
    let (_file, puppet) = bound(scene)?;
    puppet.expect_said(scene, "child vfork", 0..PAGE, &DIRECT)?;
    puppet.expect_map(scene, 0..PAGE, MapFlags::empty(), &DIRECT)
}

fn sibling(scene: &mut Scene<'_>) -> Result<()> {
    let (_file, puppet) = bound(scene)?;
    puppet.expect_said(scene, "child sibling", 0..PAGE, &DIRECT)?;
    puppet.expect_map(scene, 0..PAGE, MapFlags::empty(), &DIRECT)
}

fn after_exec(scene: &Scene<'_>, command: &str) -> Result<()> {
    let (file, puppet) = bound(scene)?;
    let before = puppet.pid();
    puppet.obey(command)?;
    ensure!(puppet.obey("pid")? == before.to_string(), "exec changed the process number");
    puppet.expect_map(scene, 0..PAGE, MapFlags::empty(), &STALE)?;
    let read = puppet.obey("reads")?;
    ensure!(read == file.content[0].to_string(), "the inherited file reads {read}");
    // The same process with a new context.
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    puppet.expect_map(scene, 0..PAGE, MapFlags::empty(), &DIRECT)
}

fn exec(scene: &mut Scene<'_>) -> Result<()> {
    after_exec(scene, "exec")
}

fn exec_with_sibling(scene: &mut Scene<'_>) -> Result<()> {
    after_exec(scene, "exec-with-sibling")
}

fn exit(scene: &mut Scene<'_>) -> Result<()> {
    let (file, mut puppet) = bound(scene)?;
    let context = puppet.obey("context")?;
    let session = puppet.take_session()?;
    puppet.end()?;
    let heir = Puppet::start(scene, 0)?;
    heir.obey(&format!("open read {}", file.path.display()))?;
    heir.give(&session)?;
    heir.obey(&format!("use {context}"))?;
    heir.expect_map(scene, 0..PAGE, MapFlags::empty(), &STALE)
}

fn passed_session(scene: &mut Scene<'_>) -> Result<()> {
    let (file, puppet) = bound(scene)?;
    let context = puppet.obey("context")?;
    let session = puppet.take_session()?;
    let heir = Puppet::start(scene, 0)?;
    heir.obey(&format!("open read {}", file.path.display()))?;
    heir.give(&session)?;
    heir.obey(&format!("use {context}"))?;
    heir.expect_map(scene, 0..PAGE, MapFlags::empty(), &STALE)?;
    // A context of its own, through the session that it was given, works; and so does the first one still.
    heir.obey("bind")?;
    heir.expect_map(scene, 0..PAGE, MapFlags::empty(), &DIRECT)?;
    puppet.expect_map(scene, 0..PAGE, MapFlags::empty(), &DIRECT)
}

/// Numbers can only be chosen in a PID namespace of our own, so a program in one mounts a volume and does the rest.
fn pid_reuse(scene: &mut Scene<'_>) -> Result<()> {
    let world = scene.mount.directory().join("namespace");
    std::fs::create_dir(&world)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(NeedsRoot.into());
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(peerfs());
    command.arg(crate::puppet::SUBCOMMAND).arg("pid-reuse").arg(scene.backend.name()).arg(&world);
    let output = command.output().context("unshare(1)")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}{}", said, String::from_utf8_lossy(&output.stderr));
    ensure!(said.trim() == Reason::StaleContext.name(), "the new process is answered `{}`", said.trim());
    scene.evidence.reason(Reason::StaleContext);
    Ok(())
}
