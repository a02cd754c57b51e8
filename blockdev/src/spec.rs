//! How a device is named on the command line, and opening what is named.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::mapped::DeviceAndMemory;
use crate::nvme;
use crate::pci::PciAddress;
use crate::{
    Aperture, BlockDevice, Cmb, CountedDevice, DeviceError, Engine, FaultDevice, ImageDevice, IoCounters, MappedAperture, Medium,
    MemDevice, OpenMode, PmemDevice,
};

/// After the path of a `pmem:` device: a file behind a page cache will do.
const NODAX: &str = ",nodax";

/// A device as named by a user: `image:PATH`, `PATH`, `mem:SIZE`, `pmem:PATH[,nodax]`, `nvme:BDF/ns1` or `nvme:BDF/pmr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSpec {
    /// A regular file or kernel block device.
    Image(PathBuf),
    /// Volatile memory of this many bytes.
    Mem(u64),
    /// Persistent memory: a file on a DAX filesystem, or /dev/daxX.Y.
    Pmem(PathBuf, Medium),
    /// Part of an NVMe controller.
    Nvme(PciAddress, NvmePart),
}

/// What of an NVMe controller is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvmePart {
    /// A namespace, by its id.
    Namespace(u32),
    /// The Persistent Memory Region.
    Region,
}

/// Why a name or a size is no good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No path after the prefix.
    #[error("`{0}` names no file: write image:PATH, pmem:PATH, mem:SIZE or nvme:BDF/ns1")]
    Empty(String),
    /// Not a controller, or not a part of one.
    #[error("`{0}` names no part of a controller: write nvme:BDF/ns1 or nvme:BDF/pmr, for example nvme:0000:01:00.0/ns1")]
    BadNvme(String),
    /// Not a size.
    #[error("`{0}` is no size: write bytes, or a number with K, M, G or T (powers of 1024)")]
    BadSize(String),
}

/// An open device with what belongs to it.
#[derive(Debug)]
pub struct Opened {
    /// The device; with an aperture, the overlay that knows the windows.
    pub device: Arc<dyn BlockDevice>,
    /// The aperture, if the device has one or one was asked for.
    pub aperture: Option<Arc<dyn Aperture>>,
    /// Keeps the device locked as long as it (or the device) is open, in whatever process.
    pub lock: Option<OwnedFd>,
}

/// A device that a server opens, observed.
#[derive(Debug)]
pub struct OpenedForServing {
    /// The device.
    pub opened: Opened,
    /// Requests below the aperture, and the device's events.
    pub counters: Arc<IoCounters>,
    /// What makes it fail, where that was asked for.
    pub faults: Option<FaultDevice>,
}

/// Bytes of a size such as `4096`, `64M`, `64MiB`: a whole number with a binary
/// suffix K, M, G or T, optionally followed by `B` or `iB`.
///
/// # Errors
/// [`SpecError::BadSize`], also when it does not fit in 64 bits.
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    let bad = || SpecError::BadSize(text.into());
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let empty = || SpecError::Empty(text.into());
        match text.split_once(':') {
            Some(("image", "")) => Err(empty()),
            Some(("image", path)) => Ok(DeviceSpec::Image(path.into())),
            Some(("mem", size)) => match parse_size(size)? {
                0 => Err(SpecError::BadSize(size.into())),
                size => Ok(DeviceSpec::Mem(size)),
            },
            Some(("nvme", part)) => parse_nvme(part).ok_or_else(|| SpecError::BadNvme(text.into())),
            Some(("pmem", name)) => {
                let (path, medium) = match name.strip_suffix(NODAX) {
                    Some(path) => (path, Medium::PageCache),
                    None => (name, Medium::Dax),
                };
                if path.is_empty() { Err(empty()) } else { Ok(DeviceSpec::Pmem(path.into(), medium)) }
            }
            _ if text.is_empty() => Err(empty()),
            _ => Ok(DeviceSpec::Image(text.into())),
        }
    }
}

/// `BDF`, `BDF/nsN` or `BDF/pmr`; without a part the first namespace.
fn parse_nvme(text: &str) -> Option<DeviceSpec> {
    let (address, part) = text.split_once('/').unwrap_or((text, "ns1"));
    let part = match part.strip_prefix("ns") {
        Some(id) => NvmePart::Namespace(id.parse().ok().filter(|id| *id > 0)?),
        None if part == "pmr" => NvmePart::Region,
        None => return None,
    };
    Some(DeviceSpec::Nvme(address.parse().ok()?, part))
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Image(path) => write!(f, "image:{}", path.display()),
            DeviceSpec::Mem(size) => write!(f, "mem:{size}"),
            DeviceSpec::Nvme(address, NvmePart::Namespace(id)) => write!(f, "nvme:{address}/ns{id}"),
            DeviceSpec::Nvme(address, NvmePart::Region) => write!(f, "nvme:{address}/pmr"),
            DeviceSpec::Pmem(path, Medium::Dax) => write!(f, "pmem:{}", path.display()),
            DeviceSpec::Pmem(path, Medium::PageCache) => write!(f, "pmem:{}{NODAX}", path.display()),
        }
    }
}

impl DeviceSpec {
    /// The device is an aperture by itself: one in software is only for who asks.
    pub fn has_aperture(&self) -> bool {
        matches!(self, DeviceSpec::Mem(_) | DeviceSpec::Pmem(..) | DeviceSpec::Nvme(..))
    }

    /// The file or device that keeps the volume; `None` where it has no path.
    pub fn path(&self) -> Option<&Path> {
        match self {
            DeviceSpec::Image(path) | DeviceSpec::Pmem(path, _) => Some(path),
            DeviceSpec::Mem(_) | DeviceSpec::Nvme(..) => None,
        }
    }

    /// The same device with its path changed.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn with_path<E>(self, change: impl FnOnce(&Path) -> Result<PathBuf, E>) -> Result<Self, E> {
        Ok(match self {
            DeviceSpec::Image(path) => DeviceSpec::Image(change(&path)?),
            DeviceSpec::Pmem(path, medium) => DeviceSpec::Pmem(change(&path)?, medium),
            DeviceSpec::Mem(_) | DeviceSpec::Nvme(..) => self,
        })
    }

    /// Opens the device, waiting at most `lock_wait` for another process to let go of it: with a software CMB of
    /// `cmb` bytes, without any aperture for 0, or with what it has by itself if not given.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`] from the backend.
    pub fn open(&self, cmb: Option<u64>, mode: OpenMode, lock_wait: Duration) -> Result<Opened, DeviceError> {
        self.open_decorated(cmb, mode, lock_wait, |device| device)
    }

    /// As [`DeviceSpec::open`], with all requests below the aperture counted; with `faults` the device fails on command.
    ///
    /// # Errors
    /// As [`DeviceSpec::open`].
    pub fn open_for_serving(
        &self,
        cmb: Option<u64>,
        mode: OpenMode,
        lock_wait: Duration,
        faults: bool,
    ) -> Result<OpenedForServing, DeviceError> {
        let mut faulty = None;
        let mut counters = Arc::default();
        let opened = self.open_decorated(cmb, mode, lock_wait, |device| {
            let device = match faults {
                true => {
                    // Its users say what fails, so nothing in it is random.
                    let device = FaultDevice::write_through(device, 0);
                    faulty = Some(device.clone());
                    Arc::new(device)
                }
                false => device,
            };
            let counted = CountedDevice::new(device);
            counters = Arc::clone(counted.counters());
            Arc::new(counted)
        })?;
        Ok(OpenedForServing { opened, counters, faults: faulty })
    }

    fn open_decorated(
        &self,
        cmb: Option<u64>,
        mode: OpenMode,
        lock_wait: Duration,
        decorate: impl FnOnce(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice>,
    ) -> Result<Opened, DeviceError> {
        match self {
            DeviceSpec::Image(path) => {
                let device = ImageDevice::open(path, mode, lock_wait)?;
                let lock = device.lock_fd().map_err(|err| DeviceError::Unusable {
                    device: self.to_string(),
                    reason: format!("its lock cannot be shared: {err}"),
                })?;
                let engine = device.engine().clone();
                Ok(Opened::new(decorate(Arc::new(device)), engine, cmb, Some(lock)))
            }
            DeviceSpec::Mem(size) => {
                let device = MemDevice::new(*size)?;
                let engine = device.engine().clone();
                let device = decorate(Arc::new(device));
                Ok(match cmb {
                    Some(_) => Opened::new(device, engine, cmb, None),
                    None => Opened::over(Cmb::identity(device, engine), None),
                })
            }
            DeviceSpec::Nvme(address, NvmePart::Namespace(id)) => {
                let (namespace, memory) = nvme::open_namespace(*address, *id, mode == OpenMode::ReadOnly)?;
                let device = decorate(Arc::new(namespace));
                match (cmb, memory) {
                    (None, Some(memory)) => Ok(Opened::over(Cmb::of_controller(device, memory), None)),
                    (None, None) => Ok(Opened { device, aperture: None, lock: None }),
                    (Some(_), _) => self.with_engine(device, cmb, None),
                }
            }
            DeviceSpec::Nvme(address, NvmePart::Region) => {
                let mapped = nvme::open_region(*address, mode)?;
                self.mapped("Persistent Memory Region", mapped, decorate, cmb, None)
            }
            DeviceSpec::Pmem(path, medium) => {
                let PmemDevice { device, memory, lock } = PmemDevice::open(path, *medium, mode, lock_wait)?;
                self.mapped("persistent memory", (device, memory), decorate, cmb, Some(lock))
            }
        }
    }
}

impl DeviceSpec {
    /// A software CMB over a device that has no io_uring engine by itself.
    fn with_engine(&self, device: Arc<dyn BlockDevice>, cmb: Option<u64>, lock: Option<OwnedFd>) -> Result<Opened, DeviceError> {
        if cmb == Some(0) {
            return Ok(Opened { device, aperture: None, lock });
        }
        let engine = Engine::new().map_err(|err| DeviceError::Unusable {
            device: self.to_string(),
            reason: format!("io_uring is not available for the software CMB: {err}"),
        })?;
        Ok(Opened::new(device, engine, cmb, lock))
    }

    /// A device whose blocks are mapped memory: all of it is the aperture, unless one in software is asked for.
    fn mapped(
        &self,
        name: &'static str,
        (device, memory): DeviceAndMemory,
        decorate: impl FnOnce(Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice>,
        cmb: Option<u64>,
        lock: Option<OwnedFd>,
    ) -> Result<Opened, DeviceError> {
        let device = decorate(device);
        if cmb.is_some() {
            return self.with_engine(device, cmb, lock);
        }
        let identity = MappedAperture::new(name, device, memory);
        Ok(Opened { device: Arc::new(identity.clone()), aperture: Some(Arc::new(identity)), lock })
    }
}

impl Opened {
    fn new(device: Arc<dyn BlockDevice>, engine: Arc<Engine>, cmb: Option<u64>, lock: Option<OwnedFd>) -> Self {
        let Some(budget_bytes) = cmb.filter(|bytes| *bytes > 0) else {
            return Opened { device, aperture: None, lock };
        };
        Opened::over(Cmb::new(device, engine, budget_bytes), lock)
    }

    fn over(cmb: Cmb, lock: Option<OwnedFd>) -> Self {
        Opened { device: Arc::new(cmb.clone()), aperture: Some(Arc::new(cmb)), lock }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("2gib"), Ok(2 << 30));
        assert_eq!(parse_size("1T"), Ok(1 << 40));
        for bad in ["", "M", "-1", "1.5G", "1X", "99999999999T", "1 M", "\u{661}K"] {
            assert_eq!(parse_size(bad), Err(SpecError::BadSize(bad.into())));
        }
    }

    #[test]
    fn names() {
        let image = |path: &str| Ok(DeviceSpec::Image(path.into()));
        assert_eq!("image:/a:b".parse(), image("/a:b"));
        assert_eq!("/srv/vol.img".parse(), image("/srv/vol.img"));
        assert_eq!("mem:1M".parse(), Ok(DeviceSpec::Mem(1 << 20)));
        for (text, medium) in [("pmem:/a,b", Medium::Dax), ("pmem:/a,b,nodax", Medium::PageCache)] {
            let spec: DeviceSpec = text.parse().expect("a good name");
            assert_eq!(spec, DeviceSpec::Pmem("/a,b".into(), medium));
            assert_eq!(spec.to_string(), text);
        }
        let address = "0000:01:00.0".parse().expect("address");
        assert_eq!("nvme:01:00.0".parse(), Ok(DeviceSpec::Nvme(address, NvmePart::Namespace(1))));
        assert_eq!("nvme:0000:01:00.0/pmr".parse(), Ok(DeviceSpec::Nvme(address, NvmePart::Region)));
        for name in ["image:/a:b", "mem:4096", "nvme:0000:01:00.0/ns2", "nvme:0000:01:00.0/pmr"] {
            assert_eq!(name.parse::<DeviceSpec>().expect(name).to_string(), name);
        }
        let refused = |text: &str| text.parse::<DeviceSpec>().is_err();
        assert!(
            ["", "image:", "mem:", "mem:0", "nvme:0000:01:00.0/x", "nvme:/ns1", "nvme:01:00.0/ns0", "pmem:", "pmem:,nodax"]
                .iter()
                .all(|t| refused(t))
        );
    }
}
