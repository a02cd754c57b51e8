//! The NVMe driver on a controller that does not do as it should: what goes wrong, and what comes of it.
//!
//! In every case: no hang, no panic, no wrong bytes; a buffer goes back to its owner only when the controller cannot
//! reach it any more, and the driver breaks no rule of the specification ([`nvme::assert_rules_were_kept`]).
//!
//! | what goes wrong | what comes of it |
//! |---|---|
//! | media error on a read or write | EIO, `MediaError` with the range of the request; the device goes on |
//! | internal error, namespace not ready, aborted | sent again, up to 4 times in all; then EIO |
//! | the same with "do not retry" | EIO |
//! | capacity exceeded, write protected, opcode unknown | ENOSPC, EROFS, EOPNOTSUPP |
//! | a page list that cannot be read | EIO |
//! | data the IOMMU blocks | EIO, or what the controller makes of it: no memory but the request's is touched |
//! | a completion that does not come | reset, sent once more, `Reset`; the second time EIO for this command only |
//! | a lost completion under a steady load | the same: others' completions do not hide it |
//! | a slow command | nothing, if it comes within the timeout; else as lost |
//! | completed twice; unknown id, wrong queue, stale phase tag | reset, what was in flight is sent once more |
//! | a completion of the time before a reset | reset again; the command that waited through both fails with EIO |
//! | no interrupt for a completion, or for none | found at the next tick (10 ms); spurious ones do nothing |
//! | fatal status (CFS) | reset, sent once more, `Reset` |
//! | disabled by somebody else, power cut | the same; with a write cache the next flush fails with EIO, once |
//! | pulled out, at any moment | ENODEV or EIO for everything, `Removed`; opening: an error |
//! | does not stop, or does not start, at a reset | the function is reset; if that fails: given up |
//! | given up: not reset in time, reset more than 5 times in a minute, other serial number, limits, size or format | all memory out of reach, then EIO for everything, `Removed` |
//! | identify pages of zeros, ones, noise, or cut short | opening fails, or the driver works with what it was told |
//! | fewer queues than asked, queues of 2 entries, doorbells far apart, no transfer limit | nothing: it makes do |
//! | no queue can be made; capabilities of 0 or ones, pages too large, one entry | opening fails |
//! | namespace inactive, with metadata, with blocks that are too large or too small | opening fails |
//! | a reset, while windows are in the memory buffer | the device has the blocks; ending the window and the next flush tell that stores of peers are lost |
//! | a window is cut, while another controller's transfer to or from it is under way | the queue is deleted, or the controller reset; nothing lands, the transfer does not count, others' go on |
//! | a reset on either side of such a transfer | it does not count |
//! | a transfer into a window that may only be read | the IOMMU blocks it |
//! | base of the memory buffer not accepted | no memory is lent; I/O works |

mod nvme;

#[path = "nvme_faults/commands.rs"]
mod commands;
#[path = "nvme_faults/completions.rs"]
mod completions;
#[path = "nvme_faults/concurrency.rs"]
mod concurrency;
#[path = "nvme_faults/controllers.rs"]
mod controllers;
#[path = "nvme_faults/lent_windows.rs"]
mod lent_windows;
#[path = "nvme_faults/opening.rs"]
mod opening;
#[path = "nvme_faults/peers.rs"]
mod peers;
#[path = "nvme_faults/power.rs"]
mod power;
#[path = "nvme_faults/recovery.rs"]
mod recovery;

use std::time::Duration;

use nvme::{bounded, settings};
use peerfs_blockdev::nvme::Settings;
use peerfs_nvme_emulator::{Processing, Profile};

/// For cases in which something does not come.
fn hasty() -> Settings {
    let timeout = Duration::from_millis(300);
    Settings { io_timeout: timeout, admin_timeout: timeout, ..settings() }
}

/// Runs a case with all ways to process commands and to learn of completions.
fn each_way(case: fn(Profile, Settings)) {
    for processing in [Processing::Inline, Processing::Thread] {
        for interrupts in [true, false] {
            let profile = Profile { processing, ..Profile::default() };
            let settings = Settings { interrupts, ..settings() };
            println!("{processing:?}, interrupts: {interrupts}");
            bounded(move || case(profile, settings));
        }
    }
}
