//! The backends that need no hardware.

use anyhow::Result;
use peerfs_abi::Path;

use super::{ApertureSize, Backend, Capability, arguments, borrowed, machine_has};
use crate::kit::ScratchMount;

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

impl Backend for ImageBackend {
    fn name(&self) -> &str {
        "image"
    }

    fn direct_path(&self) -> Path {
        Path::DirectWindow
    }

    fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::DmaBuf | Capability::KernelImporter => machine_has(capability),
            Capability::SizedAperture
            | Capability::NoAperture
            | Capability::Persistent
            | Capability::Faults
            | Capability::Grants
            | Capability::SideBySide
            | Capability::MediumFile => true,
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
    fn name(&self) -> &str {
        "mem"
    }

    fn direct_path(&self) -> Path {
        Path::DirectWindow
    }

    fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::Persistent | Capability::MediumFile => false,
            Capability::DmaBuf | Capability::KernelImporter => machine_has(capability),
            Capability::SizedAperture
            | Capability::NoAperture
            | Capability::Faults
            | Capability::Grants
            | Capability::SideBySide => true,
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
