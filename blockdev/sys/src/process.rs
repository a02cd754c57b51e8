//! Looking into another process, with its or the kernel's consent: its
//! descriptors and what the page cache holds of them.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Pages of a range in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheState {
    /// Pages present.
    pub cached: u64,
    /// Of these, pages not yet written back.
    pub dirty: u64,
}

/// struct cachestat_range, include/uapi/linux/mman.h.
#[repr(C)]
struct CachestatRange {
    offset: u64,
    length: u64,
}

/// struct cachestat, include/uapi/linux/mman.h.
#[repr(C)]
struct Cachestat {
    cache: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Not in libc for every target yet; the number is the same on all of them.
const SYS_CACHESTAT: libc::c_long = 451;

/// What the page cache holds of `length` bytes at `offset` of an open file (0: to the end). Linux 6.5 and later.
pub fn cachestat(file: BorrowedFd<'_>, offset: u64, length: u64) -> io::Result<CacheState> {
    let range = CachestatRange { offset, length };
    let mut out = MaybeUninit::<Cachestat>::zeroed();
    // SAFETY: both pointers are valid for the call; the kernel writes at most one struct cachestat.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, out.as_mut_ptr(), 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, and integers have no invalid values.
    let out = unsafe { out.assume_init() };
    Ok(CacheState { cached: out.cache, dirty: out.dirty + out.writeback })
}

/// A duplicate of descriptor `fd` of process `pid`. Needs the right to trace it.
pub fn duplicate_descriptor(pid: u32, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes integers, returns a descriptor or -1.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if pidfd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as i32) };
    // SAFETY: takes integers, returns a descriptor or -1.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as i32) })
}

/// What descriptor `fd` of process `pid` is open on, as a descriptor that only names it (O_PATH). Unlike with
/// [`duplicate_descriptor`], neither getting nor closing it asks the filesystem behind it anything: that may be one
/// which its owner serves, and which never answers. Needs the right to trace the process.
pub fn name_descriptor(pid: u32, fd: i32) -> io::Result<OwnedFd> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC);
    Ok(options.open(format!("/proc/{pid}/fd/{fd}"))?.into())
}

/// Device and inode number of a file, from what the kernel knows: its filesystem is not asked.
pub fn identity(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    // SAFETY: the path is a terminated string; the kernel writes at most one struct statx.
    let result = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, 0, out.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, and integers have no invalid values.
    let out = unsafe { out.assume_init() };
    Ok((libc::makedev(out.stx_dev_major, out.stx_dev_minor), out.stx_ino))
}

/// Opens for reading what a descriptor names.
pub fn open_named(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

/// Do two processes run in one address space at this moment? Needs the right to look into both.
pub fn same_address_space(one: u32, other: u32) -> io::Result<bool> {
    /// include/uapi/linux/kcmp.h; the numbers of the descriptors do not count for it.
    const KCMP_VM: libc::c_long = 1;
    let pid = |pid: u32| libc::c_long::from(pid);
    // SAFETY: takes integers, returns an order or -1.
    match unsafe { libc::syscall(libc::SYS_kcmp, pid(one), pid(other), KCMP_VM, 0_u64, 0_u64) } {
        0 => Ok(true),
        order if order > 0 => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The process (thread group) that a thread belongs to.
pub fn thread_group(tid: u32) -> io::Result<u32> {
    let group = status_field(tid, "Tgid")?;
    group.parse().map_err(|_| io::Error::other(format!("the Tgid of /proc/{tid}/status is no number: {group}")))
}

/// The supplementary groups of a thread.
pub fn supplementary_groups(tid: u32) -> io::Result<Vec<u32>> {
    let groups = status_field(tid, "Groups")?;
    Ok(groups.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect())
}

/// A line of a thread's status (proc_pid_status(5)).
fn status_field(tid: u32, name: &str) -> io::Result<String> {
    let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .ok_or_else(|| io::Error::other(format!("/proc/{tid}/status has no line {name}")))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn own_descriptors_and_threads_are_found() {
        let file = fs::File::open("/proc/self/status").expect("procfs");
        let copy = duplicate_descriptor(std::process::id(), file.as_raw_fd()).expect("own process");
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        // SAFETY: gettid takes nothing and cannot fail.
        let tid = std::thread::spawn(|| unsafe { libc::gettid() }).join().expect("thread");
        assert!(thread_group(tid as u32).is_err() || thread_group(tid as u32).ok() == Some(std::process::id()));
        assert_eq!(thread_group(std::process::id()).expect("own process"), std::process::id());
        assert!(duplicate_descriptor(std::process::id(), 1_000_000).is_err());
        let mut groups = supplementary_groups(std::process::id()).expect("own process");
        groups.sort_unstable();
        let mut expected: Vec<u32> =
            nix::unistd::getgroups().expect("getgroups").into_iter().map(|group| group.as_raw()).collect();
        expected.sort_unstable();
        assert_eq!(groups, expected);
    }

    #[test]
    fn a_named_descriptor_is_the_file_and_no_more() {
        use std::io::Read;
        use std::os::unix::fs::MetadataExt;
        let file = fs::File::open("/proc/self/status").expect("procfs");
        let named = name_descriptor(std::process::id(), file.as_raw_fd()).expect("own process");
        let metadata = file.metadata().expect("stat");
        assert_eq!(identity(named.as_fd()).expect("statx"), (metadata.dev(), metadata.ino()));
        let mut opened = fs::File::from(open_named(named.as_fd()).expect("it may be read"));
        assert!(fs::File::from(named).read(&mut [0]).is_err(), "it only names the file");
        assert_eq!(opened.read(&mut [0]).expect("read"), 1);
        assert!(name_descriptor(std::process::id(), -1).is_err());
    }

    #[test]
    fn written_pages_are_in_the_cache() {
        let path = std::env::temp_dir().join(format!("peerfs-cachestat-{}", std::process::id()));
        fs::write(&path, vec![7; 3 * 4096]).expect("temporary file");
        let file = fs::File::open(&path).expect("just written");
        let state = cachestat(file.as_fd(), 0, 0).expect("Linux 6.5 or later");
        fs::remove_file(&path).expect("just written");
        assert_eq!(state.cached, 3);
    }
}
