//! How often the kernel asked for what. Cheap enough to be counted always.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! request_kinds {
    ($($kind:ident = $name:literal,)*) => {
        /// What the kernel asks a filesystem for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "FUSE names them")]
        pub enum RequestKind {
            $($kind,)*
        }

        impl RequestKind {
            /// Every kind, in the order of their numbers.
            pub const ALL: [RequestKind; [$($name),*].len()] = [$(RequestKind::$kind),*];

            /// Its name in logs and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(RequestKind::$kind => $name,)*
                }
            }
        }
    };
}

request_kinds! {
    Create = "create",
    Fallocate = "fallocate",
    Fsync = "fsync",
    Fsyncdir = "fsyncdir",
    Getattr = "getattr",
    Getxattr = "getxattr",
    Ioctl = "ioctl",
    Link = "link",
    Listxattr = "listxattr",
    Lookup = "lookup",
    Lseek = "lseek",
    Mkdir = "mkdir",
    Mknod = "mknod",
    Open = "open",
    Opendir = "opendir",
    Poll = "poll",
    Read = "read",
    Readdir = "readdir",
    Readdirplus = "readdirplus",
    Readlink = "readlink",
    Release = "release",
    Releasedir = "releasedir",
    Removexattr = "removexattr",
    Rename = "rename",
    Rmdir = "rmdir",
    Setattr = "setattr",
    Setxattr = "setxattr",
    Statfs = "statfs",
    Symlink = "symlink",
    Unlink = "unlink",
    Write = "write",
}

/// Requests since the mount, by kind.
#[derive(Debug)]
pub struct RequestCounts([AtomicU64; RequestKind::ALL.len()]);

impl Default for RequestCounts {
    fn default() -> Self {
        RequestCounts(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl RequestCounts {
    /// One more.
    pub fn add(&self, kind: RequestKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self, kind: RequestKind) -> u64 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_counter_and_a_name_of_its_own() {
        let counts = RequestCounts::default();
        for (number, kind) in RequestKind::ALL.into_iter().enumerate() {
            (0..=number).for_each(|_| counts.add(kind));
        }
        for (number, kind) in RequestKind::ALL.into_iter().enumerate() {
            assert_eq!(counts.get(kind), number as u64 + 1, "{}", kind.name());
            assert_eq!(RequestKind::ALL.iter().filter(|other| other.name() == kind.name()).count(), 1);
        }
    }
}
