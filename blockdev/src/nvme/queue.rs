//! One submission queue with its completion queue: what is in flight, and who waits for what.
//!
//! There is no thread of our own. Of the threads that wait for commands of a queue one (the leader) looks for
//! completions and hands them to the others, polling first and then sleeping until the controller's interrupt. It
//! also looks at the controller's health; what it finds wrong ends the wait as [`Trouble`], and recovery is up to
//! the [`super::controller`], which finds every command in flight here and sends it again.
//!
//! A command's place (slot) is free as soon as the command is complete, whether somebody has come for its result or
//! not: whoever sends many commands before waiting for the first must not wait for themselves. A command id says slot
//! and generation, so that a completion of an earlier command in the same slot is not taken for one of the present.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use peerfs_nvme_spec::register::{completion_doorbell, submission_doorbell};
use peerfs_nvme_spec::{Command, Completion, PAGE_BYTES};
use peerfs_sys::Interrupt;
use zerocopy::{FromBytes, IntoBytes};

use super::error::NvmeError;
use super::port::{DmaBlock, Port};
use super::prp::{self, ListPage};

const COMMAND_BYTES: u64 = size_of::<Command>() as u64;
const COMPLETION_BYTES: u64 = size_of::<Completion>() as u64;

/// Longest sleep before the controller's health is looked at again.
const TICK: Duration = Duration::from_millis(10);

/// Pause between looks where there is no interrupt and polling did not help.
const POLL_PAUSE: Duration = Duration::from_micros(50);

/// Shape of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// 0 for the admin queue.
    pub(super) id: u16,
    /// Entries of each ring, 2 to 4096; one less is in flight at most.
    pub(super) entries: u16,
    /// Distance of doorbells.
    pub(super) stride_bytes: u64,
    /// How long a command may take.
    pub(super) timeout: Duration,
    /// How long a waiter polls before it sleeps.
    pub(super) poll: Duration,
}

/// Something is wrong with the controller, not with one command. `life` is the life of the controller it was seen in.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) life: u64,
    pub(super) error: NvmeError,
}

/// Data of a command: address for the controller and length in bytes, in whole pages.
pub(super) type Data = Option<(u64, u64)>;

/// A queue pair. Its memory lasts as long as it does.
#[derive(Debug)]
pub(super) struct QueuePair {
    shape: Shape,
    rings: DmaBlock,
    interrupt: Option<Arc<Interrupt>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    tail: u16,
    head: u16,
    /// The phase tag of completions that are new.
    phase: bool,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Somebody looks for completions.
    led: bool,
    /// When the controller's health was looked at last.
    checked: Instant,
    /// Counts the controller's lives: it starts a new one at every recovery.
    life: u64,
    given_up: Option<NvmeError>,
}

#[derive(Debug)]
struct Slot {
    /// Counts the commands that were sent from here.
    generation: u16,
    flight: Option<Flight>,
}

#[derive(Debug)]
struct Flight {
    command: Command,
    deadline: Instant,
    /// Lives of the controller in which it was sent.
    sent: u32,
    outcome: Arc<Outcome>,
}

/// How a command ended, once it has.
pub(super) type Outcome = OnceLock<Result<Completion, NvmeError>>;

/// Times a command is sent before a controller that never completes it is taken at its word.
const MAX_SENT: u32 = 2;

impl QueuePair {
    /// Rings and list pages for a queue of this shape.
    pub(super) fn new(port: &dyn Port, shape: Shape, interrupt: Option<Arc<Interrupt>>) -> io::Result<Self> {
        let slots = shape.entries - 1;
        let bytes = layout(shape.entries).lists + u64::from(slots) * PAGE_BYTES;
        let rings = port.allocate(bytes as usize)?;
        // Anywhere: what a controller completes late, for a queue that had this place before, is not taken for one of ours.
        let generation = peerfs_sys::random_u64()? as u16;
        Ok(QueuePair {
            shape,
            rings,
            interrupt,
            state: Mutex::new(State {
                tail: 0,
                head: 0,
                phase: true,
                slots: (0..slots).map(|_| Slot { generation, flight: None }).collect(),
                free: (0..slots).rev().collect(),
                led: false,
                checked: Instant::now(),
                life: 0,
                given_up: None,
            }),
            changed: Condvar::new(),
        })
    }

    /// Bits of a command id that tell the slot; the rest tells the generation.
    fn slot_bits(&self) -> u32 {
        u16::BITS - (self.shape.entries - 1).leading_zeros()
    }

    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Where the controller finds the submission ring and the completion ring.
    pub(super) fn ring_addresses(&self) -> (u64, u64) {
        (self.rings.address(), self.rings.address() + layout(self.shape.entries).completions)
    }

    /// Sends a command, waiting for a free slot. Gives what [`QueuePair::wait`] waits for.
    pub(super) fn submit(
        &self,
        port: &dyn Port,
        command: Command,
        data: Data,
    ) -> Result<Result<Arc<Outcome>, NvmeError>, Trouble> {
        let mut state = self.lock();
        loop {
            if let Some(error) = &state.given_up {
                return Ok(Err(error.clone()));
            }
            if let Some(slot) = state.free.pop() {
                let outcome = Arc::new(Outcome::new());
                let command = self.describe(slot, command, data);
                self.launch(
                    port,
                    &mut state,
                    slot,
                    Flight { command, deadline: Instant::now(), sent: 0, outcome: outcome.clone() },
                );
                return Ok(Ok(outcome));
            }
            state = self.look(port, state)?;
        }
    }

    /// Waits for a command of this queue.
    pub(super) fn wait(&self, port: &dyn Port, outcome: &Outcome) -> Result<Result<Completion, NvmeError>, Trouble> {
        let mut state = self.lock();
        loop {
            // Under the lock only: a result that recovery sets counts when recovery is over.
            if let Some(result) = outcome.get() {
                return Ok(result.clone());
            }
            state = self.look(port, state)?;
        }
    }

    /// The command with PRP entries for its data.
    fn describe(&self, slot: u16, command: Command, data: Data) -> Command {
        let Some((address, length)) = data else { return command };
        let offset = layout(self.shape.entries).lists + u64::from(slot) * PAGE_BYTES;
        let list = ListPage { memory: &self.rings.memory, offset, address: self.rings.address() + offset };
        let (prp1, prp2) = prp::entries(address, length, list);
        command.with_data(prp1, prp2)
    }

    /// Sends a command from a slot that is free, or whose command the controller has forgotten.
    fn launch(&self, port: &dyn Port, state: &mut State, slot: u16, mut flight: Flight) {
        let place = &mut state.slots[usize::from(slot)];
        place.generation = place.generation.wrapping_add(1);
        flight.deadline = Instant::now() + self.shape.timeout;
        flight.sent += 1;
        flight.command = flight.command.with_id(place.generation << self.slot_bits() | slot);
        let at = u64::from(state.tail) * COMMAND_BYTES;
        self.rings.memory.write(at, flight.command.as_bytes()).expect("the submission ring is inside its memory");
        place.flight = Some(flight);
        state.tail = (state.tail + 1) % self.shape.entries;
        port.write_u32(submission_doorbell(self.shape.id, self.shape.stride_bytes), state.tail.into());
    }

    /// Takes new completions, or waits for some: as leader by looking, as follower for the leader.
    fn look<'a>(&'a self, port: &dyn Port, mut state: MutexGuard<'a, State>) -> Result<MutexGuard<'a, State>, Trouble> {
        if state.led {
            let woken = self.changed.wait_timeout(state, TICK);
            return Ok(woken.unwrap_or_else(PoisonError::into_inner).0);
        }
        if self.reap(port, &mut state)? {
            // A steady stream of completions must not hide that one is missing.
            self.check(port, &mut state, TICK)?;
            return Ok(state);
        }
        state.led = true;
        let (life, phase, head) = (state.life, state.phase, state.head);
        drop(state);
        self.doze(phase, head);
        let mut state = self.lock();
        state.led = false;
        self.changed.notify_all();
        let taken = self.reap(port, &mut state)?;
        if state.life == life {
            self.check(port, &mut state, if taken { TICK } else { Duration::ZERO })?;
        }
        Ok(state)
    }

    /// Returns when there may be a completion, or after a tick.
    fn doze(&self, phase: bool, head: u16) {
        let until = Instant::now() + self.shape.poll;
        while Instant::now() < until {
            if self.completion_at(head).phase() == phase {
                return;
            }
            std::hint::spin_loop();
        }
        match &self.interrupt {
            // Whatever it answers, the ring says what there is.
            Some(interrupt) => drop(interrupt.wait(Some(TICK))),
            None => std::thread::sleep(POLL_PAUSE),
        }
    }

    fn completion_at(&self, head: u16) -> Completion {
        let at = layout(self.shape.entries).completions + u64::from(head) * COMPLETION_BYTES;
        let memory = &self.rings.memory;
        // The phase tag is in the last word, which the controller writes last: see that first.
        let last = memory.load_u32(at + 12).expect("the completion ring is inside its memory");
        let mut bytes = [0; COMPLETION_BYTES as usize];
        memory.read(at, &mut bytes[..12]).expect("the completion ring is inside its memory");
        bytes[12..].copy_from_slice(&last.to_le_bytes());
        Completion::read_from_bytes(&bytes).expect("16 bytes are a completion")
    }

    /// Takes the completions there are. `true`: there were some.
    fn reap(&self, port: &dyn Port, state: &mut State) -> Result<bool, Trouble> {
        let mut taken = false;
        let mut nonsense = None;
        for _ in 0..self.shape.entries {
            let completion = self.completion_at(state.head);
            if completion.phase() != state.phase {
                break;
            }
            taken = true;
            state.head = (state.head + 1) % self.shape.entries;
            state.phase ^= state.head == 0;
            if let Err(error) = self.settle(state, completion) {
                nonsense = Some(error);
                break;
            }
        }
        if taken {
            port.write_u32(completion_doorbell(self.shape.id, self.shape.stride_bytes), state.head.into());
            self.changed.notify_all();
        }
        match nonsense {
            Some(error) => Err(Trouble { life: state.life, error }),
            None => Ok(taken),
        }
    }

    /// Gives a completion to its command.
    fn settle(&self, state: &mut State, completion: Completion) -> Result<(), NvmeError> {
        let (id, queue) = (completion.command_id.get(), completion.submission_queue.get());
        let slot = id & ((1 << self.slot_bits()) - 1);
        let is_it = |flight: &mut Flight| queue == self.shape.id && flight.command.command_id.get() == id;
        match state.slots.get_mut(usize::from(slot)).and_then(|place| place.flight.take_if(is_it)) {
            Some(flight) => {
                state.land(slot, flight, Ok(completion));
                Ok(())
            }
            None => Err(NvmeError::Nonsense(format!(
                "it completes command {id:#x} of queue {queue} on queue {}, where no such command is outstanding",
                self.shape.id
            ))),
        }
    }

    /// Is the controller as it should be, and no command overdue? Looks if it is at least `age` since the last time.
    fn check(&self, port: &dyn Port, state: &mut State, age: Duration) -> Result<(), Trouble> {
        let now = Instant::now();
        if now.duration_since(state.checked) < age {
            return Ok(());
        }
        state.checked = now;
        let trouble = |error| Err(Trouble { life: state.life, error });
        if let Err(error) = super::registers::health(port) {
            return trouble(error);
        }
        if state.slots.iter().filter_map(|slot| slot.flight.as_ref()).any(|flight| flight.deadline <= now) {
            return trouble(NvmeError::Timeout { waited_ms: self.shape.timeout.as_millis() as u64 });
        }
        Ok(())
    }

    /// Nothing is sent any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.lock().given_up.is_some()
    }

    pub(super) fn has_interrupt(&self) -> bool {
        self.interrupt.is_some()
    }

    /// For recovery: nothing enters or leaves the queue while this is held.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties both rings for a controller that was reset. Commands in flight keep their slots.
    pub(super) fn rewind(&self, state: &mut State) {
        let ring_bytes = layout(self.shape.entries).lists;
        self.rings.memory.write(0, &vec![0; ring_bytes as usize]).expect("the rings are inside their memory");
        (state.tail, state.head, state.phase) = (0, 0, true);
    }

    /// Sends every command in flight once more, but those that have been sent often enough: they fail with `error`.
    pub(super) fn relaunch(&self, port: &dyn Port, state: &mut State, error: &NvmeError) {
        for (slot, flight) in state.take_flights() {
            if flight.sent >= MAX_SENT {
                state.land(slot, flight, Err(error.clone()));
            } else {
                self.launch(port, state, slot, flight);
            }
        }
    }

    /// The controller lives again.
    pub(super) fn begin_life(&self, state: &mut State, life: u64) {
        state.life = life;
        self.changed.notify_all();
    }

    /// Every command in flight fails with this. The controller must have forgotten them, and must not reach memory.
    pub(super) fn fail_all(&self, state: &mut State, error: &NvmeError) {
        for (slot, flight) in state.take_flights() {
            state.land(slot, flight, Err(error.clone()));
        }
        self.changed.notify_all();
    }

    /// Every command, now and later, fails with this.
    pub(super) fn give_up(&self, state: &mut State, life: u64, error: &NvmeError) {
        state.life = life;
        state.given_up = Some(error.clone());
        self.fail_all(state, error);
    }
}

impl State {
    /// A command that has left its slot has ended.
    fn land(&mut self, slot: u16, flight: Flight, result: Result<Completion, NvmeError>) {
        self.free.push(slot);
        // Set once: a flight is taken out of its slot before it lands.
        flight.outcome.get_or_init(|| result);
    }

    fn take_flights(&mut self) -> Vec<(u16, Flight)> {
        let slots = self.slots.iter_mut().zip(0..);
        slots.filter_map(|(place, slot)| place.flight.take().map(|flight| (slot, flight))).collect()
    }
}

/// Byte offsets of the parts of a queue's memory; the submission ring is first.
struct Layout {
    completions: u64,
    lists: u64,
}

fn layout(entries: u16) -> Layout {
    let completions = (u64::from(entries) * COMMAND_BYTES).next_multiple_of(PAGE_BYTES);
    let lists = completions + (u64::from(entries) * COMPLETION_BYTES).next_multiple_of(PAGE_BYTES);
    Layout { completions, lists }
}
