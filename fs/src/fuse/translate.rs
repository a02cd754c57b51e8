//! Between the kernel's types and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{Errno, FileAttr, FileType, INodeNo, TimeOrNow};

use crate::error::FsError;
use crate::types::{Attr, Caller, OpenFlags, SetTime, Timestamp};

/// How long the kernel may keep attributes and entries. The server is the only
/// one that changes the volume and tells the kernel of what it does not see.
pub const TTL: Duration = Duration::from_secs(3600);

/// Error number for the kernel.
pub fn errno(error: &FsError) -> Errno {
    Errno::from_i32(error.code())
}

/// Identity of a request's caller.
pub fn caller(request: &fuser::Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), tid: request.pid(), umask: 0 }
}

/// Type bits of a mode as the kernel's file type.
pub fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// Attributes for the kernel.
pub fn attributes(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.crtime),
        kind: file_type(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// The standard library's time of a timestamp.
pub fn system_time(time: Timestamp) -> SystemTime {
    let nanoseconds = Duration::from_nanos(u64::from(time.nanoseconds));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    if time.seconds >= 0 { UNIX_EPOCH + seconds + nanoseconds } else { UNIX_EPOCH - seconds + nanoseconds }
}

/// A time that the kernel sent. fuser turns seconds before 1970 and the nanoseconds *after* them into a time
/// that lies the nanoseconds *before* them; this undoes it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { seconds: after.as_secs() as i64, nanoseconds: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Timestamp { seconds: -(before.as_secs() as i64), nanoseconds: before.subsec_nanos() }
        }
    }
}

/// A time to set.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// Flags of open(2). O_DIRECT with O_NONBLOCK, which means nothing else on a
/// regular file, is how the mapping client asks for a direct handle.
pub fn open_flags(flags: i32) -> OpenFlags {
    let access = flags & libc::O_ACCMODE;
    let direct = libc::O_DIRECT | libc::O_NONBLOCK;
    OpenFlags {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        append: flags & libc::O_APPEND != 0,
        direct: flags & direct == direct,
        no_atime: flags & libc::O_NOATIME != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: [(i64, u32); 6] = [(0, 0), (1, 999_999_999), (-1, 0), (-1, 1), (-2_147_483_649, 500), (4_294_967_296, 7)];

    #[test]
    fn times_from_the_kernel() {
        for (seconds, nanoseconds) in TIMES {
            // As fuser 0.18 makes it of the two numbers in the request.
            let whole = Duration::new(seconds.unsigned_abs(), nanoseconds);
            let sent = if seconds >= 0 { UNIX_EPOCH + whole } else { UNIX_EPOCH - whole };
            assert_eq!(timestamp(sent), Timestamp { seconds, nanoseconds });
        }
    }

    #[test]
    fn times_for_the_kernel() {
        for (seconds, nanoseconds) in TIMES {
            let time = system_time(Timestamp { seconds, nanoseconds });
            let whole = Duration::from_secs(seconds.unsigned_abs());
            let floor = if seconds >= 0 { UNIX_EPOCH + whole } else { UNIX_EPOCH - whole };
            assert_eq!(time.duration_since(floor).ok(), Some(Duration::from_nanos(nanoseconds.into())));
        }
    }
}
