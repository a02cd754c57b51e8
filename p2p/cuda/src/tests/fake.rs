//! A GPU in software. It writes down what it is asked, and its kernels run when they are waited for, as late as they may. It
//! reaches registered pages through `/proc/self/mem`, where memory that is gone is an error instead of SIGBUS.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::mem;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::{DriverError, Gpu, HostMemory};

/// What a kernel sees where a window was cut: a real GPU goes on with pages that no longer are the file's.
const GONE: u8 = 0xEE;

/// What the GPU was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Register {
        address: usize,
        length: usize,
        writable: bool,
    },
    /// Whether the pages were mapped still, and how many kernels had not been waited for.
    Unregister {
        address: usize,
        mapped: bool,
        kernels: usize,
    },
    Load {
        length: usize,
    },
    Store {
        length: usize,
    },
    Synchronize,
    Upload {
        length: usize,
    },
    Download {
        length: usize,
    },
}

/// A call that fails, or does something besides.
type Hook = Box<dyn FnOnce() + Send>;

pub struct FakeGpu {
    read_only: bool,
    memory: File,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    kernels: Vec<Kernel>,
    /// How often a call succeeds before it fails once.
    failures: HashMap<&'static str, usize>,
    at_register: Option<Hook>,
    at_synchronize: Option<Hook>,
}

pub struct Pages {
    address: usize,
    writable: bool,
}

pub type Bytes = Arc<Mutex<Vec<u8>>>;

enum Kernel {
    Load { from: usize, memory: Bytes, to: usize, length: usize },
    Store { memory: Bytes, from: usize, to: usize, length: usize },
}

impl FakeGpu {
    pub fn new() -> Arc<FakeGpu> {
        FakeGpu::with(true)
    }

    /// One that registers only what may be written.
    pub fn without_read_only() -> Arc<FakeGpu> {
        FakeGpu::with(false)
    }

    fn with(read_only: bool) -> Arc<FakeGpu> {
        let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").expect("our memory");
        Arc::new(FakeGpu { read_only, memory, state: Mutex::default() })
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// `call` fails once, after it has succeeded so often.
    pub fn fail(&self, call: &'static str, after: usize) {
        self.state().failures.insert(call, after);
    }

    /// Does something after the next registration.
    pub fn at_register(&self, hook: impl FnOnce() + Send + 'static) {
        self.state().at_register = Some(Box::new(hook));
    }

    /// The next kernel that is waited for hangs: it tells, and goes on when the sender is used or dropped.
    pub fn hang(&self) -> (Receiver<()>, Sender<()>) {
        let (arrived, told) = channel();
        let (release, released) = channel::<()>();
        self.state().at_synchronize = Some(Box::new(move || {
            arrived.send(()).expect("the test waits");
            let _ = released.recv();
        }));
        (told, release)
    }

    /// Registrations that have not ended.
    pub fn registered(&self) -> usize {
        let calls = self.calls();
        let count = |which: fn(&Call) -> bool| calls.iter().filter(|call| which(call)).count();
        count(|call| matches!(call, Call::Register { .. })) - count(|call| matches!(call, Call::Unregister { .. }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics inside")
    }

    fn note(&self, name: &'static str, call: Call) -> Result<(), DriverError> {
        let mut state = self.state();
        if let Some(left) = state.failures.get_mut(name) {
            if *left == 0 {
                state.failures.remove(name);
                return Err(DriverError { call: name, answer: "it fails as told".to_owned() });
            }
            *left -= 1;
        }
        state.calls.push(call);
        Ok(())
    }

    fn run(&self, kernel: Kernel) {
        match kernel {
            Kernel::Load { from, memory, to, length } => {
                let mut bytes = memory.lock().expect("no test panics inside");
                let target = &mut bytes[to..to + length];
                if self.memory.read_exact_at(target, from as u64).is_err() {
                    target.fill(GONE);
                }
            }
            Kernel::Store { memory, from, to, length } => {
                let bytes = memory.lock().expect("no test panics inside");
                // Stores to pages that were cut reach nobody.
                let _ = self.memory.write_all_at(&bytes[from..from + length], to as u64);
            }
        }
    }
}

/// Is the address in a mapping of this process?
fn is_mapped(address: usize) -> bool {
    let maps = fs::read_to_string("/proc/self/maps").expect("our mappings");
    let bounds = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
    };
    maps.lines().filter_map(bounds).any(|(start, end)| (start..end).contains(&address))
}

impl Gpu for FakeGpu {
    type Registration = Pages;
    type Memory = Bytes;
    type Staging = Vec<u8>;

    fn registers_read_only(&self) -> bool {
        self.read_only
    }

    fn register(&self, memory: HostMemory<'_>) -> Result<Pages, DriverError> {
        let (address, length, writable) = (memory.address(), memory.length(), memory.writable());
        assert!(address.is_multiple_of(4096) && length.is_multiple_of(4096), "{memory:?}");
        self.note("register", Call::Register { address, length, writable })?;
        let hook = self.state().at_register.take();
        if let Some(hook) = hook {
            hook();
        }
        Ok(Pages { address, writable })
    }

    fn unregister(&self, registration: Pages) -> Result<(), DriverError> {
        let (address, kernels) = (registration.address, self.state().kernels.len());
        self.note("unregister", Call::Unregister { address, mapped: is_mapped(address), kernels })
    }

    fn allocate(&self, length: usize) -> Result<Bytes, DriverError> {
        Ok(Arc::new(Mutex::new(vec![0; length])))
    }

    fn stage(&self, length: usize) -> Result<Vec<u8>, DriverError> {
        Ok(vec![0; length])
    }

    fn load(&self, pages: &Pages, from: usize, memory: &Bytes, to: usize, length: usize) -> Result<(), DriverError> {
        self.note("load", Call::Load { length })?;
        let kernel = Kernel::Load { from: pages.address + from, memory: Arc::clone(memory), to, length };
        self.state().kernels.push(kernel);
        Ok(())
    }

    fn store(&self, memory: &Bytes, from: usize, pages: &Pages, to: usize, length: usize) -> Result<(), DriverError> {
        assert!(pages.writable, "a store to pages that are registered for reading");
        self.note("store", Call::Store { length })?;
        let kernel = Kernel::Store { memory: Arc::clone(memory), from, to: pages.address + to, length };
        self.state().kernels.push(kernel);
        Ok(())
    }

    fn upload(&self, source: &[u8], memory: &Bytes, to: usize) -> Result<(), DriverError> {
        self.note("upload", Call::Upload { length: source.len() })?;
        memory.lock().expect("no test panics inside")[to..to + source.len()].copy_from_slice(source);
        Ok(())
    }

    fn download(&self, memory: &Bytes, from: usize, target: &mut [u8]) -> Result<(), DriverError> {
        self.note("download", Call::Download { length: target.len() })?;
        target.copy_from_slice(&memory.lock().expect("no test panics inside")[from..from + target.len()]);
        Ok(())
    }

    fn synchronize(&self) -> Result<(), DriverError> {
        self.note("synchronize", Call::Synchronize)?;
        let (kernels, hook) = {
            let mut state = self.state();
            (mem::take(&mut state.kernels), state.at_synchronize.take())
        };
        if let Some(hook) = hook {
            hook();
        }
        kernels.into_iter().for_each(|kernel| self.run(kernel));
        Ok(())
    }
}
