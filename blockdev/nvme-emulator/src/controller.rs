//! The controller as tests hold it.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use peerfs_sys::DmaMemory;

use crate::execute::Next;
use crate::faults::{FaultRule, Faults};
use crate::media::Media;
use crate::memory::{AddressSpace, DmaFault};
use crate::profile::{Processing, Profile};
use crate::queues::Queues;
use crate::random::Random;
use crate::registers::Registers;
use crate::state::{Core, Counts, Interlude, State};

/// A controller in software. Its thread ends when it is dropped.
pub struct EmulatedController {
    pub(crate) core: Arc<Core>,
    thread: Option<JoinHandle<()>>,
}

impl EmulatedController {
    /// A controller that was just switched on.
    ///
    /// # Panics
    /// There is no memory for it, or no thread.
    pub fn new(profile: Profile) -> Arc<Self> {
        let threaded = profile.processing == Processing::Thread;
        let memory = |bytes: u64| DmaMemory::zeroed(bytes as usize).expect("memory for the emulated controller");
        let state = State {
            random: Random::new(profile.seed),
            media: Media::default(),
            registers: Registers::default(),
            queues: Queues::default(),
            space: AddressSpace::new(),
            faults: Faults::default(),
            late: Vec::new(),
            interrupts: Vec::new(),
            cmb: memory(profile.cmb_bytes),
            pmr: memory(profile.pmr_bytes),
            counts: Counts::default(),
            violations: Vec::new(),
            told_power: None,
            gone: false,
            undecoded: false,
            stopping: false,
            profile,
        };
        let core = Arc::new(Core { state: Mutex::new(state), after_read: Mutex::default(), work: Condvar::new() });
        let thread = threaded.then(|| {
            let core = core.clone();
            std::thread::Builder::new().name("nvme-emulator".into()).spawn(move || run(&core)).expect("a thread")
        });
        Arc::new(EmulatedController { core, thread })
    }

    /// Makes it another kind of controller; what is about pages and registers shows when they are read again.
    pub fn change(&self, change: impl FnOnce(&mut Profile)) {
        change(&mut self.core.lock().profile);
    }

    /// Spoils commands from now on; earlier rules come first.
    pub fn add_fault(&self, rule: FaultRule) {
        self.core.lock().faults.0.push(rule);
    }

    /// Spoils no more commands.
    pub fn clear_faults(&self) {
        self.core.lock().faults.0.clear();
    }

    /// It is pulled out: registers read as all ones.
    pub fn remove(&self) {
        self.core.lock().gone = true;
    }

    /// Power fails and comes back: of what was not flushed, part is lost.
    pub fn cut_power(&self) {
        self.core.lock().cut_power();
    }

    /// Somebody else resets the function: until [`EmulatedController::end_reset`] no BAR is decoded.
    pub fn begin_reset(&self) {
        let mut state = self.core.lock();
        state.stop();
        state.undecoded = true;
    }

    /// The reset is over. Which memory is on, and where, is as before.
    pub fn end_reset(&self) {
        self.core.lock().undecoded = false;
    }

    /// Has something happen once, after the next copy out of a BAR and before whoever copies goes on.
    pub fn after_next_bar_read(&self, what: impl FnOnce() + Send + 'static) {
        *self.core.after_read.lock().unwrap_or_else(PoisonError::into_inner) = Some(Interlude(Box::new(what)));
    }

    /// A logical block as the namespace holds it, its write cache included.
    pub fn block(&self, block: u64) -> Vec<u8> {
        let state = self.core.lock();
        let mut out = vec![0; state.block_bytes() as usize];
        state.media.read(block, &mut out);
        out
    }

    /// What it was told so far.
    pub fn counts(&self) -> Counts {
        self.core.lock().counts.clone()
    }

    /// What a driver must never do, and did.
    pub fn violations(&self) -> Vec<String> {
        self.core.lock().violations.clone()
    }

    /// Accesses of the controller that were blocked.
    pub fn dma_faults(&self) -> Vec<DmaFault> {
        self.core.lock().space.faults.clone()
    }

    /// Processes what there is, where no thread does.
    pub(crate) fn kick(&self) {
        match self.thread {
            Some(_) => self.core.work.notify_all(),
            None => while self.core.lock().step() == Next::Done {},
        }
    }
}

/// The controller's thread.
fn run(core: &Core) {
    let mut state = core.lock();
    while !state.stopping {
        match state.step() {
            // Registers can be read between two commands.
            Next::Done => {
                drop(state);
                std::thread::yield_now();
                state = core.lock();
            }
            Next::Nothing(None) => state = core.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Next::Nothing(Some(due)) => {
                let left = due.saturating_duration_since(Instant::now());
                state = core.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

impl Drop for EmulatedController {
    fn drop(&mut self) {
        self.core.lock().stopping = true;
        self.core.work.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the emulator was printed where it happened.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for EmulatedController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EmulatedController")
    }
}
