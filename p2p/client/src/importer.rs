//! What a program says about the device it maps for.

use peerfs_abi::ImporterFlags;
use peerfs_abi::ioctl::{Context, pack_name};
use zerocopy::FromZeros;

use crate::Error;

/// An importer as registered by [`crate::Session::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImporterSpec {
    /// Name, at most 31 bytes; empty means `cpu`.
    pub name: String,
    /// What it can do.
    pub flags: ImporterFlags,
    /// Bits of address it can put on the bus.
    pub dma_bits: u32,
    /// Bits of virtual address it can use.
    pub va_bits: u32,
    /// Its page size, bytes.
    pub page_bytes: u32,
    /// Its PCI address, for example `0000:01:00.0`; `None`: it is software, or reaches main memory only, and needs no
    /// peer path.
    pub pci_address: Option<String>,
}

impl ImporterSpec {
    /// The software importer: the processor itself, without limits, honouring revocation.
    pub fn cpu() -> ImporterSpec {
        let mut flags = ImporterFlags::all();
        flags.set(ImporterFlags::ATOMIC, peerfs_sys::ATOMICS);
        ImporterSpec { name: "cpu".to_owned(), flags, dma_bits: 64, va_bits: 48, page_bytes: 4096, pci_address: None }
    }

    /// The ioctl argument that registers it.
    pub(crate) fn request(&self) -> Result<Context, Error> {
        let mut context = Context::new_zeroed();
        context.abi_version = peerfs_abi::ABI_VERSION;
        context.importer_flags = self.flags.bits();
        context.importer = packed_name(&self.name)?;
        context.dma_bits = self.dma_bits;
        context.va_bits = self.va_bits;
        context.page_bytes = self.page_bytes;
        if let Some(address) = &self.pci_address {
            context.pci_address = pack_name(address).ok_or_else(|| Error::PciAddress { address: address.clone() })?;
        }
        Ok(context)
    }
}

/// An importer's name as a field.
pub(crate) fn packed_name<const N: usize>(name: &str) -> Result<[u8; N], Error> {
    pack_name(name).ok_or_else(|| Error::ImporterName { name: name.to_owned() })
}
