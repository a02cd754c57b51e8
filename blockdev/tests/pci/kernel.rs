//! A kernel that binds and unbinds drivers on a tree of plain files.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use peerfs_blockdev::pci::Kernel;

/// What was written where, below `/sys`, and what shall go wrong.
#[derive(Debug)]
pub struct FakeKernel {
    pci: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    written: Vec<(PathBuf, String)>,
    refused: Vec<String>,
    deaf_to_probes: bool,
    busy: Vec<PathBuf>,
    found_for_all: Option<String>,
}

impl FakeKernel {
    pub fn new(pci: PathBuf) -> Self {
        FakeKernel { pci, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// Writes to attributes whose path ends with this answer EIO from now on.
    pub fn refuse(&self, suffix: &str) {
        self.state().refused.push(suffix.to_owned());
    }

    /// drivers_probe finds nothing from now on.
    pub fn ignore_probes(&self) {
        self.state().deaf_to_probes = true;
    }

    /// Somebody has this node open exclusively.
    pub fn occupy(&self, node: PathBuf) {
        self.state().busy.push(node);
    }

    /// The driver that takes functions without an override, instead of `nvme`.
    pub fn prefer(&self, driver: &str) {
        self.state().found_for_all = Some(driver.to_owned());
    }

    /// All writes so far.
    pub fn written(&self) -> Vec<(PathBuf, String)> {
        self.state().written.clone()
    }

    fn function(&self, address: &str) -> PathBuf {
        self.pci.join("devices").join(address)
    }

    fn attach(&self, address: &str, driver: &str) -> io::Result<()> {
        let directory = self.pci.join("drivers").join(driver);
        if !directory.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        symlink(directory, self.function(address).join("driver"))
    }

    fn probe(&self, address: &str) -> io::Result<()> {
        let deaf = self.state().deaf_to_probes;
        if deaf || self.function(address).join("driver").exists() {
            return Ok(());
        }
        let forced = fs::read_to_string(self.function(address).join("driver_override"))?;
        let found = match forced.trim() {
            "(null)" => self.state().found_for_all.clone().unwrap_or_else(|| "nvme".to_owned()),
            driver => driver.to_owned(),
        };
        self.attach(address, &found)
    }

    fn detach(&self, address: &str, driver: &Path) -> io::Result<()> {
        let link = self.function(address).join("driver");
        if fs::read_link(&link)?.file_name() != driver.file_name() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        fs::remove_file(link)
    }
}

impl Kernel for FakeKernel {
    fn write_attribute(&self, path: &Path, value: &str) -> io::Result<()> {
        self.state().written.push((path.to_owned(), value.to_owned()));
        if self.state().refused.iter().any(|suffix| path.ends_with(suffix)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let parent = path.parent().expect("an attribute of something");
        match path.file_name().and_then(|name| name.to_str()) {
            Some("driver_override") if value == "\n" => fs::write(path, "(null)\n"),
            Some("driver_override") => fs::write(path, format!("{value}\n")),
            Some("unbind") => self.detach(value, parent),
            Some("bind") => self.attach(value, parent.file_name().and_then(|name| name.to_str()).expect("a driver's name")),
            Some("drivers_probe") => self.probe(value),
            _ => Err(io::Error::from_raw_os_error(libc::EACCES)),
        }
    }

    fn claim(&self, path: &Path) -> io::Result<OwnedFd> {
        if self.state().busy.iter().any(|busy| busy == path) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        Ok(File::open(path)?.into())
    }
}
