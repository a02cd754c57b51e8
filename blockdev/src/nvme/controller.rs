//! One controller: bringing it up, sending commands, shutting it down.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerfs_nvme_spec::register::{Cap, offset};
use peerfs_nvme_spec::{ADMIN_QUEUE, Command, Completion, IdentifyController, IdentifyNamespace, IdentifyPage, PAGE_BYTES};
use peerfs_sys::Interrupt;
use zerocopy::FromBytes;

use super::error::NvmeError;
use super::lent::Lent;
use super::port::{DmaBlock, Port};
use super::private_queue::PrivateQueues;
use super::prp;
use super::queue::{Data, Outcome, QueuePair, Shape, Trouble};
use super::recovery::Life;
use super::registers;
use crate::{DeviceEvent, DeviceEvents, EventSink};

/// Times a command is sent again when the controller says that it may succeed then.
const MAX_TRIES: u32 = 4;

/// Entries of the admin queues.
const ADMIN_ENTRIES: u16 = 32;

/// What can be chosen about the driver.
#[derive(Debug, Clone)]
pub struct Settings {
    /// I/O queue pairs wanted; the controller may grant fewer.
    pub queues: u16,
    /// Queue pairs beside these, for users of their own ([`Controller::private_queue`]); none by default.
    pub private_queues: u16,
    /// Entries of each I/O queue wanted; the controller may have fewer.
    pub entries: u16,
    /// How long a read, write or flush may take before the controller is reset.
    pub io_timeout: Duration,
    /// The same for admin commands.
    pub admin_timeout: Duration,
    /// Bound on what the controller itself says it needs to become ready.
    pub ready_timeout: Duration,
    /// How long a waiter polls before it sleeps until the interrupt.
    pub poll: Duration,
    /// Ask for interrupts; without, completions are polled.
    pub interrupts: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            queues: 4,
            private_queues: 0,
            entries: 128,
            io_timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(60),
            ready_timeout: Duration::from_secs(60),
            poll: Duration::from_micros(20),
            interrupts: true,
        }
    }
}

/// A controller that processes commands. Shut down when dropped.
#[derive(Debug)]
pub struct Controller {
    pub(super) port: Arc<dyn Port>,
    pub(super) settings: Settings,
    pub(super) cap: Cap,
    pub(super) admin: QueuePair,
    pub(super) io: Vec<QueuePair>,
    /// By queue id, from 1 on; fewer than there are queues where the controller has fewer.
    interrupts: Vec<Arc<Interrupt>>,
    pub(super) private: PrivateQueues,
    page: DmaBlock,
    identity: IdentifyController,
    pub(super) life: Mutex<Life>,
    pub(super) lent: Lent,
    events: DeviceEvents,
}

/// A command that was sent. [`Controller::finish`] waits for it: its data must stay where it is until then.
#[derive(Debug)]
pub(super) struct Sent {
    queue: usize,
    outcome: Arc<Outcome>,
    name: &'static str,
    command: Command,
    data: Data,
}

impl Controller {
    /// Brings the controller up, whatever state it is in.
    ///
    /// # Errors
    /// It is gone, stuck, answers nonsense, or cannot do what this driver needs.
    pub fn open(port: Arc<dyn Port>, settings: Settings) -> Result<Self, NvmeError> {
        let cap = registers::capabilities(&*port)?;
        check_capabilities(cap, port.registers_length())?;
        let no_memory = |err| NvmeError::system("no memory for the admin queue", &err);
        let shape = Shape {
            id: ADMIN_QUEUE,
            entries: ADMIN_ENTRIES.min(u16::try_from(cap.max_queue_entries()).unwrap_or(u16::MAX)),
            stride_bytes: cap.doorbell_stride_bytes(),
            timeout: settings.admin_timeout,
            poll: settings.poll,
        };
        // Admin commands are few: polling them keeps every interrupt for I/O.
        let admin = QueuePair::new(&*port, shape, None).map_err(no_memory)?;
        let page = port.allocate(PAGE_BYTES as usize).map_err(no_memory)?;
        let mut controller = Controller {
            port,
            settings,
            cap,
            admin,
            io: Vec::new(),
            interrupts: Vec::new(),
            private: PrivateQueues::default(),
            page,
            identity: zerocopy::FromZeros::new_zeroed(),
            life: Mutex::default(),
            lent: Lent::new(),
            events: DeviceEvents::default(),
        };
        controller.start_admin()?;
        controller.identity = controller.identify_controller()?;
        controller.make_queues()?;
        controller.create_queues()?;
        Ok(controller)
    }

    /// What the controller says of itself.
    pub fn identity(&self) -> &IdentifyController {
        &self.identity
    }

    /// The connection with it.
    pub fn port(&self) -> &Arc<dyn Port> {
        &self.port
    }

    /// I/O queue pairs in use.
    pub fn queues(&self) -> usize {
        self.io.len()
    }

    /// Completions come by interrupt, on every queue.
    pub fn has_interrupts(&self) -> bool {
        self.io.iter().all(QueuePair::has_interrupt)
    }

    /// Most bytes that one command may move: a multiple of 4096.
    pub fn max_transfer_bytes(&self) -> u64 {
        let limit = self.identity.max_transfer_bytes(self.cap.min_page_bytes());
        limit.unwrap_or(u64::MAX).min(prp::MAX_BYTES)
    }

    /// Registers for what happens to the controller as a whole.
    pub fn subscribe(&self, sink: EventSink) {
        self.events.subscribe(sink);
    }

    /// Tells everybody. Call with no lock held.
    pub(super) fn report(&self, event: &DeviceEvent) {
        self.events.report(event);
    }

    /// Disables the controller, gives it its admin queue, and enables it.
    pub(super) fn start_admin(&self) -> Result<(), NvmeError> {
        let timeout = registers::ready_timeout(self.cap, self.settings.ready_timeout);
        let port = &*self.port;
        if let Err(error) = registers::disable(port, timeout) {
            tracing::warn!(controller = port.address(), %error, "resetting the function");
            port.reset().map_err(|err| NvmeError::system("the function cannot be reset", &err))?;
            registers::disable(port, timeout)?;
        }
        if self.lent.get().is_none() {
            self.withdraw_memory();
        }
        let mut state = self.admin.lock();
        // A command that failed and left no owner.
        self.admin.fail_all(&mut state, &NvmeError::Disabled);
        self.admin.rewind(&mut state);
        drop(state);
        registers::start(port, self.admin.shape().entries, self.admin.ring_addresses(), timeout)
    }

    fn make_queues(&mut self) -> Result<(), NvmeError> {
        let Settings { queues, private_queues, interrupts, .. } = self.settings;
        let wanted = queues.saturating_add(private_queues).min(reachable_queues(self.cap, self.port.registers_length()));
        let granted = self.ask_for_queues(wanted)?;
        // Where there are too few, those who need one of their own come first.
        let private = private_queues.min(granted - 1);
        let shared = granted - private;
        self.interrupts = if interrupts { self.port.interrupts(granted) } else { Vec::new() };
        self.interrupts.truncate(granted.into());
        self.io = (1..=shared).map(|id| self.make_queue(id)).collect::<Result<_, _>>()?;
        self.private = PrivateQueues::new(shared + 1..=granted);
        Ok(())
    }

    /// The memory of an I/O queue pair.
    pub(super) fn make_queue(&self, id: u16) -> Result<QueuePair, NvmeError> {
        let entries = self.settings.entries.clamp(2, 4096).min(u16::try_from(self.cap.max_queue_entries()).unwrap_or(u16::MAX));
        let shape = Shape { id, entries, timeout: self.settings.io_timeout, ..self.admin.shape() };
        let interrupt = self.interrupts.get(usize::from(id) - 1).cloned();
        QueuePair::new(&*self.port, shape, interrupt).map_err(|err| NvmeError::system("no memory for the I/O queues", &err))
    }

    fn ask_for_queues(&self, wanted: u16) -> Result<u16, NvmeError> {
        let granted = self.admin("set the number of queues", Command::request_queues(wanted))?.result.get();
        let pairs = (granted & 0xFFFF).min(granted >> 16) + 1;
        Ok(u16::try_from(pairs).unwrap_or(u16::MAX).min(wanted.max(1)))
    }

    /// Tells the controller of its I/O queues, after [`Controller::start_admin`].
    pub(super) fn create_queues(&self) -> Result<(), NvmeError> {
        let wanted = self.io.len() as u16 + self.private.count();
        if self.ask_for_queues(wanted)? < wanted {
            return Err(NvmeError::Unsupported(format!("the controller no longer grants {wanted} queue pairs")));
        }
        self.io.iter().try_for_each(|queue| self.create_completions(queue).and_then(|()| self.create_submissions(queue)))
    }

    pub(super) fn create_completions(&self, queue: &QueuePair) -> Result<(), NvmeError> {
        let Shape { id, entries, .. } = queue.shape();
        // Vector number = queue id - 1, as the interrupts were handed out.
        let vector = queue.has_interrupt().then(|| id - 1);
        let create = Command::create_completion_queue(id, entries, vector).with_data(queue.ring_addresses().1, 0);
        self.admin("create a completion queue", create).map(drop)
    }

    pub(super) fn create_submissions(&self, queue: &QueuePair) -> Result<(), NvmeError> {
        let Shape { id, entries, .. } = queue.shape();
        let create = Command::create_submission_queue(id, entries).with_data(queue.ring_addresses().0, 0);
        self.admin("create a submission queue", create).map(drop)
    }

    pub(super) fn identify_controller(&self) -> Result<IdentifyController, NvmeError> {
        let page = self.identify(IdentifyPage::Controller, 0)?;
        let page = IdentifyController::read_from_bytes(&page).expect("a page is a page");
        let has = |sizes: u8, power: u8| (sizes & 0xF) <= power && power <= sizes >> 4;
        if !has(page.submission_entry_size, 6) || !has(page.completion_entry_size, 4) {
            return Err(NvmeError::Nonsense(format!(
                "its queue entry sizes are {:#x} and {:#x}, so the identify page is not one",
                page.submission_entry_size, page.completion_entry_size
            )));
        }
        Ok(page)
    }

    /// The page of a namespace; a size of 0: there is no such namespace.
    pub(super) fn read_namespace_page(&self, namespace: u32) -> Result<IdentifyNamespace, NvmeError> {
        let page = self.identify(IdentifyPage::Namespace, namespace)?;
        Ok(IdentifyNamespace::read_from_bytes(&page).expect("a page is a page"))
    }

    fn identify(&self, page: IdentifyPage, namespace: u32) -> Result<[u8; PAGE_BYTES as usize], NvmeError> {
        let mut bytes = [0; PAGE_BYTES as usize];
        // A controller that transfers less than a page must not be believed what an earlier command left there.
        let memory = &self.page.memory;
        memory.write(0, &bytes).expect("the identify page is inside its memory");
        self.admin("identify", Command::identify(page, namespace).with_data(self.page.address(), 0))?;
        memory.read(0, &mut bytes).expect("the identify page is inside its memory");
        Ok(bytes)
    }

    /// One admin command. The caller has the controller's life to itself: there is one admin command at a time, and
    /// a failed one is followed by a reset, or by the end.
    pub(super) fn admin(&self, name: &'static str, command: Command) -> Result<Completion, NvmeError> {
        let port = &*self.port;
        let outcome = self.admin.submit(port, command, None).map_err(|trouble| trouble.error)??;
        let result = self.admin.wait(port, &outcome).map_err(|trouble| trouble.error)?;
        judge(name, result?)
    }

    /// Sends an I/O command about `data`.
    pub(super) fn send(&self, name: &'static str, command: Command, data: Data) -> Result<Sent, NvmeError> {
        let queue = self.queue_of_this_thread();
        let outcome = self.through_trouble(|| self.io[queue].submit(&*self.port, command, data))?;
        Ok(Sent { queue, outcome, name, command, data })
    }

    /// Waits for a command; sends it again where that may help.
    pub(super) fn finish(&self, mut sent: Sent) -> Result<Completion, NvmeError> {
        for _ in 1..MAX_TRIES {
            let result = self.settle(&sent);
            match &result {
                Err(error) if error.is_passing() => tracing::debug!(controller = self.port.address(), %error, "sending it again"),
                _ => return result,
            }
            sent = self.send(sent.name, sent.command, sent.data)?;
        }
        self.settle(&sent)
    }

    fn settle(&self, sent: &Sent) -> Result<Completion, NvmeError> {
        let completion = self.through_trouble(|| self.io[sent.queue].wait(&*self.port, &sent.outcome))?;
        judge(sent.name, completion)
    }

    /// Sends a command and waits for it.
    pub(super) fn perform(&self, name: &'static str, command: Command, data: Data) -> Result<Completion, NvmeError> {
        let sent = self.send(name, command, data)?;
        self.finish(sent)
    }

    /// Tries until there is a result: trouble is for recovery, after which the same holds in the controller's next life.
    fn through_trouble<T>(&self, attempt: impl Fn() -> Result<Result<T, NvmeError>, Trouble>) -> Result<T, NvmeError> {
        loop {
            match attempt() {
                Ok(result) => return result,
                Err(trouble) => self.recover(&trouble),
            }
        }
    }

    /// Threads keep to a queue each, as far as there are so many.
    fn queue_of_this_thread(&self) -> usize {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed));
        MINE.with(|mine| mine % self.io.len())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if self.has_been_given_up() {
            return;
        }
        let timeout = registers::ready_timeout(self.cap, self.settings.ready_timeout);
        let port = &*self.port;
        if let Err(error) = registers::shut_down(port, timeout).and_then(|()| registers::disable(port, timeout)) {
            tracing::warn!(controller = port.address(), %error, "the controller was not shut down in order");
        }
        self.withdraw_memory();
        // Rings and buffers are freed next: whatever it did, it must not reach them.
        port.sever();
    }
}

pub(super) fn judge(command: &'static str, completion: Completion) -> Result<Completion, NvmeError> {
    match completion.status() {
        status if status.is_success() => Ok(completion),
        status => Err(NvmeError::Command { command, status }),
    }
}

pub(super) fn check_capabilities(cap: Cap, registers_length: u64) -> Result<(), NvmeError> {
    if !cap.has_nvm_commands() {
        return Err(NvmeError::Unsupported("the controller does not have the NVM command set".into()));
    }
    if cap.min_page_bytes() > PAGE_BYTES {
        return Err(NvmeError::Unsupported(format!(
            "the controller wants pages of {} bytes at least; this driver uses {PAGE_BYTES}",
            cap.min_page_bytes()
        )));
    }
    if reachable_queues(cap, registers_length) == 0 {
        return Err(NvmeError::Nonsense(format!("its doorbells do not fit into BAR 0 of {registers_length} bytes")));
    }
    if cap.max_queue_entries() < 2 {
        return Err(NvmeError::Nonsense("its queues have one entry".into()));
    }
    Ok(())
}

/// I/O queue pairs whose doorbells are in BAR 0.
fn reachable_queues(cap: Cap, registers_length: u64) -> u16 {
    let pairs = registers_length.saturating_sub(offset::DOORBELLS) / (2 * cap.doorbell_stride_bytes());
    // The first is of the admin queue.
    u16::try_from(pairs.saturating_sub(1)).unwrap_or(u16::MAX)
}
