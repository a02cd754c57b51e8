//! What tells whoever only uses memory of a controller that somebody else has reset the function.
//!
//! While such a reset lasts no BAR is decoded: reads answer all ones, stores go nowhere, without an error. Afterwards the
//! memory may be on, where it was before. But no reset leaves CSTS.RDY set. So the controller is kept ready, with an admin
//! queue to which nothing is ever sent: it touches no memory by that.

use std::sync::Arc;
use std::time::Duration;

use peerfs_nvme_spec::PAGE_BYTES;
use peerfs_nvme_spec::register::Cap;

use super::controller;
use super::error::NvmeError;
use super::port::{DmaBlock, Port};
use super::registers;

/// Bound on what the controller itself says it needs to become ready.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A controller that is ready as long as nobody resets it. Disabled when dropped.
#[derive(Debug)]
pub(super) struct ResetMark {
    port: Arc<dyn Port>,
    timeout: Duration,
    /// One page for each ring of the admin queue.
    rings: DmaBlock,
}

impl ResetMark {
    /// Makes a controller ready.
    pub(super) fn set(port: Arc<dyn Port>, cap: Cap) -> Result<Self, NvmeError> {
        controller::check_capabilities(cap, port.registers_length())?;
        let timeout = registers::ready_timeout(cap, READY_LIMIT);
        let rings = port.allocate(2 * PAGE_BYTES as usize);
        let rings = rings.map_err(|err| NvmeError::system("no memory for the admin queue", &err))?;
        let mark = ResetMark { port, timeout, rings };
        mark.renew()?;
        Ok(mark)
    }

    /// Makes it ready again.
    pub(super) fn renew(&self) -> Result<(), NvmeError> {
        registers::disable(&*self.port, self.timeout)?;
        let rings = (self.rings.address(), self.rings.address() + PAGE_BYTES);
        registers::start(&*self.port, 2, rings, self.timeout)
    }

    /// Nobody has reset the controller since.
    pub(super) fn is_there(&self) -> Result<bool, NvmeError> {
        Ok(registers::status(&*self.port)?.is_ready())
    }
}

impl Drop for ResetMark {
    fn drop(&mut self) {
        // One that is gone does not reach the rings either.
        if let Err(error) = registers::disable(&*self.port, self.timeout) {
            tracing::warn!(controller = self.port.address(), %error, "the controller was not disabled");
            self.port.sever();
        }
    }
}
