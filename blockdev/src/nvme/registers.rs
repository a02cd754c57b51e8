//! Register accesses with a meaning.

use std::thread;
use std::time::{Duration, Instant};

use peerfs_nvme_spec::register::{Cap, Cc, Csts, admin_queue_attributes, offset};

use super::error::NvmeError;
use super::port::Port;

/// First and longest pause between looks at a register that is to change.
const PAUSE: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(5));

/// Added to what the controller says it needs at worst.
const GRACE: Duration = Duration::from_millis(500);

/// Controller Capabilities.
pub(super) fn capabilities(port: &dyn Port) -> Result<Cap, NvmeError> {
    match port.read_u64(offset::CAP) {
        u64::MAX => Err(NvmeError::Gone),
        value => Ok(Cap(value)),
    }
}

/// Controller Status.
pub(super) fn status(port: &dyn Port) -> Result<Csts, NvmeError> {
    match Csts(port.read_u32(offset::CSTS)) {
        csts if csts.is_gone() => Err(NvmeError::Gone),
        csts => Ok(csts),
    }
}

/// Ready, and without a fatal error.
pub(super) fn health(port: &dyn Port) -> Result<(), NvmeError> {
    match status(port)? {
        csts if csts.is_fatal() => Err(NvmeError::Fatal { csts: csts.0 }),
        csts if !csts.is_ready() => Err(NvmeError::Disabled),
        _ => Ok(()),
    }
}

/// How long the controller may take to become ready, or to stop.
pub(super) fn ready_timeout(cap: Cap, limit: Duration) -> Duration {
    (Duration::from_millis(cap.ready_timeout_ms()) + GRACE).min(limit)
}

/// Clears CC.EN and waits until the controller has stopped: it touches no memory afterwards.
pub(super) fn disable(port: &dyn Port, timeout: Duration) -> Result<(), NvmeError> {
    if !is_enabled(port) && !status(port)?.is_ready() {
        return Ok(());
    }
    port.write_u32(offset::CC, Cc::DISABLED.0);
    await_status(port, "disabled", timeout, |csts| !csts.is_ready())
}

/// Gives a disabled controller its admin queue, of so many entries, with rings at these addresses, and enables it.
pub(super) fn start(port: &dyn Port, entries: u16, rings: (u64, u64), timeout: Duration) -> Result<(), NvmeError> {
    let (submissions, completions) = rings;
    port.write_u32(offset::AQA, admin_queue_attributes(entries));
    port.write_u64(offset::ASQ, submissions);
    port.write_u64(offset::ACQ, completions);
    enable(port, timeout)
}

/// Sets CC.EN and waits until commands are processed. Somebody who resets the function meanwhile ends the wait.
fn enable(port: &dyn Port, timeout: Duration) -> Result<(), NvmeError> {
    port.write_u32(offset::CC, Cc::ENABLED.0);
    await_status(port, "ready", timeout, |csts| csts.is_ready() || csts.is_fatal() || !is_enabled(port))?;
    health(port)
}

/// CC.EN is set; a controller that does not answer counts as enabled.
pub(super) fn is_enabled(port: &dyn Port) -> bool {
    Cc(port.read_u32(offset::CC)).is_enabled()
}

/// Announces a shutdown and waits for its end, so that the controller saves what it has. One that does not run has
/// nothing to save, and must not be enabled by this.
pub(super) fn shut_down(port: &dyn Port, timeout: Duration) -> Result<(), NvmeError> {
    if !is_enabled(port) || !status(port)?.is_ready() {
        return Ok(());
    }
    port.write_u32(offset::CC, Cc::ENABLED.shutting_down().0);
    await_status(port, "shut down", timeout, Csts::is_shut_down)
}

fn await_status(
    port: &dyn Port,
    state: &'static str,
    timeout: Duration,
    reached: impl Fn(Csts) -> bool,
) -> Result<(), NvmeError> {
    let mut csts = status(port)?;
    let came = wait_until(timeout, || {
        csts = status(port)?;
        Ok(reached(csts))
    })?;
    match came {
        true => Ok(()),
        false => Err(NvmeError::Stuck { state, waited_ms: timeout.as_millis() as u64, csts: csts.0 }),
    }
}

/// Looks until `reached`, with growing pauses. `false`: the time is over.
pub(super) fn wait_until(timeout: Duration, mut reached: impl FnMut() -> Result<bool, NvmeError>) -> Result<bool, NvmeError> {
    let deadline = Instant::now() + timeout;
    let mut pause = PAUSE.0;
    loop {
        if reached()? {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE.1);
    }
}
