//! What the driver's tests share: a controller, the driver on it, and bounds on time.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peerfs_blockdev::nvme::{Controller, Namespace, NvmeError, Settings};
use peerfs_blockdev::{BlockDevice, DeviceEvent};
use peerfs_nvme_emulator::{DmaFaultReason, EmulatedController, Processing, Profile};

/// No case takes longer, however loaded the machine is.
const CASE_LIMIT: Duration = Duration::from_secs(60);

/// For cases in which nothing may time out, however loaded the machine is.
pub fn settings() -> Settings {
    Settings {
        queues: 2,
        private_queues: 0,
        entries: 16,
        io_timeout: Duration::from_secs(20),
        admin_timeout: Duration::from_secs(20),
        ready_timeout: Duration::from_millis(200),
        poll: Duration::from_micros(20),
        interrupts: true,
    }
}

/// A controller that processes in the doorbell write.
pub fn inline() -> Profile {
    Profile { processing: Processing::Inline, ..Profile::default() }
}

/// A controller and the driver on it.
pub struct Rig {
    pub emulator: Arc<EmulatedController>,
    pub device: Namespace,
    pub events: Arc<Mutex<Vec<DeviceEvent>>>,
}

impl Rig {
    pub fn new(profile: Profile) -> Rig {
        Rig::with(profile, settings()).expect("the driver takes the controller")
    }

    pub fn with(profile: Profile, settings: Settings) -> Result<Rig, NvmeError> {
        Rig::on(EmulatedController::new(profile), settings)
    }

    pub fn on(emulator: Arc<EmulatedController>, settings: Settings) -> Result<Rig, NvmeError> {
        let controller = Controller::open(emulator.clone(), settings)?;
        let device = Namespace::open(Arc::new(controller), 1, "nvme:test".into(), false)?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        device.subscribe(Arc::new(move |event| seen.lock().unwrap_or_else(PoisonError::into_inner).push(event)));
        Ok(Rig { emulator, device, events })
    }

    pub fn events(&self) -> Vec<DeviceEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn recoveries(&self) -> u64 {
        self.device.controller().recoveries()
    }

    /// Shuts the driver down. It must have kept to the rules all the time.
    pub fn finish(self) {
        let Rig { emulator, device, .. } = self;
        drop(device);
        assert_rules_were_kept(&emulator);
    }
}

/// The driver did nothing that a driver must not do, and no memory that it had taken back, or was about to use
/// otherwise, was within the controller's reach.
pub fn assert_rules_were_kept(emulator: &EmulatedController) {
    assert_eq!(emulator.violations(), Vec::<String>::new());
    let bad: Vec<_> = emulator.dma_faults().into_iter().filter(|fault| fault.reason != DmaFaultReason::Severed).collect();
    assert_eq!(bad, [], "the controller was to access memory that is not its own");
}

/// Runs a case that must end.
pub fn bounded<T: Send + 'static>(case: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, end) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let result = case();
        // Nobody listens when the time is over.
        done.send(()).ok();
        result
    });
    if end.recv_timeout(CASE_LIMIT) == Err(RecvTimeoutError::Timeout) {
        panic!("the case hangs");
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// `length` bytes that tell where they belong.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    peerfs_nvme_emulator::Random::new(seed).fill(&mut bytes);
    bytes
}
