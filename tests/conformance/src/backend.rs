//! What the rules are tried on.

use anyhow::Result;
use peerfs_abi::Path;

use crate::kit::{GraphicsDevice, ScratchMount};

/// How large an aperture a case needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApertureSize {
    /// What the backend has.
    Usual,
    /// This many MiB.
    Mebibytes(u32),
    /// None at all.
    Absent,
}

/// What a rule may need of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Capability {
    /// The size of the aperture can be chosen, so that it can run out.
    SizedAperture,
    /// It can be mounted without an aperture.
    NoAperture,
    /// The volume outlives the mount.
    Persistent,
    /// It can be made to fail on command.
    Faults,
    /// The kernel makes dma-bufs of memory files. This is the machine's, not the backend's.
    DmaBuf,
    /// A driver of the kernel imports dma-bufs for programs. This is the machine's, not the backend's.
    KernelImporter,
}

impl Capability {
    /// What a backend without it lacks, for people.
    pub fn lack(self) -> &'static str {
        match self {
            Capability::SizedAperture => "the size of its aperture cannot be chosen",
            Capability::NoAperture => "it cannot be mounted without an aperture",
            Capability::Persistent => "its volume ends with the mount",
            Capability::Faults => "it cannot be made to fail on command",
            Capability::DmaBuf => "this kernel has no /dev/udmabuf, or root may not use it",
            Capability::KernelImporter => "no driver of this kernel imports dma-bufs for programs (vgem does)",
        }
    }
}

/// A kind of storage device with an aperture.
pub trait Backend {
    /// The name on the command line.
    fn name(&self) -> &'static str;

    /// The label that direct bytes of a client's importer carry.
    fn direct_path(&self) -> Path;

    /// What it can show.
    fn has(&self, capability: Capability) -> bool;

    /// Mounts a fresh volume with these options of `-o`.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    fn mount(&self, aperture: ApertureSize, options: &str) -> Result<ScratchMount>;

    /// Mounts the volume of an unmounted scratch mount again.
    ///
    /// # Errors
    /// When it cannot be mounted.
    fn mount_again(&self, scratch: &mut ScratchMount, options: &str) -> Result<()>;
}

/// An image file behind a software CMB: a windowed aperture.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageBackend;

/// A volume in memory: an identity aperture.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemBackend;

/// The backends that need no hardware.
pub fn software_backends() -> Vec<Box<dyn Backend>> {
    vec![Box::new(ImageBackend), Box::new(MemBackend)]
}

const VOLUME: &str = "96M";

/// What does not depend on the backend.
fn machine_has(capability: Capability) -> bool {
    match capability {
        Capability::DmaBuf => peerfs_sys::has_udmabuf(),
        Capability::KernelImporter => GraphicsDevice::any().is_some(),
        _ => false,
    }
}

fn arguments(cmb: Option<String>, options: &str) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(cmb) = cmb {
        arguments.extend(["--cmb".to_owned(), cmb]);
    }
    if !options.is_empty() {
        arguments.extend(["-o".to_owned(), options.to_owned()]);
    }
    arguments
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

impl Backend for ImageBackend {
    fn name(&self) -> &'static str {
        "image"
    }

    fn direct_path(&self) -> Path {
        Path::DirectWindow
    }

    fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::DmaBuf | Capability::KernelImporter => machine_has(capability),
            Capability::SizedAperture | Capability::NoAperture | Capability::Persistent | Capability::Faults => true,
        }
    }

    fn mount(&self, aperture: ApertureSize, options: &str) -> Result<ScratchMount> {
        let cmb = match aperture {
            ApertureSize::Usual => "32M".to_owned(),
            ApertureSize::Mebibytes(size) => format!("{size}M"),
            ApertureSize::Absent => "0".to_owned(),
        };
        ScratchMount::new(VOLUME, &borrowed(&arguments(Some(cmb), options)))
    }

    fn mount_again(&self, scratch: &mut ScratchMount, options: &str) -> Result<()> {
        scratch.mount(&borrowed(&arguments(Some("32M".to_owned()), options)))
    }
}

impl Backend for MemBackend {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn direct_path(&self) -> Path {
        Path::DirectWindow
    }

    fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::Persistent => false,
            Capability::DmaBuf | Capability::KernelImporter => machine_has(capability),
            Capability::SizedAperture | Capability::NoAperture | Capability::Faults => true,
        }
    }

    fn mount(&self, aperture: ApertureSize, options: &str) -> Result<ScratchMount> {
        // A software CMB over memory stands in where the identity aperture, which is all of the volume, cannot run out.
        let cmb = match aperture {
            ApertureSize::Usual => None,
            ApertureSize::Mebibytes(size) => Some(format!("{size}M")),
            ApertureSize::Absent => Some("0".to_owned()),
        };
        ScratchMount::in_memory(VOLUME, &borrowed(&arguments(cmb, options)))
    }

    fn mount_again(&self, scratch: &mut ScratchMount, options: &str) -> Result<()> {
        scratch.mount(&borrowed(&arguments(None, options)))
    }
}
