//! The allocator of the C library, which Rust programs use.

/// Gives memory that is free back to the system. The allocator keeps what lies between memory in use otherwise, for ever.
pub fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
