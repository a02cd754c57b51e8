//! A device that is to be removed: whoever drives it is told, and gives it back.
//!
//! The kernel waits, for as long as it takes, until a device that is being removed, or unbound from vfio-pci, is closed.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use peerfs_sys::{Interrupt, VfioDevice};

use super::port::Port;
use super::vfio::VfioPort;

type Told = Box<dyn Fn() + Send + Sync>;

/// The watch over one device.
pub(super) struct Removal {
    /// `None`: the kernel does not say.
    request: Option<Interrupt>,
    begun: AtomicBool,
    ended: AtomicBool,
    told: Mutex<Vec<Told>>,
}

impl Removal {
    pub(super) fn of(device: &VfioDevice) -> Self {
        let request = device.removal_request().inspect_err(|error| {
            tracing::warn!(device = device.address(), %error, "its removal will have to wait for the end of this process");
        });
        Removal { request: request.ok(), begun: AtomicBool::new(false), ended: AtomicBool::new(false), told: Mutex::default() }
    }

    /// The device counts as gone.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Calls it when removal begins, or now if it has.
    pub(super) fn add(&self, told: Told) {
        let mut list = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if self.has_begun() {
            drop(list);
            told();
        } else {
            list.push(told);
        }
    }

    /// Nobody watches any more.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        if let Some(request) = &self.request {
            // An eventfd that cannot be written would have been noticed before.
            let _woken = request.notify();
        }
    }

    /// Starts the thread that waits for the kernel's request.
    pub(super) fn watch(self: &Arc<Self>, port: &Arc<VfioPort>) {
        let (removal, port) = (self.clone(), Arc::downgrade(port));
        let address = port.upgrade().map_or_else(String::new, |port| port.address().to_owned());
        let wait = move || removal.run(&port);
        if let Err(error) = std::thread::Builder::new().name("peerfs-removal".into()).spawn(wait) {
            tracing::warn!(device = address, %error, "its removal will have to wait for the end of this process");
        }
    }

    fn run(&self, port: &Weak<VfioPort>) {
        let Some(request) = &self.request else { return };
        while !self.ended.load(Ordering::Acquire) {
            match request.wait(None) {
                Ok(true) if !self.ended.load(Ordering::Acquire) => {
                    let Some(port) = port.upgrade() else { return };
                    tracing::warn!(device = port.address(), "the kernel asks for it: it is removed, or its driver is changed");
                    self.begin(&port);
                    return;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the removal of a device is not noticed any more");
                    return;
                }
            }
        }
    }

    fn begin(&self, port: &VfioPort) {
        let told = {
            let mut list = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            self.begun.store(true, Ordering::Release);
            std::mem::take(&mut *list)
        };
        port.give_back(|| told.iter().for_each(|told| told()));
    }
}

impl fmt::Debug for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Removal({})", if self.has_begun() { "begun" } else { "not begun" })
    }
}
