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
use crate::lab::cases::Rig;
use crate::lab::channel::{Namespace, Order, Report, line};

/// Guest memory, MiB.
const MEMORY: u32 = 768;
/// The controller memory buffer, MiB.
const CMB: u32 = 64;
/// What the slow medium moves in a second, bytes: one command of 512 KiB takes longer than a revocation's deadline.
const SLOW: u32 = 2 << 20;

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
    monitor: PathBuf,
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
        let monitor = self.disks.file(&format!("{name}.monitor"));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
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
        Ok(Guest { child, stream, monitor, said })
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

    /// `iomem=relaxed` lets a case reach registers of a controller that vfio-pci has. The host bridge forwards requests
    /// between devices only with processors of which it is known (TOPOLOGY.md): EPYC is one, `max` is none.
    fn command(&self, append: &str) -> Command {
        // setpriv(1) arranges that the machine ends with us, however we end.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        let processor = if self.disks.rig() == Rig::Ports { "EPYC" } else { "max" };
        command.args(["-machine", "q35,accel=tcg", "-cpu", processor, "-smp", "1", "-nic", "none", "-no-reboot", "-nodefaults"]);
        command.args(["-m", &format!("{MEMORY}M")]);
        command.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.initramfs);
        command.args(["-append", &format!("console=ttyS0 panic=-1 quiet intel_iommu=on no_timer_check iomem=relaxed {append}")]);
        let size = self.disks.bytes() >> 20;
        command
            .args(["-device", "intel-iommu"])
            .arg("-object")
            .arg(format!("memory-backend-file,id=pmr,share=on,mem-path={},size={size}M", self.disks.pmr().display()));
        let cmb = format!("cmb_size_mb={CMB}");
        self.controller(&mut command, Namespace::A, "serial=PMR,pmrdev=pmr", 4);
        self.controller(&mut command, Namespace::B, &format!("serial=CMB,{cmb}"), 5);
        if self.disks.rig() == Rig::Ports {
            self.controller(&mut command, Namespace::Slow, "serial=SLOW", 6);
        }
        command
    }

    /// A controller in a slot of the root bus, or behind a root port there.
    fn controller(&self, command: &mut Command, namespace: Namespace, properties: &str, slot: u8) {
        let name = namespace.device();
        let throttle = match namespace {
            Namespace::Slow => format!(",throttling.bps-total={SLOW}"),
            Namespace::A | Namespace::B => String::new(),
        };
        let medium = self.disks.namespace(namespace);
        command.args(["-drive", &format!("file={},if=none,id={name}-medium,format=raw{throttle}", medium.display())]);
        let place = match self.disks.rig() {
            Rig::Pair => format!("addr={slot:02x}"),
            Rig::Ports => {
                command.args(["-device", &format!("pcie-root-port,id={name}-port,chassis={slot},slot={slot},addr={slot:02x}")]);
                format!("bus={name}-port")
            }
        };
        command.args(["-device", &format!("nvme,id={name},drive={name}-medium,{properties},{place}")]);
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

    /// Has a controller pulled out.
    ///
    /// # Errors
    /// When QEMU refuses.
    pub fn unplug(&self, namespace: Namespace) -> Result<()> {
        let monitor = UnixStream::connect(&self.monitor).context("QEMU's monitor")?;
        monitor.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut answers = BufReader::new(monitor.try_clone()?).lines();
        let greeting = answers.next().context("the monitor is closed")??;
        anyhow::ensure!(greeting.contains("QMP"), "the monitor says {greeting}");
        let remove = serde_json::json!({ "execute": "device_del", "arguments": { "id": namespace.device() } });
        for command in [serde_json::json!({ "execute": "qmp_capabilities" }), remove] {
            writeln!(&monitor, "{command}").context("QEMU's monitor")?;
            // Events may come in between.
            let answer = loop {
                let answer: serde_json::Value = serde_json::from_str(&answers.next().context("the monitor is closed")??)?;
                if answer.get("event").is_none() {
                    break answer;
                }
            };
            anyhow::ensure!(answer.get("return").is_some(), "{command}: {answer}");
        }
        Ok(())
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
