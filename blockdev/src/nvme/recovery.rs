//! What happens to a controller in trouble.
//!
//! The rule: the controller is reset and set up again, and every command that was in flight is sent once more; one
//! that was in flight at two such resets fails. A controller that cannot be set up again, or needs it more than
//! [`MAX_RECOVERIES`] times in [`RECOVERY_WINDOW`], is given up: all memory is taken out of its reach first, then
//! every request fails, until it is opened anew. Requests wait meanwhile, as long as resetting may take. Given up is
//! also one that is not what it was: another serial number, other limits, a namespace of another size or format.
//!
//! A reset keeps the controller's write cache, loss of power does not. A controller found disabled had its power
//! switched off, or was reset by somebody else: the next flush of each namespace fails, since writes that succeeded
//! may be gone. What was in the memory that it lends counts as lost after either.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peerfs_nvme_spec::{IdentifyController, IdentifyNamespace};
use zerocopy::IntoBytes;

use super::controller::Controller;
use super::error::NvmeError;
use super::queue::{State, Trouble};
use super::registers;
use crate::DeviceEvent;

/// Recoveries that are tried in [`RECOVERY_WINDOW`].
pub const MAX_RECOVERIES: usize = 5;

/// See [`MAX_RECOVERIES`].
pub const RECOVERY_WINDOW: Duration = Duration::from_secs(60);

/// Lives of a controller: it begins a new one at every recovery.
#[derive(Debug, Default)]
pub(super) struct Life {
    number: u64,
    recoveries: Vec<Instant>,
    given_up: bool,
    /// Times that the content of the write cache may have been lost.
    cache_losses: u64,
    /// Namespaces in use.
    namespaces: BTreeMap<u32, Known>,
}

/// What must not change about a namespace: size, formats, format in use, protection, unique ids.
type Known = (u64, [u8; 64], u8, u8, [u8; 16], [u8; 8]);

fn known(page: &IdentifyNamespace) -> Known {
    let mut formats = [0; 64];
    formats.copy_from_slice(page.format.as_bytes());
    (page.size.get(), formats, page.formatted, page.protection, page.nguid, page.eui64)
}

impl Life {
    /// Which it is.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// It has not ended.
    pub(super) fn check(&self) -> Result<(), NvmeError> {
        match self.given_up {
            true => Err(NvmeError::GivenUp("see the log".into())),
            false => Ok(()),
        }
    }
}

impl Controller {
    pub(super) fn has_been_given_up(&self) -> bool {
        self.life.lock().unwrap_or_else(PoisonError::into_inner).given_up
    }

    /// Recoveries so far.
    pub fn recoveries(&self) -> u64 {
        self.life.lock().unwrap_or_else(PoisonError::into_inner).number
    }

    /// Times so far that the content of the write cache may have been lost.
    pub(super) fn cache_losses(&self) -> u64 {
        self.life.lock().unwrap_or_else(PoisonError::into_inner).cache_losses
    }

    /// The page of a namespace; a size of 0: there is no such namespace. What it says must hold after resets too.
    ///
    /// # Errors
    /// What the controller answers, or what is wrong with it if a reset does not help.
    pub fn identify_namespace(&self, namespace: u32) -> Result<IdentifyNamespace, NvmeError> {
        self.try_identify_namespace(namespace).unwrap_or_else(|trouble| {
            self.recover(&trouble);
            self.try_identify_namespace(namespace).unwrap_or_else(|trouble| Err(trouble.error))
        })
    }

    fn try_identify_namespace(&self, namespace: u32) -> Result<Result<IdentifyNamespace, NvmeError>, Trouble> {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = life.check() {
            return Ok(Err(error));
        }
        match self.read_namespace_page(namespace) {
            Ok(page) => {
                if page.size.get() != 0 {
                    life.namespaces.insert(namespace, known(&page));
                }
                Ok(Ok(page))
            }
            Err(error @ NvmeError::Command { .. }) => Ok(Err(error)),
            Err(error) => Err(Trouble { life: life.number, error }),
        }
    }

    /// Gives the controller up when it is to be removed.
    pub(super) fn watch_removal(self: &Arc<Self>) {
        let own = Arc::downgrade(self);
        self.port.on_removal(Box::new(move || {
            if let Some(controller) = own.upgrade() {
                let life = controller.life.lock().unwrap_or_else(PoisonError::into_inner).number;
                controller.recover(&Trouble { life, error: NvmeError::Gone });
            }
        }));
    }

    /// Resets the controller, or gives it up, unless that has happened since the trouble was seen.
    pub(super) fn recover(&self, trouble: &Trouble) {
        let mut life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.life != life.number || life.given_up {
            return;
        }
        let address = self.port.address();
        tracing::warn!(controller = address, error = %trouble.error, "resetting the controller");
        // Nothing is sent, and nothing is taken, until this is over.
        let mut states: Vec<_> = self.io.iter().map(|queue| queue.lock()).collect();
        let private = self.private.take_used();
        let private: Vec<_> = private.iter().map(|queue| (queue, queue.lock())).collect();
        life.number += 1;
        self.forget_memory();
        if !registers::is_enabled(&*self.port) && self.identity().has_write_cache() {
            life.cache_losses += 1;
        }
        let result = self.allow(&mut life, &trouble.error).and_then(|()| self.restart_twice(&life.namespaces, &mut states));
        let event = match result {
            Ok(()) => {
                self.renew_memory();
                for (queue, state) in self.io.iter().zip(&mut states) {
                    queue.begin_life(state, life.number);
                    queue.relaunch(&*self.port, state, &trouble.error);
                }
                tracing::warn!(controller = address, "the controller works again");
                DeviceEvent::Recovered
            }
            Err(error) => {
                tracing::error!(controller = address, %error, "giving the controller up");
                life.given_up = true;
                self.stop_for_good();
                let error = NvmeError::GivenUp(error.to_string());
                for (queue, state) in self.io.iter().zip(&mut states) {
                    queue.give_up(state, life.number, &error);
                }
                DeviceEvent::Removed
            }
        };
        // Their memory may go out of reach at any time, so nothing is sent for them again.
        for (queue, mut state) in private {
            queue.give_up(&mut state, life.number, &trouble.error);
        }
        drop(states);
        drop(life);
        self.report(&event);
    }

    /// A controller that does not work after a reset of its own gets one of its PCI function.
    fn restart_twice(&self, known: &BTreeMap<u32, Known>, states: &mut [MutexGuard<'_, State>]) -> Result<(), NvmeError> {
        let Err(error) = self.restart(known, states) else { return Ok(()) };
        if matches!(error, NvmeError::Gone) {
            return Err(error);
        }
        tracing::warn!(controller = self.port.address(), %error, "resetting the function");
        self.port.reset().map_err(|err| NvmeError::system("the function cannot be reset", &err))?;
        self.restart(known, states)
    }

    fn restart(&self, known: &BTreeMap<u32, Known>, states: &mut [MutexGuard<'_, State>]) -> Result<(), NvmeError> {
        self.start_admin()?;
        self.check_identity()?;
        self.check_namespaces(known)?;
        for (queue, state) in self.io.iter().zip(states) {
            queue.rewind(state);
        }
        self.restore_memory()?;
        self.create_queues()
    }

    /// Is one more recovery worth while?
    fn allow(&self, life: &mut Life, error: &NvmeError) -> Result<(), NvmeError> {
        let now = Instant::now();
        life.recoveries.retain(|then| now.duration_since(*then) < RECOVERY_WINDOW);
        life.recoveries.push(now);
        if life.recoveries.len() > MAX_RECOVERIES {
            return Err(NvmeError::Nonsense(format!(
                "it was reset {MAX_RECOVERIES} times in {} s and fails again: {error}",
                RECOVERY_WINDOW.as_secs()
            )));
        }
        Ok(())
    }

    /// What answers after the reset is what was there before.
    fn check_identity(&self) -> Result<(), NvmeError> {
        if registers::capabilities(&*self.port)? != self.cap {
            return Err(NvmeError::Nonsense("after the reset it has other capabilities (CAP)".into()));
        }
        let now = self.identify_controller()?;
        let before = self.identity();
        if (now.serial, now.model, now.max_transfer) != (before.serial, before.model, before.max_transfer) {
            return Err(NvmeError::Nonsense(format!(
                "after the reset it is another one: serial {}, was {}",
                IdentifyController::text(&now.serial),
                IdentifyController::text(&before.serial)
            )));
        }
        Ok(())
    }

    fn check_namespaces(&self, before: &BTreeMap<u32, Known>) -> Result<(), NvmeError> {
        for (id, before) in before {
            if known(&self.read_namespace_page(*id)?) != *before {
                return Err(NvmeError::Nonsense(format!("after the reset namespace {id} has another size, format or id")));
            }
        }
        Ok(())
    }

    /// Buffers go back to their owners after this: the controller must not reach them.
    fn stop_for_good(&self) {
        let timeout = registers::ready_timeout(self.cap, self.settings.ready_timeout);
        let stopped = registers::disable(&*self.port, timeout).is_ok() || self.port.reset().is_ok();
        if !stopped {
            tracing::warn!(controller = self.port.address(), "it cannot be stopped; the IOMMU keeps it from all memory");
        }
        self.port.sever();
    }
}
