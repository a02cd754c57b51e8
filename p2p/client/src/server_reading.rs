//! What the importer inside the server read for us.

use peerfs_abi::Reason;

/// The answer of [`crate::File::read_by_server`]. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerReading {
    /// CRC-32C of all that was read.
    pub crc32c: u32,
    /// Why bytes fell back, the reason of most of them in the first piece where some did.
    pub reason: Option<Reason>,
    /// Through windows of a software aperture.
    pub direct_window: u64,
    /// Through a BAR.
    pub direct_bar: u64,
    /// By fallback.
    pub fallback: u64,
}

impl ServerReading {
    /// All that was read.
    pub fn bytes(&self) -> u64 {
        self.direct_window + self.direct_bar + self.fallback
    }
}
