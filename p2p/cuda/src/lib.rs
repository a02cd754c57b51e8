//! A GPU as an importer: it registers the pinned windows of a file with the CUDA driver, and its kernels read and write them.
//!
//! What the GPU reaches is memory of this process, and its bytes cross the bus from there: `direct-window`, never
//! peer-to-peer. So it is registered without a PCI address, which is for importers that reach the memory of a storage device.
//!
//! Nobody can take a registration back: the driver holds the pages until it is told to let go. So every mapping here is a
//! pin, and a revocation by force is cooperative: see [`GpuMapping`]. The driver is behind a trait, [`Gpu`], with a
//! second implementation in the tests, so that order and lifetimes are tested where there is no GPU. The crate is linked with
//! nothing of NVIDIA's; [`CudaGpu::open`] loads `libcuda.so`.

mod buffer;
#[allow(unsafe_code, reason = "the calls of the CUDA driver")]
mod driver;
mod error;
mod gpu;
mod importer;
mod mapping;
mod registration;

#[cfg(test)]
mod tests;

pub use buffer::GpuBuffer;
pub use driver::{CudaGpu, GpuInfo};
pub use error::{DriverError, Error, OpenError};
pub use gpu::{Gpu, HostMemory};
pub use importer::{ordinal, spec};
pub use mapping::{GpuMapping, Moved};
