//! The VM lab: a stock kernel in QEMU with emulated NVMe controllers behind an IOMMU, so that what needs hardware (VFIO, a
//! CMB, a PMR, a power failure) is tested on any machine. One program is both sides: the host boots and judges, the guest
//! runs the cases, which are declared once ([`cases`]).

pub mod cases;
mod channel;
pub mod guest;
pub mod host;
