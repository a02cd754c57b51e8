//! What can go wrong.

/// A call of the CUDA driver that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {answer}")]
pub struct DriverError {
    /// The call, as the driver names it.
    pub call: &'static str,
    /// What it answered.
    pub answer: String,
}

/// Why a GPU cannot be used at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no driver.
    #[error("libcuda.so.1 cannot be loaded: install the NVIDIA driver, or give the container the GPU (nvidia-container-toolkit)")]
    NoLibrary,
    /// The driver lacks calls that are needed.
    #[error("the NVIDIA driver is for CUDA {}.{}: install one for CUDA 11.4 or later (R470)", version / 1000, version % 1000 / 10)]
    TooOld {
        /// CUDA's version, as the driver counts it: 11040 is 11.4.
        version: i32,
    },
    /// The driver is there, but no such GPU.
    #[error(
        "no GPU has the number {ordinal}: the driver finds {count}; nvidia-smi lists them, and CUDA_VISIBLE_DEVICES hides some"
    )]
    NoDevice {
        /// What was asked for.
        ordinal: u32,
        /// GPUs that are there.
        count: u32,
    },
    /// Anything else.
    #[error("GPU {ordinal} cannot be used: {source}; try nvidia-smi")]
    Driver {
        /// The GPU.
        ordinal: u32,
        /// Why.
        source: DriverError,
    },
}

/// Why a transfer failed. A stretch that the filesystem or the driver refuses is no error: its bytes go through the processor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client library.
    #[error(transparent)]
    Client(#[from] peerfs_client::Error),
    /// The GPU or its driver.
    #[error("the GPU failed: {0}")]
    Gpu(#[from] DriverError),
    /// A buffer of the GPU is too small.
    #[error("{length} bytes do not fit in a buffer of {capacity}: move them in pieces")]
    TooLong {
        /// What was asked for, bytes.
        length: u64,
        /// Size of the buffer, bytes.
        capacity: usize,
    },
}
