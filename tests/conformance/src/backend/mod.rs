//! What the rules are tried on.

mod device;
mod software;

use anyhow::Result;
use peerfs_abi::Path;

use crate::kit::{GraphicsDevice, ScratchMount};

pub use device::DeviceBackend;
pub use software::{ImageBackend, MemBackend, software_backends};

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
    /// Clients are given windows. Without it every stretch of theirs falls back with NoGrantObject, and a case without
    /// this need goes as far as that lets it.
    Grants,
    /// Several volumes of it can be mounted at a time.
    SideBySide,
    /// The medium is a file that can be looked into while nothing is mounted.
    MediumFile,
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
            Capability::Grants => "no process can be given its memory",
            Capability::SideBySide => "one volume of it can be mounted at a time",
            Capability::MediumFile => "its medium is no file that could be looked into",
            Capability::DmaBuf => "this kernel has no /dev/udmabuf, or root may not use it",
            Capability::KernelImporter => "no driver of this kernel imports dma-bufs for programs (vgem does)",
        }
    }
}

/// A kind of storage device with an aperture.
pub trait Backend {
    /// The name on the command line.
    fn name(&self) -> &str;

    /// The label that direct bytes carry, of whichever importer reaches them.
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
