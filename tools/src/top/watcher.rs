//! The thread that talks to the mount, so that a server that is slow or stopped never holds up the keys.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use peerfs_client::{Error, File, Revoked};

use super::sample::Sample;
use super::state::Order;
use crate::{failure, output};

/// What comes back from the mount.
pub enum News {
    /// A look at it, or why there is none.
    Look(Box<Result<Sample, String>>),
    /// How an order ended.
    Done(String),
}

/// Looks at the mount every `interval` and carries out orders, until nobody sends any more, or `tell` says that nobody listens.
pub fn watch(mountpoint: &Path, interval: Duration, orders: &Receiver<Order>, tell: impl Fn(News) -> bool) {
    let start = Instant::now();
    loop {
        let look = Sample::take(mountpoint, start).map_err(|error| failure::line(&error));
        if !tell(News::Look(Box::new(look))) {
            return;
        }
        match orders.recv_timeout(interval) {
            Ok(Order::Revoke(mappings)) => {
                if !tell(News::Done(revoke(mountpoint, &mappings))) {
                    return;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Revokes mappings one after the other; answers what to say of it.
fn revoke(mountpoint: &Path, mappings: &[u64]) -> String {
    let file = match File::open(mountpoint) {
        Ok(file) => file,
        Err(error) => return format!("revoke: {}", failure::line(&error.into())),
    };
    let (mut grants, mut enforced, mut slowest) = (0, 0, Duration::ZERO);
    for mapping in mappings {
        match file.revoke_mapping(*mapping) {
            Ok(Revoked { grants: more, enforced: more_enforced, latency, .. }) => {
                grants += more;
                enforced += more_enforced;
                slowest = slowest.max(latency);
            }
            // It ended by itself meanwhile.
            Err(Error::System { source, .. }) if source.raw_os_error() == Some(nix::errno::Errno::ENOENT as i32) => {}
            Err(error) => return format!("revoke mapping {mapping}: {}", failure::line(&error.into())),
        }
    }
    let unacknowledged = if enforced > 0 { format!(", {enforced} without an acknowledgement") } else { String::new() };
    let time = output::nanoseconds(u64::try_from(slowest.as_nanos()).unwrap_or(u64::MAX));
    format!("{} revoked in {time}{unacknowledged}", output::count(grants, "grant"))
}
