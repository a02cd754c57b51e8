//! What a case has to work with: programs with time limits, controllers, mounts that are tidied up.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use serde_json::Value;

use super::line::Line;
use crate::lab::channel::{Namespace, Order, Report};

/// A program that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A controller of the guest: QEMU puts each at its own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controller {
    /// PCI address.
    pub address: &'static str,
}

/// The one with a PMR.
pub const A: Controller = Controller { address: "0000:00:04.0" };
/// The one with a CMB.
pub const B: Controller = Controller { address: "0000:00:05.0" };

/// As [`A`], in a machine whose controllers are behind root ports.
pub const PORT_A: Controller = Controller { address: "0000:01:00.0" };
/// As [`B`], behind a root port.
pub const PORT_B: Controller = Controller { address: "0000:02:00.0" };
/// The one whose medium is slow, behind a root port.
pub const PORT_SLOW: Controller = Controller { address: "0000:03:00.0" };

impl Controller {
    /// A file of its directory in sysfs.
    pub fn sysfs(self, name: &str) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(self.address).join(name)
    }

    /// A part of it as commands take it.
    pub fn part(self, part: &str) -> String {
        format!("nvme:{}/{part}", self.address)
    }

    /// Name of the driver that has it.
    pub fn driver(self) -> Option<String> {
        Some(fs::read_link(self.sysfs("driver")).ok()?.file_name()?.to_string_lossy().into_owned())
    }
}

/// Something that comes or goes a little later, as devices do, within this.
const SETTLE: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer.
///
/// # Errors
/// Names what did not happen in time.
pub fn until<T>(what: &str, question: impl FnMut() -> Option<T>) -> Result<T> {
    until_within(SETTLE, what, question)
}

/// As [`until`], of what takes longer.
///
/// # Errors
/// As [`until`].
pub fn until_within<T>(patience: Duration, what: &str, mut question: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = question() {
            return Ok(answer);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes to a file of the kernel's.
///
/// # Errors
/// Names the file and what was written.
pub fn set(path: impl AsRef<Path>, value: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
}

/// A case's surroundings.
pub struct Guest<'a> {
    seed: u64,
    boot: usize,
    full: bool,
    line: &'a mut Line,
    mounts: Vec<PathBuf>,
    bound: Vec<Controller>,
}

impl<'a> Guest<'a> {
    pub(super) fn new(order: &Order, line: &'a mut Line) -> Self {
        Guest { seed: order.seed, boot: order.boot, full: order.full, line, mounts: Vec::new(), bound: Vec::new() }
    }

    /// All of what the case can show is wanted, however long it takes.
    pub fn full(&self) -> bool {
        self.full
    }

    /// What contents are derived from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Number of the boot over the same disks, from 0.
    pub fn boot(&self) -> usize {
        self.boot
    }

    /// Tells the host that a version is on the device for good.
    ///
    /// # Errors
    /// When the line is closed.
    pub fn synced(&mut self, writer: usize, version: u64) -> Result<()> {
        self.line.say(&Report::Synced { writer, version })
    }

    /// Has the host look for the bytes of a seed in a namespace.
    ///
    /// # Errors
    /// When the line is closed; what the host finds fails the case later.
    pub fn holds(&mut self, namespace: Namespace, offset: u64, length: u64, seed: u64) -> Result<()> {
        self.line.say(&Report::Holds { namespace, offset, length, seed })
    }

    /// Has the host print something.
    ///
    /// # Errors
    /// When the line is closed.
    pub fn note(&mut self, text: String) -> Result<()> {
        self.line.say(&Report::Note { text })
    }

    /// Starts `peerfs` with arguments, to go on beside the case.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, arguments: &[&str]) -> Result<Beside> {
        Beside::start(arguments)
    }

    /// Has the host pull a controller out.
    ///
    /// # Errors
    /// When the line is closed.
    pub fn unplug(&mut self, namespace: Namespace) -> Result<()> {
        self.line.say(&Report::Unplug { namespace })
    }

    /// Runs a program, which must succeed, and answers its standard output.
    ///
    /// # Errors
    /// When it fails, with what it said, or hangs.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let (success, text, errors) = self.attempt(program, arguments)?;
        ensure!(success, "`{program} {}` failed: {}", arguments.join(" "), format!("{text}{errors}").trim());
        Ok(text)
    }

    /// Runs a program, which must fail, and answers what it said.
    ///
    /// # Errors
    /// When it succeeds or hangs.
    pub fn refused(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let (success, text, errors) = self.attempt(program, arguments)?;
        ensure!(!success, "`{program} {}` succeeded", arguments.join(" "));
        Ok(text + &errors)
    }

    /// `peerfs` with arguments, which must succeed.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub fn peerfs(&self, arguments: &[&str]) -> Result<String> {
        self.run("peerfs", arguments)
    }

    /// `peerfs` with arguments, which prints JSON whether it succeeds or not, and may take this long.
    ///
    /// # Errors
    /// When it prints no JSON (with what it says instead), or hangs.
    pub fn peerfs_json(&self, arguments: &[&str], patience: Duration) -> Result<Value> {
        let (_, text, errors) = self.attempt_within("peerfs", arguments, patience)?;
        serde_json::from_str(&text).with_context(|| format!("`peerfs {}` says: {errors}", arguments.join(" ")))
    }

    fn attempt(&self, program: &str, arguments: &[&str]) -> Result<(bool, String, String)> {
        self.attempt_within(program, arguments, PATIENCE)
    }

    fn attempt_within(&self, program: &str, arguments: &[&str], patience: Duration) -> Result<(bool, String, String)> {
        // Into files: a program that leaves a server behind would keep a pipe open.
        let (out, err) = (PathBuf::from("/tmp/out"), PathBuf::from("/tmp/err"));
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
        let mut child = command.spawn().with_context(|| format!("{program} cannot be started"))?;
        let Some(success) = wait(&mut child, patience)? else {
            bail!("`{program} {}` has not ended after {patience:?}", arguments.join(" "));
        };
        let text = |path: &Path| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(path)?).into_owned());
        Ok((success, text(&out)?, text(&err)?))
    }

    /// Makes a controller's namespace a disk of the kernel's own driver, and answers its device node.
    ///
    /// # Errors
    /// When the driver does not come up.
    pub fn kernel_disk(&self, controller: Controller) -> Result<String> {
        self.run("modprobe", &["nvme"])?;
        until("the kernel's NVMe driver has the namespace", || {
            let list = self.peerfs(&["nvme", "list", "--json"]).ok()?;
            let list: Value = serde_json::from_str(&list).ok()?;
            let own = list["controllers"].as_array()?.iter().find(|entry| entry["address"] == controller.address)?;
            let node = format!("/dev/{}", own["namespaces"][0]["block"].as_str()?);
            Path::new(&node).exists().then_some(node)
        })
    }

    /// Gives a controller to vfio-pci until the case ends.
    ///
    /// # Errors
    /// When that is refused.
    pub fn bind(&mut self, controller: Controller) -> Result<()> {
        self.peerfs(&["nvme", "bind", controller.address])?;
        if !self.bound.contains(&controller) {
            self.bound.push(controller);
        }
        Ok(())
    }

    /// A controller is not there any more.
    pub fn forget(&mut self, controller: Controller) {
        self.bound.retain(|bound| *bound != controller);
    }

    /// Mounts a device on a directory of its own.
    ///
    /// # Errors
    /// When mounting fails.
    pub fn mount(&mut self, device: &str) -> Result<PathBuf> {
        self.mount_with(device, &[])
    }

    /// As [`Guest::mount`], with more arguments.
    ///
    /// # Errors
    /// When mounting fails.
    pub fn mount_with(&mut self, device: &str, arguments: &[&str]) -> Result<PathBuf> {
        let point = PathBuf::from(format!("/mnt/{}", self.mounts.len()));
        fs::create_dir_all(&point)?;
        self.peerfs(&[&["mount", device, &text(&point), "--log", "/tmp/server.log"], arguments].concat())?;
        self.mounts.push(point.clone());
        Ok(point)
    }

    /// Unmounts in order.
    ///
    /// # Errors
    /// When unmounting fails.
    pub fn umount(&mut self, point: &Path) -> Result<()> {
        self.peerfs(&["umount", &text(point)])?;
        self.mounts.retain(|mount| mount != point);
        Ok(())
    }

    /// Unmounts whatever state the volume is in.
    ///
    /// # Errors
    /// When even that fails.
    pub fn umount_by_force(&mut self, point: &Path) -> Result<()> {
        self.mounts.retain(|mount| mount != point);
        // The mount may be gone although its volume was not closed in order.
        if fs::read_to_string("/proc/self/mounts")?.contains(&text(point)) {
            self.peerfs(&["umount", "--force", &text(point)])?;
        }
        Ok(())
    }

    /// What a case left when it failed is undone, so that the next one has its chance.
    pub(super) fn tidy(&mut self) -> Result<()> {
        for point in std::mem::take(&mut self.mounts).iter().rev() {
            self.peerfs(&["umount", "--force", &text(point)])?;
        }
        for controller in std::mem::take(&mut self.bound) {
            self.peerfs(&["nvme", "unbind", controller.address])?;
        }
        Ok(())
    }
}

/// Answers whether it succeeded; `None` and dead after too long.
fn wait(child: &mut Child, patience: Duration) -> Result<Option<bool>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.success()));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program that runs beside the case. Killed when dropped.
pub struct Beside {
    child: Child,
    what: String,
    out: tempfile::NamedTempFile,
    err: tempfile::NamedTempFile,
}

impl Beside {
    /// Starts `peerfs` with arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(arguments: &[&str]) -> Result<Beside> {
        let (out, err) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
        let mut command = Command::new("peerfs");
        command.args(arguments).stdin(Stdio::null()).stdout(out.reopen()?).stderr(err.reopen()?);
        let child = command.spawn().context("peerfs cannot be started")?;
        Ok(Beside { child, what: arguments.join(" "), out, err })
    }

    /// It has not ended.
    ///
    /// # Errors
    /// What waitpid(2) answers.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end; answers what it printed, or, as `Err` inside, what it said when it failed.
    ///
    /// # Errors
    /// When it hangs.
    pub fn end(mut self) -> Result<Result<String, String>> {
        let Some(success) = wait(&mut self.child, PATIENCE)? else {
            bail!("`peerfs {}` has not ended after {PATIENCE:?}", self.what);
        };
        let text = |file: &tempfile::NamedTempFile| fs::read_to_string(file.path());
        Ok(if success { Ok(text(&self.out)?) } else { Err(text(&self.err)?) })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path of the guest as text.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
