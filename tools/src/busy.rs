//! Mounts that are busy for an instant.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;

/// A mount that is busy for longer is in use.
const WAIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Tries again for a while: whoever looks at a mount keeps it busy (`peerfs serve` does all the time), and so does a file that was
/// removed and closed, until the server has heard of that.
pub fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + WAIT;
    loop {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < deadline => {
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}
