//! The emulated machine: two NVMe controllers behind an IOMMU, a console in a file, a serial line for messages.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::disks::Disks;
use super::kernel::Kernel;
use crate::lab::channel::{Order, Report, line};

/// Guest memory, MiB.
const MEMORY: u32 = 768;

/// What boots.
pub struct Machine<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The guest's root.
    pub initramfs: &'a Path,
    /// What the controllers have.
    pub disks: &'a Disks,
}

/// A running guest. Dropping it kills it.
pub struct Guest {
    child: Child,
    stream: UnixStream,
    said: Receiver<Report>,
}

/// What came of waiting for the guest.
pub enum Heard {
    /// It said something.
    Said(Report),
    /// It ended, or closed its line.
    Gone,
    /// Nothing until the deadline.
    Silent,
}

impl Machine<'_> {
    /// Starts it; `name` is for its files, `log.console` and `log.faults` beside the disks.
    ///
    /// # Errors
    /// When QEMU is missing or ends at once.
    pub fn start(&self, name: &str) -> Result<Guest> {
        let socket = self.disks.file(&format!("{name}.socket"));
        let listener = UnixListener::bind(&socket).with_context(|| socket.display().to_string())?;
        let mut command = self.command("");
        command.arg("-chardev").arg(format!("file,id=console,path={}", self.console(name).display()));
        command.args(["-serial", "chardev:console", "-monitor", "none", "-display", "none"]);
        command.arg("-chardev").arg(format!("socket,id=line,path={}", socket.display()));
        command.args(["-serial", "chardev:line", "-trace", "vtd_dmar_fault"]);
        command.arg("-D").arg(self.faults(name));
        let mut child = spawn(command.stdin(Stdio::null()).process_group(0))?;
        let stream = match accept(&listener, &mut child) {
            Ok(stream) => stream,
            Err(error) => {
                end(&mut child);
                return Err(error);
            }
        };
        let reader = BufReader::new(stream.try_clone()?);
        let (sender, said) = channel();
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                // What is no message is noise of a boot, and the end of a case that then never comes is noticed.
                if let Ok(report) = serde_json::from_str(&line)
                    && sender.send(report).is_err()
                {
                    return;
                }
            }
        });
        Ok(Guest { child, stream, said })
    }

    /// Runs it with a shell on this terminal until it ends.
    ///
    /// # Errors
    /// When QEMU is missing.
    pub fn converse(&self) -> Result<()> {
        let mut command = self.command("peerfs-lab=console");
        let status = spawn(command.args(["-nographic", "-serial", "mon:stdio"]))?.wait()?;
        anyhow::ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    /// Where the console of a boot goes.
    pub fn console(&self, name: &str) -> PathBuf {
        self.disks.file(&format!("{name}.console"))
    }

    /// Where the IOMMU's faults of a boot go.
    pub fn faults(&self, name: &str) -> PathBuf {
        self.disks.file(&format!("{name}.faults"))
    }

    /// `iomem=relaxed` lets a case reach registers of a controller that vfio-pci has.
    fn command(&self, append: &str) -> Command {
        let size = super::disks::BYTES >> 20;
        let file = |path: PathBuf, id: &str| format!("file={},if=none,id={id},format=raw", path.display());
        // setpriv(1) arranges that the machine ends with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-nic", "none", "-no-reboot", "-nodefaults"]);
        command.args(["-m", &format!("{MEMORY}M")]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.initramfs);
        command.args(["-append", &format!("console=ttyS0 panic=-1 quiet intel_iommu=on no_timer_check iomem=relaxed {append}")]);
        command
            .args(["-device", "intel-iommu"])
            .arg("-object")
            .arg(format!("memory-backend-file,id=pmr,share=on,mem-path={},size={size}M", self.disks.pmr().display()));
        command.args(["-drive", &file(self.disks.namespace_a(), "a")]);
        command.args(["-device", "nvme,serial=PMR,drive=a,pmrdev=pmr,addr=04"]);
        command.args(["-drive", &file(self.disks.namespace_b(), "b")]);
        command.args(["-device", &format!("nvme,serial=CMB,drive=b,cmb_size_mb={size},addr=05")]);
        command
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().context("setpriv cannot be started: apt-get install util-linux")
}

/// Waits until QEMU has connected, or ended.
fn accept(listener: &UnixListener, child: &mut Child) -> Result<UnixStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) => {}
        }
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended at once with {status} (if it is missing: apt-get install qemu-system-x86 seabios)");
        }
        anyhow::ensure!(Instant::now() < deadline, "QEMU does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn end(child: &mut Child) {
    // Both fail only if it has ended.
    let _ = child.kill();
    let _ = child.wait();
}

impl Guest {
    /// Sends what to do.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn order(&mut self, order: &Order) -> Result<()> {
        writeln!(self.stream, "{}", line(order)).context("the guest's line is closed")
    }

    /// Waits for what the guest says next.
    pub fn hear(&self, deadline: Instant) -> Heard {
        match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(report) => Heard::Said(report),
            Err(RecvTimeoutError::Timeout) => Heard::Silent,
            Err(RecvTimeoutError::Disconnected) => Heard::Gone,
        }
    }

    /// Kills the machine as a power failure would, and answers what it had still said.
    pub fn kill(mut self) -> Vec<Report> {
        end(&mut self.child);
        self.said.iter().collect()
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not until the deadline; it is killed then.
    pub fn finish(mut self, deadline: Instant) -> Result<()> {
        while self.child.try_wait()?.is_none() {
            anyhow::ensure!(Instant::now() < deadline, "the guest does not power off");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}
