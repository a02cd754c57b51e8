//! Writing cache lines back to memory, so that what was stored survives a power failure.
//!
//! A store to persistent memory is durable only once it has left the processor's
//! caches. CLFLUSHOPT (CLFLUSH where the processor has no other) writes a line back;
//! SFENCE makes that complete. SFENCE orders what *its own* processor did before,
//! so whoever stores must flush and fence in the same call: no later barrier in
//! another thread can do it for him. (Intel SDM volume 2, CLFLUSHOPT and SFENCE.)
//!
//! Not CLWB, which keeps the line: it gains only where data is read again at once.
//! Not non-temporal stores instead of copy and flush: they need aligned data, and
//! what others stored to the same memory has to be flushed anyway.
//!
//! CLFLUSH faults as a load does, so it is guarded like a copy ([`crate::guarded`]).

use crate::guarded::Fault;

/// This build can make stores to persistent memory durable.
pub(crate) const CAN_FLUSH: bool = cfg!(target_arch = "x86_64");

/// Returns when `length` bytes from `start` on, as they are in the caches now, are in memory.
///
/// # Safety
/// The bytes are a mapping of this process (that may fault with SIGBUS).
pub(crate) unsafe fn to_memory(start: *const u8, length: usize) -> Result<(), Fault> {
    // SAFETY: the caller's promise.
    unsafe { arch::to_memory(start, length) }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod arch {
    use std::arch::global_asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    use super::Fault;

    /// No x86_64 processor has shorter lines.
    const LINE_BYTES: usize = 64;
    /// CPUID leaf 7, subleaf 0, EBX.
    const HAS_CLFLUSHOPT: u32 = 1 << 23;

    // Each routine has exactly one instruction that may fault; the landing follows, with what is left in rsi.
    macro_rules! routine {
        ($name:literal, $instruction:literal) => {
            global_asm!(
                ".pushsection .text.peerfs_guarded,\"ax\",@progbits",
                concat!(".hidden peerfs_guarded_", $name),
                concat!(".globl peerfs_guarded_", $name),
                concat!(".type peerfs_guarded_", $name, ",@function"),
                concat!("peerfs_guarded_", $name, ":"),
                concat!(".hidden peerfs_guarded_", $name, "_access"),
                concat!(".globl peerfs_guarded_", $name, "_access"),
                concat!("peerfs_guarded_", $name, "_access:"),
                concat!($instruction, " [rdi]"),
                "add rdi, 64",
                "dec rsi",
                concat!("jnz peerfs_guarded_", $name, "_access"),
                "sfence",
                concat!(".hidden peerfs_guarded_", $name, "_landing"),
                concat!(".globl peerfs_guarded_", $name, "_landing"),
                concat!("peerfs_guarded_", $name, "_landing:"),
                "mov rax, rsi",
                "ret",
                concat!(".size peerfs_guarded_", $name, ",.-peerfs_guarded_", $name),
                ".popsection",
            );
        };
    }
    routine!("clflush", "clflush");
    routine!("clflushopt", "clflushopt");

    unsafe extern "sysv64" {
        /// Both: flush `lines` lines, at least one, and return how many were not.
        fn peerfs_guarded_clflush(start: *const u8, lines: usize) -> usize;
        fn peerfs_guarded_clflushopt(start: *const u8, lines: usize) -> usize;
        static peerfs_guarded_clflush_access: u8;
        static peerfs_guarded_clflush_landing: u8;
        static peerfs_guarded_clflushopt_access: u8;
        static peerfs_guarded_clflushopt_landing: u8;
    }

    /// Where each instruction that may fault is, and where to continue then. Used in a signal handler.
    pub(crate) fn landings() -> [(*const u8, *const u8); 2] {
        [
            (&raw const peerfs_guarded_clflush_access, &raw const peerfs_guarded_clflush_landing),
            (&raw const peerfs_guarded_clflushopt_access, &raw const peerfs_guarded_clflushopt_landing),
        ]
    }

    fn has_clflushopt() -> bool {
        static HAS: OnceLock<bool> = OnceLock::new();
        *HAS.get_or_init(|| __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & HAS_CLFLUSHOPT != 0)
    }

    /// # Safety
    /// The bytes are mapped in this process.
    pub(super) unsafe fn to_memory(start: *const u8, length: usize) -> Result<(), Fault> {
        if length == 0 {
            return Ok(());
        }
        let into_line = start.addr() % LINE_BYTES;
        let lines = (into_line + length).div_ceil(LINE_BYTES);
        let first = start.wrapping_sub(into_line);
        let left = match has_clflushopt() {
            // SAFETY: the lines hold at least one of the caller's bytes each, so they are mapped; a SIGBUS ends at the landing.
            true => unsafe { peerfs_guarded_clflushopt(first, lines) },
            // SAFETY: as above.
            false => unsafe { peerfs_guarded_clflush(first, lines) },
        };
        if left == 0 { Ok(()) } else { Err(Fault) }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn both_instructions_flush_what_is_mapped() {
            let bytes = [7_u8; 1000];
            for (start, length) in [(0, 1), (63, 2), (1, 999), (5, 0)] {
                // SAFETY: the range lies in `bytes`.
                assert_eq!(unsafe { to_memory(bytes[start..].as_ptr(), length) }, Ok(()));
            }
            // SAFETY: one line that holds a byte of `bytes`.
            assert_eq!(unsafe { peerfs_guarded_clflush(bytes.as_ptr(), 1) }, 0);
            assert_eq!(bytes, [7; 1000]);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod arch {
    use super::Fault;

    /// # Safety
    /// Touches nothing.
    pub(super) unsafe fn to_memory(_start: *const u8, _length: usize) -> Result<(), Fault> {
        Err(Fault)
    }
}
