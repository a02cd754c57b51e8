//! A window within reach of another controller: DMA from device to device, which can be taken away at any moment.
//!
//! While a lease lasts the window's memory has addresses for the controller, one mapping for each part that lies in one
//! piece, and all commands that name them go through one queue. It ends in this order: nothing more is sent; what is
//! outstanding ends, or its queue is deleted; only then is the memory unmapped. Unmapping alone is not enough, because a
//! transfer under way may still land. And since a controller may report success for a transfer that the IOMMU blocked,
//! a command counts only if the lease was not about to end when it was complete.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use peerfs_nvme_spec::{IoOpcode, Status};

use super::dma_engine::DmaEngine;
use super::error::NvmeError;
use super::port::Reach;
use super::private_queue::{PrivateQueue, PrivatelySent};
use crate::{Peer, Window, WindowContent};

/// Which way the bytes of a transfer go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Out of the window, into the controller's namespace.
    FromWindow,
    /// Into the window.
    ToWindow,
}

/// Why a window was not leased.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// It is in no device's BAR.
    #[error("the window is in no device's BAR")]
    NotInBar,
    /// It was cut before.
    #[error("the window was revoked: map again")]
    Revoked,
    /// Its memory could not be mapped for the controller.
    #[error("the IOMMU does not map the window for the controller: {0}")]
    Unmappable(#[from] io::Error),
}

/// Why a transfer does not count.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The lease ended first, or the window lost its content: whatever was moved may be anything.
    #[error("the window was revoked")]
    Revoked,
    /// The controller.
    #[error(transparent)]
    Controller(#[from] NvmeError),
}

/// See the module's documentation. Ends when dropped.
#[derive(Debug)]
pub struct Lease {
    engine: DmaEngine,
    queue: Arc<PrivateQueue>,
    window: Arc<dyn Window>,
    content: WindowContent,
    /// Nothing more is sent.
    ending: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Sorted by offset; none once the memory is out of reach.
    parts: Vec<Part>,
    outstanding: usize,
}

#[derive(Debug)]
struct Part {
    window_offset: u64,
    length: u64,
    reach: Reach,
}

/// A transfer under way. Dropping it waits for its end.
#[derive(Debug)]
pub struct Transfer {
    lease: Arc<Lease>,
    sent: Option<PrivatelySent>,
}

impl Lease {
    pub(super) fn new(
        engine: DmaEngine,
        queue: Arc<PrivateQueue>,
        window: Arc<dyn Window>,
        writable: bool,
    ) -> Result<Arc<Self>, LeaseError> {
        let content = window.content();
        let port = engine.controller().port().clone();
        let mut parts = Vec::new();
        for part in window.peer_parts().ok_or(LeaseError::NotInBar)? {
            let reach = port.reach(&part.memory, writable)?;
            parts.push(Part { window_offset: part.window_offset, length: part.memory.length, reach });
        }
        let state = Mutex::new(State { parts, outstanding: 0 });
        let lease = Arc::new(Lease { engine, queue, window, content, ending: AtomicBool::new(false), state });
        let peer: Arc<dyn Peer> = lease.clone();
        match lease.window.admit(&peer) {
            true => Ok(lease),
            false => Err(LeaseError::Revoked),
        }
    }

    /// Bytes from this window offset on that one command can name; 0 where there is no block, or no lease any more.
    pub fn contiguous(&self, offset: u64) -> u64 {
        self.lock().part(offset).map_or(0, |part| part.window_offset + part.length - offset)
    }

    /// Starts moving `length` bytes (at most [`DmaEngine::max_transfer_bytes`], and contiguous) between the window, from
    /// `offset` on (a multiple of 4096), and the namespace, from logical block `first_block` on.
    ///
    /// # Errors
    /// The lease has ended, or is about to; the controller.
    pub fn start(
        self: &Arc<Self>,
        direction: Direction,
        first_block: u64,
        offset: u64,
        length: u64,
    ) -> Result<Transfer, TransferError> {
        let mut state = self.lock();
        let part = state.part(offset).filter(|part| offset + length <= part.window_offset + part.length);
        let address = part.map(|part| part.reach.address + (offset - part.window_offset));
        let address = address.filter(|_| !self.is_ending()).ok_or(TransferError::Revoked)?;
        let (name, opcode) = match direction {
            Direction::FromWindow => ("write from a window", IoOpcode::Write),
            Direction::ToWindow => ("read into a window", IoOpcode::Read),
        };
        let command = self.engine.command(opcode, first_block, length);
        // With the lease locked, so that who ends it finds this command outstanding.
        let sent = self.queue.send(name, command, Some((address, length))).map_err(of_queue)?;
        state.outstanding += 1;
        Ok(Transfer { lease: self.clone(), sent: Some(sent) })
    }

    /// Sends nothing more. The memory goes out of reach as soon as nothing is outstanding; `true`: that is now.
    pub fn stop(&self) -> bool {
        self.ending.store(true, Ordering::SeqCst);
        self.lock().unmap_if_idle()
    }

    /// As [`Lease::stop`], without waiting for a command that is being sent: then the answer is `false`.
    pub fn stop_soon(&self) -> bool {
        self.ending.store(true, Ordering::SeqCst);
        match self.state.try_lock() {
            Ok(mut state) => state.unmap_if_idle(),
            Err(TryLockError::Poisoned(state)) => state.into_inner().unmap_if_idle(),
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// The memory is out of the controller's reach.
    pub fn has_ended(&self) -> bool {
        self.is_ending() && self.lock().parts.is_empty()
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn part(&self, offset: u64) -> Option<&Part> {
        let after = self.parts.partition_point(|part| part.window_offset <= offset);
        let part = &self.parts[after.checked_sub(1)?];
        (offset < part.window_offset + part.length).then_some(part)
    }

    /// Only what is not in use may be unmapped.
    fn unmap_if_idle(&mut self) -> bool {
        if self.outstanding == 0 {
            self.parts.clear();
        }
        self.parts.is_empty()
    }
}

impl Peer for Lease {
    fn sever(&self) {
        if self.stop() {
            return;
        }
        // The time to end by itself is over.
        self.queue.delete();
        self.lock().parts.clear();
    }
}

impl Transfer {
    /// Waits for its end.
    ///
    /// # Errors
    /// It does not count: move the bytes another way.
    pub fn finish(mut self) -> Result<(), TransferError> {
        self.settle()
    }

    fn settle(&mut self) -> Result<(), TransferError> {
        let Some(sent) = self.sent.take() else { return Ok(()) };
        let lease = &self.lease;
        let result = lease.queue.finish(&sent);
        let mut state = lease.lock();
        state.outstanding -= 1;
        let ending = lease.is_ending();
        if ending {
            state.unmap_if_idle();
        }
        drop(state);
        result.map_err(of_queue)?;
        match !ending && lease.window.has_kept(lease.content) {
            true => Ok(()),
            false => Err(TransferError::Revoked),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Nobody asks how it went.
        let _unasked = self.settle();
    }
}

fn of_queue(error: NvmeError) -> TransferError {
    match error {
        NvmeError::QueueDeleted => TransferError::Revoked,
        // A controller may complete what it aborts.
        NvmeError::Command { status, .. } if status.type_and_code() == Status::ABORTED_BY_QUEUE_DELETION.type_and_code() => {
            TransferError::Revoked
        }
        error => TransferError::Controller(error),
    }
}
