//! Device registers and device memory, which vanish when the device is removed.
//!
//! VFIO then takes the mapping away and an access raises SIGBUS, as it also does
//! while the device's memory space is disabled. So the accesses are guarded as
//! those of `guarded` are. Each is exactly one access of the width asked for;
//! bulk copies go 8 bytes at a time, which rep movsb on uncached memory does not.
//! Elsewhere than on x86_64 they are volatile and a removed device ends the process:
//! the kernel does not copy from device memory on our behalf as it does from a window.
//! Only x86_64 has been tried on a device, and its ordering is what `Bar` promises.

pub(crate) use arch::*;

#[cfg(target_arch = "x86_64")]
mod arch {
    use crate::guarded::Fault;
    use crate::routine::routine;

    routine!("peerfs_mmio_load32": "", "mov edx, [rdi]", "mov [rsi], edx");
    routine!("peerfs_mmio_load64": "", "mov rdx, [rdi]", "mov [rsi], rdx");
    routine!("peerfs_mmio_store32": "", "mov [rdi], esi", "");
    routine!("peerfs_mmio_store64": "", "mov [rdi], rsi", "");
    std::arch::global_asm!(
        ".pushsection .text.peerfs_guarded,\"ax\",@progbits",
        ".hidden peerfs_mmio_copy",
        ".globl peerfs_mmio_copy",
        ".type peerfs_mmio_copy,@function",
        "peerfs_mmio_copy:",
        "mov rcx, rdx",
        ".hidden peerfs_mmio_copy_access",
        ".globl peerfs_mmio_copy_access",
        "peerfs_mmio_copy_access:",
        "rep movsq",
        ".hidden peerfs_mmio_copy_landing",
        ".globl peerfs_mmio_copy_landing",
        "peerfs_mmio_copy_landing:",
        "mov rax, rcx",
        "ret",
        ".size peerfs_mmio_copy,.-peerfs_mmio_copy",
        ".popsection",
    );

    unsafe extern "sysv64" {
        fn peerfs_mmio_load32(source: *const u32, target: *mut u32) -> u32;
        fn peerfs_mmio_load64(source: *const u64, target: *mut u64) -> u32;
        fn peerfs_mmio_store32(target: *mut u32, value: u32) -> u32;
        fn peerfs_mmio_store64(target: *mut u64, value: u64) -> u32;
        /// Returns the number of words that were not copied.
        fn peerfs_mmio_copy(target: *mut u8, source: *const u8, words: usize) -> usize;
        static peerfs_mmio_load32_access: u8;
        static peerfs_mmio_load32_landing: u8;
        static peerfs_mmio_load64_access: u8;
        static peerfs_mmio_load64_landing: u8;
        static peerfs_mmio_store32_access: u8;
        static peerfs_mmio_store32_landing: u8;
        static peerfs_mmio_store64_access: u8;
        static peerfs_mmio_store64_landing: u8;
        static peerfs_mmio_copy_access: u8;
        static peerfs_mmio_copy_landing: u8;
    }

    /// Where each instruction that may fault is, and where to continue then. Used in a signal handler.
    pub(crate) fn landings() -> [(*const u8, *const u8); 5] {
        [
            (&raw const peerfs_mmio_load32_access, &raw const peerfs_mmio_load32_landing),
            (&raw const peerfs_mmio_load64_access, &raw const peerfs_mmio_load64_landing),
            (&raw const peerfs_mmio_store32_access, &raw const peerfs_mmio_store32_landing),
            (&raw const peerfs_mmio_store64_access, &raw const peerfs_mmio_store64_landing),
            (&raw const peerfs_mmio_copy_access, &raw const peerfs_mmio_copy_landing),
        ]
    }

    /// # Safety
    /// `source` is an aligned word in a mapping of this process (that may fault with SIGBUS).
    pub(crate) unsafe fn load32(source: *const u32) -> Result<u32, Fault> {
        let mut value = 0;
        // SAFETY: the caller's promise; value is a valid target.
        done(unsafe { peerfs_mmio_load32(source, &mut value) }).map(|()| value)
    }

    /// # Safety
    /// As `load32`.
    pub(crate) unsafe fn load64(source: *const u64) -> Result<u64, Fault> {
        let mut value = 0;
        // SAFETY: the caller's promise; value is a valid target.
        done(unsafe { peerfs_mmio_load64(source, &mut value) }).map(|()| value)
    }

    /// # Safety
    /// `target` is an aligned word in a writable mapping of this process (that may fault with SIGBUS).
    pub(crate) unsafe fn store32(target: *mut u32, value: u32) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        done(unsafe { peerfs_mmio_store32(target, value) })
    }

    /// # Safety
    /// As `store32`.
    pub(crate) unsafe fn store64(target: *mut u64, value: u64) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        done(unsafe { peerfs_mmio_store64(target, value) })
    }

    /// Copies `words` of 8 bytes, to or from device memory.
    ///
    /// # Safety
    /// Both ranges are mapped in this process (and may fault with SIGBUS), the target writable, and they do not overlap.
    pub(crate) unsafe fn copy_words(target: *mut u8, source: *const u8, words: usize) -> Result<(), Fault> {
        // SAFETY: the caller's promise; a SIGBUS on the way ends at the landing with the rest in rcx.
        match unsafe { peerfs_mmio_copy(target, source, words) } {
            0 => Ok(()),
            _ => Err(Fault),
        }
    }

    /// Copies single bytes, to or from device memory.
    ///
    /// # Safety
    /// As `copy_words`.
    pub(crate) unsafe fn copy_bytes(target: *mut u8, source: *const u8, length: usize) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        unsafe { crate::guarded::copy_bytes(target, source, length) }
    }

    fn done(faulted: u32) -> Result<(), Fault> {
        match faulted {
            0 => Ok(()),
            _ => Err(Fault),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod arch {
    use crate::guarded::Fault;

    /// # Safety
    /// `source` is an aligned word in a mapping of this process.
    pub(crate) unsafe fn load32(source: *const u32) -> Result<u32, Fault> {
        // SAFETY: the caller's promise.
        Ok(unsafe { source.read_volatile() })
    }

    /// # Safety
    /// As `load32`.
    pub(crate) unsafe fn load64(source: *const u64) -> Result<u64, Fault> {
        // SAFETY: the caller's promise.
        Ok(unsafe { source.read_volatile() })
    }

    /// # Safety
    /// `target` is an aligned word in a writable mapping of this process.
    pub(crate) unsafe fn store32(target: *mut u32, value: u32) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        unsafe { target.write_volatile(value) };
        Ok(())
    }

    /// # Safety
    /// As `store32`.
    pub(crate) unsafe fn store64(target: *mut u64, value: u64) -> Result<(), Fault> {
        // SAFETY: the caller's promise.
        unsafe { target.write_volatile(value) };
        Ok(())
    }

    /// Copies `words` of 8 bytes, to or from device memory. The device's side is aligned.
    ///
    /// # Safety
    /// Both ranges are mapped in this process, the target writable, and they do not overlap.
    pub(crate) unsafe fn copy_words(target: *mut u8, source: *const u8, words: usize) -> Result<(), Fault> {
        for at in 0..words {
            let (target, source) = (target.cast::<[u8; 8]>().wrapping_add(at), source.cast::<[u8; 8]>().wrapping_add(at));
            // SAFETY: the caller's promise; whichever side is aligned is accessed as a word.
            unsafe {
                match (target.cast::<u64>().is_aligned(), source.cast::<u64>().is_aligned()) {
                    (_, true) => target.write_volatile(source.cast::<u64>().read_volatile().to_ne_bytes()),
                    (true, false) => target.cast::<u64>().write_volatile(u64::from_ne_bytes(source.read_volatile())),
                    (false, false) => target.write_volatile(source.read_volatile()),
                }
            }
        }
        Ok(())
    }

    /// Copies single bytes, to or from device memory.
    ///
    /// # Safety
    /// As `copy_words`.
    pub(crate) unsafe fn copy_bytes(target: *mut u8, source: *const u8, length: usize) -> Result<(), Fault> {
        for at in 0..length {
            // SAFETY: the caller's promise.
            unsafe { target.wrapping_add(at).write_volatile(source.wrapping_add(at).read_volatile()) };
        }
        Ok(())
    }
}
