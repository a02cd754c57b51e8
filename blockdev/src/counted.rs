//! A device that counts what is asked of it and what fails, for metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{BlockDevice, DeviceError, DeviceEvent, DeviceInfo, EventSink, Io, IoBuf, OpKind, Ticket};

/// Requests of one kind.
#[derive(Debug, Default)]
struct Counter {
    requests: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// What a [`CountedDevice`] has counted. Shared with whoever reports it.
#[derive(Debug, Default)]
pub struct IoCounters {
    reads: Counter,
    writes: Counter,
    flushes: Counter,
    discards: Counter,
    resets: AtomicU64,
    recoveries: AtomicU64,
    removals: AtomicU64,
    media_errors: AtomicU64,
}

/// Requests of one kind so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoCount {
    /// `read`, `write`, `flush` or `discard`. Window fills are reads, drains and zeroes are writes.
    pub kind: OpKind,
    /// Requests.
    pub requests: u64,
    /// Bytes asked for; 0 for flushes.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl IoCounters {
    /// Requests by kind.
    pub fn io(&self) -> [IoCount; 4] {
        [OpKind::Read, OpKind::Write, OpKind::Flush, OpKind::Discard].map(|kind| {
            let counter = self.counter(kind);
            let [requests, bytes, errors] =
                [&counter.requests, &counter.bytes, &counter.errors].map(|count| count.load(Ordering::Relaxed));
            IoCount { kind, requests, bytes, errors }
        })
    }

    /// What the device reported on its own initiative: a name for each kind of event, and how often.
    pub fn events(&self) -> [(&'static str, u64); 4] {
        let events = [
            ("reset", &self.resets),
            ("recovered", &self.recoveries),
            ("removed", &self.removals),
            ("media_error", &self.media_errors),
        ];
        events.map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    fn counter(&self, kind: OpKind) -> &Counter {
        match kind {
            OpKind::Read | OpKind::Any => &self.reads,
            OpKind::Write => &self.writes,
            OpKind::Flush => &self.flushes,
            OpKind::Discard => &self.discards,
        }
    }

    fn begin(&self, kind: OpKind, bytes: u64) {
        let counter = self.counter(kind);
        counter.requests.fetch_add(1, Ordering::Relaxed);
        counter.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn end<T>(&self, kind: OpKind, outcome: Result<T, DeviceError>) -> Result<T, DeviceError> {
        outcome.inspect_err(|_| {
            self.counter(kind).errors.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn note(&self, event: &DeviceEvent) {
        let count = match event {
            DeviceEvent::Reset => &self.resets,
            DeviceEvent::Recovered => &self.recoveries,
            DeviceEvent::Removed => &self.removals,
            DeviceEvent::MediaError { .. } => &self.media_errors,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A counting decorator.
#[derive(Debug)]
pub struct CountedDevice {
    inner: Arc<dyn BlockDevice>,
    counters: Arc<IoCounters>,
}

impl CountedDevice {
    /// Decorates `inner`, whose events it counts from now on.
    pub fn new(inner: Arc<dyn BlockDevice>) -> CountedDevice {
        let counters = Arc::new(IoCounters::default());
        let noted = Arc::clone(&counters);
        inner.subscribe(Arc::new(move |event| noted.note(&event)));
        CountedDevice { inner, counters }
    }

    /// What is counted.
    pub fn counters(&self) -> &Arc<IoCounters> {
        &self.counters
    }
}

impl BlockDevice for CountedDevice {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn buffer(&self, length: usize) -> IoBuf {
        self.inner.buffer(length)
    }

    fn submit(&self, io: Io) -> Ticket {
        let kind = if io.is_write() { OpKind::Write } else { OpKind::Read };
        self.counters.begin(kind, io.length());
        let (ticket, counters) = (self.inner.submit(io), Arc::clone(&self.counters));
        Ticket::new(move || counters.end(kind, ticket.wait()))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.counters.begin(OpKind::Flush, 0);
        self.counters.end(OpKind::Flush, self.inner.flush())
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.counters.begin(OpKind::Discard, length);
        self.counters.end(OpKind::Discard, self.inner.discard(offset, length))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.counters.begin(OpKind::Write, length);
        self.counters.end(OpKind::Write, self.inner.write_zeroes(offset, length))
    }

    fn subscribe(&self, sink: EventSink) {
        self.inner.subscribe(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BLOCK_BYTES, BlockDeviceExt, Effect, FaultDevice, FaultRule, MemDevice, Trigger};

    #[test]
    fn requests_failures_and_events_are_counted() {
        let memory = Arc::new(MemDevice::new(1 << 20).expect("memory"));
        let faulty = FaultDevice::write_through(memory, 0);
        let device = CountedDevice::new(Arc::new(faulty.clone()));
        let block = vec![1; BLOCK_BYTES as usize];
        device.write_at(0, &block).expect("room");
        device.read_at(0, &mut vec![0; 2 * BLOCK_BYTES as usize]).expect("it is there");
        device.flush().expect("nothing fails yet");
        faulty.add_rule(FaultRule { kind: OpKind::Write, trigger: Trigger::Always, effect: Effect::Error(libc::EIO) });
        device.write_at(0, &block).expect_err("as told");
        faulty.emit(DeviceEvent::MediaError { offset: 0, length: 1 });
        faulty.emit(DeviceEvent::Reset);

        let counts = device.counters().io().map(|count| (count.requests, count.bytes, count.errors));
        assert_eq!(counts, [(1, 2 * BLOCK_BYTES, 0), (2, 2 * BLOCK_BYTES, 1), (1, 0, 0), (0, 0, 0)]);
        assert_eq!(device.counters().events().map(|event| event.1), [1, 0, 0, 1]);
    }
}
