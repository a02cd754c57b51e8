//! Copies from and to memory that may be taken away at any instant.
//!
//! A server revokes a window by truncating the file behind it; an access then
//! raises SIGBUS. Asking first cannot help: the cut may come between question
//! and access. So the access itself is guarded. On x86_64 it is a single
//! instruction at a known address, and a process-wide SIGBUS handler continues
//! behind it; signals of any other origin go to whoever handled them before.
//! Elsewhere the kernel copies (process_vm_readv(2) on the process itself), which
//! answers EFAULT.
//!
//! A program that installs a SIGBUS handler later and does not chain to ours, or
//! blocks SIGBUS, loses the protection.

use std::io;

/// The access did not (completely) take place: the memory is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// Makes guarded copies safe to use in this process. Cheap after the first call.
///
/// # Errors
/// What sigaction(2) answers.
pub(crate) fn prepare() -> io::Result<()> {
    arch::prepare()
}

/// Copies from memory that may vanish.
///
/// # Safety
/// `[source, source + target.len())` is a mapping of this process (that may fault with SIGBUS) and does not overlap `target`.
pub(crate) unsafe fn copy_from(target: &mut [u8], source: *const u8) -> Result<(), Fault> {
    // SAFETY: target is writable memory; the source is the caller's promise.
    unsafe { arch::copy(target.as_mut_ptr(), source, target.len(), arch::Side::Source) }
}

/// Copies to memory that may vanish. After a fault any part of it may have been written.
///
/// # Safety
/// `[target, target + source.len())` is a writable mapping of this process (that may fault with SIGBUS) and does not overlap `source`.
pub(crate) unsafe fn copy_to(target: *mut u8, source: &[u8]) -> Result<(), Fault> {
    // SAFETY: source is readable memory; the target is the caller's promise.
    unsafe { arch::copy(target, source.as_ptr(), source.len(), arch::Side::Target) }
}

/// Copies single bytes where either side may vanish.
///
/// # Safety
/// Both ranges are mapped in this process (and may fault with SIGBUS), the target writable, and they do not overlap.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn copy_bytes(target: *mut u8, source: *const u8, length: usize) -> Result<(), Fault> {
    // SAFETY: the caller's promise.
    unsafe { arch::copy(target, source, length, arch::Side::Source) }
}

/// Loads a naturally aligned word that another process stores.
///
/// # Safety
/// `source` is aligned and lies in a mapping of this process (that may fault with SIGBUS).
pub(crate) unsafe fn load(source: *const u64) -> Result<u64, Fault> {
    // SAFETY: the caller's promise.
    unsafe { arch::load(source) }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use std::arch::global_asm;
    use std::io;
    use std::sync::OnceLock;

    use super::Fault;
    use crate::sigbus;

    // Each routine has exactly one instruction that may fault; the landing follows.
    // The System V ABI guarantees a clear direction flag.
    global_asm!(
        ".pushsection .text.peerfs_guarded,\"ax\",@progbits",
        ".hidden peerfs_guarded_copy",
        ".globl peerfs_guarded_copy",
        ".type peerfs_guarded_copy,@function",
        "peerfs_guarded_copy:",
        "mov rcx, rdx",
        ".hidden peerfs_guarded_copy_access",
        ".globl peerfs_guarded_copy_access",
        "peerfs_guarded_copy_access:",
        "rep movsb",
        ".hidden peerfs_guarded_copy_landing",
        ".globl peerfs_guarded_copy_landing",
        "peerfs_guarded_copy_landing:",
        "mov rax, rcx",
        "ret",
        ".size peerfs_guarded_copy,.-peerfs_guarded_copy",
        ".hidden peerfs_guarded_load",
        ".globl peerfs_guarded_load",
        ".type peerfs_guarded_load,@function",
        "peerfs_guarded_load:",
        "mov eax, 1",
        ".hidden peerfs_guarded_load_access",
        ".globl peerfs_guarded_load_access",
        "peerfs_guarded_load_access:",
        "mov rdx, [rdi]",
        "mov [rsi], rdx",
        "xor eax, eax",
        ".hidden peerfs_guarded_load_landing",
        ".globl peerfs_guarded_load_landing",
        "peerfs_guarded_load_landing:",
        "ret",
        ".size peerfs_guarded_load,.-peerfs_guarded_load",
        ".popsection",
    );

    unsafe extern "sysv64" {
        /// Returns the number of bytes that were not copied.
        fn peerfs_guarded_copy(target: *mut u8, source: *const u8, length: usize) -> usize;
        /// Returns 0, or 1 after a fault.
        fn peerfs_guarded_load(source: *const u64, target: *mut u64) -> u32;
        static peerfs_guarded_copy_access: u8;
        static peerfs_guarded_copy_landing: u8;
        static peerfs_guarded_load_access: u8;
        static peerfs_guarded_load_landing: u8;
    }

    /// Which side may fault; here either may.
    pub(super) enum Side {
        Source,
        Target,
    }

    pub(super) fn prepare() -> io::Result<()> {
        static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
        let installed =
            INSTALLED.get_or_init(|| sigbus::install(landing).map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
        installed.map_err(io::Error::from_raw_os_error)
    }

    /// Where to continue when the instruction at `address` faults.
    fn landing(address: usize) -> Option<usize> {
        let pairs = [
            (&raw const peerfs_guarded_copy_access, &raw const peerfs_guarded_copy_landing),
            (&raw const peerfs_guarded_load_access, &raw const peerfs_guarded_load_landing),
        ];
        let others = crate::atomics::arch::landings().into_iter().chain(crate::mmio::landings());
        let mut pairs = pairs.into_iter().chain(others).chain(crate::flush::arch::landings());
        let (_, landing) = pairs.find(|(access, _)| access.addr() == address)?;
        Some(landing.addr())
    }

    /// # Safety
    /// Both ranges are mapped in this process, the target writable, and they do not overlap.
    pub(super) unsafe fn copy(target: *mut u8, source: *const u8, length: usize, _side: Side) -> Result<(), Fault> {
        // SAFETY: the caller's promise; a SIGBUS on the way ends at the landing with the rest in rcx.
        match unsafe { peerfs_guarded_copy(target, source, length) } {
            0 => Ok(()),
            _ => Err(Fault),
        }
    }

    /// # Safety
    /// The source is aligned and mapped in this process.
    pub(super) unsafe fn load(source: *const u64) -> Result<u64, Fault> {
        let mut value = 0;
        // SAFETY: the caller's promise; value is a valid target. Aligned loads of 8 bytes are atomic and acquire here.
        match unsafe { peerfs_guarded_load(source, &mut value) } {
            0 => Ok(value),
            _ => Err(Fault),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod arch {
    use std::io;
    use std::sync::atomic::{Ordering, fence};

    use super::Fault;

    /// Which side may fault and is therefore reached by the kernel.
    pub(super) enum Side {
        Source,
        Target,
    }

    pub(super) fn prepare() -> io::Result<()> {
        Ok(())
    }

    /// # Safety
    /// Both ranges are mapped in this process, the target writable, and they do not overlap.
    pub(super) unsafe fn copy(target: *mut u8, source: *const u8, length: usize, side: Side) -> Result<(), Fault> {
        let target = libc::iovec { iov_base: target.cast(), iov_len: length };
        let source = libc::iovec { iov_base: source.cast_mut().cast(), iov_len: length };
        // SAFETY: getpid has no preconditions.
        let pid = unsafe { libc::getpid() };
        let moved = match side {
            // SAFETY: the caller's promise; the kernel checks the remote side.
            Side::Source => unsafe { libc::process_vm_readv(pid, &target, 1, &source, 1, 0) },
            // SAFETY: as above.
            Side::Target => unsafe { libc::process_vm_writev(pid, &source, 1, &target, 1, 0) },
        };
        match usize::try_from(moved) {
            Ok(moved) if moved == length => Ok(()),
            _ => Err(Fault),
        }
    }

    /// # Safety
    /// The source is aligned and mapped in this process.
    pub(super) unsafe fn load(source: *const u64) -> Result<u64, Fault> {
        let mut value = [0; 8];
        // SAFETY: the caller's promise; value has the size of the word.
        unsafe { copy(value.as_mut_ptr(), source.cast(), 8, Side::Source) }?;
        fence(Ordering::Acquire);
        Ok(u64::from_ne_bytes(value))
    }
}
