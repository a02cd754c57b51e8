//! Which operation fails or waits.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Kinds of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpKind {
    /// Reads and window fills.
    Read,
    /// Writes, window drains and write-zeroes.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Everything.
    Any,
}

/// When a rule applies to an operation of its kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trigger {
    /// Always.
    Always,
    /// To the nth one since the rule was added, counted from 0, and no other.
    Nth(u64),
    /// To those that touch these bytes of the device.
    Range {
        /// Byte offset.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// To each with this probability, 0 to 1.
    Probability(f64),
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It fails with this error number, without touching the device.
    Error(i32),
    /// It takes this much longer.
    Delay(Duration),
}

/// A scripted fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultRule {
    /// Operations it is about.
    pub kind: OpKind,
    /// Which of them.
    pub trigger: Trigger,
    /// What happens to them.
    pub effect: Effect,
}

/// Operations waiting for the test. Released by drop.
#[derive(Debug)]
#[must_use = "dropping it releases"]
pub struct Hold {
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Gate {
    kind: OpKind,
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    arrived: u64,
    open: bool,
}

/// What the rules decided for one operation.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) errno: Option<i32>,
    delay: Duration,
    gates: Vec<Arc<Gate>>,
}

#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<(FaultRule, u64)>,
    gates: Vec<Arc<Gate>>,
    random: Random,
}

/// SplitMix64: small, and the same on every platform.
#[derive(Debug)]
pub(super) struct Random(u64);

impl OpKind {
    /// Its name in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            OpKind::Read | OpKind::Any => "read",
            OpKind::Write => "write",
            OpKind::Flush => "flush",
            OpKind::Discard => "discard",
        }
    }

    fn covers(self, kind: OpKind) -> bool {
        self == OpKind::Any || self == kind
    }
}

impl Rules {
    pub(super) fn new(seed: u64) -> Self {
        Rules { rules: Vec::new(), gates: Vec::new(), random: Random::new(seed) }
    }

    pub(super) fn add(&mut self, rule: FaultRule) {
        self.rules.push((rule, 0));
    }

    pub(super) fn clear(&mut self) {
        self.rules.clear();
    }

    pub(super) fn hold(&mut self, kind: OpKind) -> Hold {
        let gate = Arc::new(Gate { kind, state: Mutex::default(), changed: Condvar::new() });
        self.gates.push(gate.clone());
        Hold { gate }
    }

    pub(super) fn plan(&mut self, kind: OpKind, offset: u64, length: u64) -> Plan {
        self.gates.retain(|gate| !gate.is_open());
        let mut plan = Plan::default();
        for gate in self.gates.iter().filter(|gate| gate.kind.covers(kind)) {
            gate.arrive();
            plan.gates.push(gate.clone());
        }
        let mut decided = None;
        for (rule, seen) in &mut self.rules {
            if rule.kind.covers(kind) {
                let number = *seen;
                *seen += 1;
                let applies = match rule.trigger {
                    Trigger::Always => true,
                    Trigger::Nth(n) => n == number,
                    Trigger::Range { offset: o, length: l } => offset < o.saturating_add(l) && o < offset + length,
                    Trigger::Probability(p) => self.random.unit() < p,
                };
                if applies {
                    decided = decided.or(Some(rule.effect));
                }
            }
        }
        match decided {
            Some(Effect::Error(errno)) => plan.errno = Some(errno),
            Some(Effect::Delay(delay)) => plan.delay = delay,
            None => {}
        }
        plan
    }
}

impl Plan {
    /// Nothing to wait for.
    pub(super) fn is_immediate(&self) -> bool {
        self.gates.is_empty() && self.delay.is_zero()
    }

    pub(super) fn wait(&self) {
        for gate in &self.gates {
            gate.pass();
        }
        if !self.delay.is_zero() {
            thread::sleep(self.delay);
        }
    }
}

impl Hold {
    /// Blocks until `count` operations have arrived since the hold began.
    pub fn wait_for(&self, count: u64) {
        let mut state = self.gate.lock();
        while state.arrived < count {
            state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets all of them go on.
    pub fn release(self) {}
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.gate.lock().open = true;
        self.gate.changed.notify_all();
    }
}

impl Gate {
    fn lock(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> bool {
        self.lock().open
    }

    fn arrive(&self) {
        self.lock().arrived += 1;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.lock();
        while !state.open {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..limit` (limit > 0; the bias is below 2^-32 for small limits).
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 32) % limit
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
