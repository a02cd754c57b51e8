//! What a hostile holder of a grant tries: its own programs and the conformance suite run the same list.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown, ftruncate};
use peerfs_abi::ioctl::Segment;
use peerfs_abi::{MapFlags, ioctl::transport};
use peerfs_sys::Window;

use super::raw::{RawSession, direct_segments, open_direct, readable};

/// Every byte of the files that an attacker must not see.
pub const SECRET: u8 = 0xE7;

/// What an attacker holds.
pub struct Loot {
    /// The file.
    pub path: PathBuf,
    /// Its own handle of the file.
    pub file: File,
    /// Its session.
    pub session: RawSession,
    /// The direct segment it attacks.
    pub segment: Segment,
    /// The grant's descriptor.
    pub fd: OwnedFd,
    /// The grant, mmapped.
    pub window: Window,
    /// It was granted for writing.
    pub writable: bool,
}

/// `Err` says what the attacker achieved.
pub type Outcome = Result<(), String>;
type Attempt = (&'static str, fn(&Loot) -> Outcome);

/// While the grant is valid.
pub const DURING: &[Attempt] = &[
    ("reading the whole window", |loot| window_shows_only_the_file(loot)),
    ("reading beyond the window", |loot| nothing_beyond_the_window(loot)),
    ("reopening the descriptor for writing", |loot| refused(OpenOptions::new().read(true).write(true).open(own_fd(&loot.fd)))),
    ("reopening the descriptor for reading", |loot| refused(File::open(own_fd(&loot.fd)))),
    ("reopening the mapping through map_files", |loot| refused(OpenOptions::new().read(true).write(true).open(map_file(loot)))),
    ("taking the grant again", |loot| refused(loot.session.take(loot.segment.grant_id, false))),
    ("taking the grant again for writing", |loot| refused(loot.session.take(loot.segment.grant_id, true))),
    ("sealing against shrinking", |loot| refused(fcntl(&loot.fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)))),
    ("sealing against writing", |loot| refused(fcntl(&loot.fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)))),
    ("growing the window", |loot| refused(ftruncate(&loot.fd, 2 * loot.window.length() as i64))),
    ("allocating behind the window", |loot| {
        refused(fallocate(&loot.fd, FallocateFlags::empty(), loot.window.length() as i64, 4096))
    }),
    ("making the window accessible to all", |loot| refused(fchmod(&loot.fd, Mode::from_bits_truncate(0o777)))),
    ("owning the window", |loot| refused(fchown(&loot.fd, Some(Uid::current()), Some(Gid::current())))),
];

/// While a grant to read is valid.
pub const DURING_READ: &[Attempt] = &[
    ("mprotect for writing", |loot| refused(loot.window.demand_write_access())),
    ("mmap for writing", |loot| refused(Window::map(&loot.fd, loot.window.length(), true))),
    ("pwrite to the grant", |loot| refused(as_file(&loot.fd)?.write_at(&[SECRET], 0))),
    ("pwrite through /proc/self/mem", |loot| {
        let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem").map_err(|error| error.to_string())?;
        refused(memory.write_at(&[SECRET], loot.window.as_ptr() as u64))
    }),
    ("shrinking the window", |loot| refused(ftruncate(&loot.fd, 0))),
    ("punching the window", |loot| refused(punch(loot.fd.as_fd()))),
    ("mapping for writing with a handle for reading", |loot| {
        let reader = open_direct(&loot.path, false).map_err(|error| error.to_string())?;
        match loot.session.map(&reader, 0, 4096, MapFlags::WRITE) {
            Ok(answer) if direct_segments(&answer).next().is_some() => Err("granted".into()),
            _ => Ok(()),
        }
    }),
];

/// After the revocation.
pub const AFTER: &[Attempt] = &[
    ("reading the old mapping", |loot| unreadable(&loot.window)),
    ("mapping the old descriptor again", |loot| {
        Window::map(&loot.fd, loot.window.length(), false).map_or(Ok(()), |again| unreadable(&again))
    }),
    ("storing through a new mapping", |loot| {
        Window::map(&loot.fd, loot.window.length(), true).map_or(Ok(()), |again| {
            let stored = again.write(0, &[SECRET]);
            if stored.is_ok() { Err("stored".into()) } else { Ok(()) }
        })
    }),
    ("growing the dead window", |loot| {
        let grown = ftruncate(&loot.fd, loot.window.length() as i64);
        refused(grown).and_then(|()| unreadable(&loot.window))
    }),
    ("writing to the dead window", |loot| {
        let written = as_file(&loot.fd)?.write_at(&[SECRET; 8], 0);
        refused(written).and_then(|()| unreadable(&loot.window))
    }),
    ("taking the dead grant", |loot| refused(loot.session.take(loot.segment.grant_id, loot.writable))),
];

/// Destroys the window as far as it goes. What succeeds here hurts nobody but those who share the file.
pub fn vandalise(loot: &Loot) {
    let length = loot.window.length() as i64;
    let outcomes = [
        loot.window.write(0, &vec![0; 4096]).is_ok(),
        punch(loot.fd.as_fd()).is_ok(),
        ftruncate(&loot.fd, 4096).is_ok(),
        ftruncate(&loot.fd, 0).is_ok(),
        ftruncate(&loot.fd, length).is_ok(),
        loot.window.write(0, &[1; 8]).is_ok(),
    ];
    let means = if loot.session.context.transport == transport::SOCKET { "socket" } else { "passthrough" };
    eprintln!("  vandalism over {means}: write, punch, shrink, empty, grow, write again succeeded: {outcomes:?}");
}

/// An operation that must fail.
pub fn refused<T, E>(result: Result<T, E>) -> Outcome {
    match result {
        Ok(_) => Err("allowed".into()),
        Err(_) => Ok(()),
    }
}

fn unreadable(window: &Window) -> Outcome {
    match readable(window) {
        0 => Ok(()),
        pages => Err(format!("{pages} pages can be read")),
    }
}

/// The window is the file's bytes, and zeros where the file has none.
fn window_shows_only_the_file(loot: &Loot) -> Outcome {
    let mut seen = vec![0; loot.window.length()];
    loot.window.read(0, &mut seen).map_err(|_| "it cannot be read")?;
    if seen.contains(&SECRET) {
        return Err("it shows bytes of another file".into());
    }
    let start = loot.segment.file_offset - loot.segment.grant_offset;
    let mut expected = vec![0; seen.len()];
    let mut done = 0;
    while done < expected.len() {
        match loot.file.read_at(&mut expected[done..], start + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) => return Err(format!("the file cannot be read: {error}")),
        }
    }
    match seen.iter().zip(&expected).position(|(seen, expected)| seen != expected) {
        None => Ok(()),
        Some(at) => Err(format!("byte {at} is {:#x} and not {:#x}; the file ends at {done}", seen[at], expected[at])),
    }
}

fn nothing_beyond_the_window(loot: &Loot) -> Outcome {
    let length = loot.window.length();
    let Ok(longer) = Window::map(&loot.fd, length + (1 << 20), false) else {
        return Ok(());
    };
    let mut page = [0; 4096];
    match (length..longer.length()).step_by(page.len()).any(|at| longer.read(at, &mut page).is_ok()) {
        true => Err("there are bytes".into()),
        false => Ok(()),
    }
}

/// Path of a descriptor in procfs.
pub fn own_fd(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn map_file(loot: &Loot) -> String {
    let start = loot.window.as_ptr() as usize;
    format!("/proc/self/map_files/{start:x}-{:x}", start + loot.window.length())
}

fn as_file(fd: &OwnedFd) -> Result<File, String> {
    Ok(File::from(fd.try_clone().map_err(|error| error.to_string())?))
}

fn punch(fd: BorrowedFd<'_>) -> nix::Result<()> {
    fallocate(fd, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 4096)
}
