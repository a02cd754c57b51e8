//! Atomic operations on window memory that may be taken away at any instant.
//!
//! As with the copies of `guarded`, the access is one instruction at a known
//! address. A locked read-modify-write either faults before it has changed
//! anything or completes, so a fault proves that the operation did not take
//! place, and its absence that the memory holds it. Such an instruction exists
//! on x86_64 only; elsewhere [`ATOMICS`] is false and nothing is done.

use crate::Window;
use crate::guarded::Fault;

pub use arch::AtomicWord;

/// Can this processor do guarded atomic operations?
pub const ATOMICS: bool = cfg!(target_arch = "x86_64");

impl Window {
    /// Adds to the word at `offset` (wrapping) and answers what it was. Sequentially consistent.
    ///
    /// # Errors
    /// [`Fault`] when it did not take place: the word is misaligned or outside, the window read-only, the memory
    /// gone, or [`ATOMICS`] false.
    pub fn fetch_add<W: AtomicWord>(&self, offset: usize, value: W) -> Result<W, Fault> {
        let target = self.word(offset)?;
        // SAFETY: word checked that the aligned word lies in our writable mapping.
        unsafe { W::guarded_add(target, value) }
    }

    /// Stores `new` in the word at `offset` if it is `current`, and answers what it was. Sequentially consistent.
    ///
    /// # Errors
    /// As [`Window::fetch_add`].
    pub fn compare_exchange<W: AtomicWord>(&self, offset: usize, current: W, new: W) -> Result<W, Fault> {
        let target = self.word(offset)?;
        // SAFETY: word checked that the aligned word lies in our writable mapping.
        unsafe { W::guarded_exchange(target, current, new) }
    }

    fn word<W: AtomicWord>(&self, offset: usize) -> Result<*mut W, Fault> {
        let target = self.place(offset, size_of::<W>(), true)?.cast::<W>();
        match target.is_aligned() {
            true => Ok(target),
            false => Err(Fault),
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod arch {
    use super::sealed::Sealed;
    use crate::guarded::Fault;
    use crate::routine::routine;

    /// A word with atomic operations: u32 or u64.
    pub trait AtomicWord: Copy + Eq + Sealed {
        /// # Safety
        /// `target` is an aligned word in a writable mapping of this process (that may fault with SIGBUS).
        #[doc(hidden)]
        unsafe fn guarded_add(target: *mut Self, value: Self) -> Result<Self, Fault>;
        /// # Safety
        /// As `guarded_add`.
        #[doc(hidden)]
        unsafe fn guarded_exchange(target: *mut Self, current: Self, new: Self) -> Result<Self, Fault>;
    }

    routine!("peerfs_guarded_add32": "mov edx, [rsi]", "lock xadd [rdi], edx", "mov [rsi], edx");
    routine!("peerfs_guarded_add64": "mov rdx, [rsi]", "lock xadd [rdi], rdx", "mov [rsi], rdx");
    routine!("peerfs_guarded_exchange32": "mov eax, [rsi]", "lock cmpxchg [rdi], edx", "mov [rsi], eax");
    routine!("peerfs_guarded_exchange64": "mov rax, [rsi]", "lock cmpxchg [rdi], rdx", "mov [rsi], rax");

    unsafe extern "sysv64" {
        fn peerfs_guarded_add32(target: *mut u32, operand: *mut u32) -> u32;
        fn peerfs_guarded_add64(target: *mut u64, operand: *mut u64) -> u32;
        fn peerfs_guarded_exchange32(target: *mut u32, expected: *mut u32, new: u32) -> u32;
        fn peerfs_guarded_exchange64(target: *mut u64, expected: *mut u64, new: u64) -> u32;
        static peerfs_guarded_add32_access: u8;
        static peerfs_guarded_add32_landing: u8;
        static peerfs_guarded_add64_access: u8;
        static peerfs_guarded_add64_landing: u8;
        static peerfs_guarded_exchange32_access: u8;
        static peerfs_guarded_exchange32_landing: u8;
        static peerfs_guarded_exchange64_access: u8;
        static peerfs_guarded_exchange64_landing: u8;
    }

    /// Where each instruction that may fault is, and where to continue then. Used in a signal handler.
    pub(crate) fn landings() -> [(*const u8, *const u8); 4] {
        [
            (&raw const peerfs_guarded_add32_access, &raw const peerfs_guarded_add32_landing),
            (&raw const peerfs_guarded_add64_access, &raw const peerfs_guarded_add64_landing),
            (&raw const peerfs_guarded_exchange32_access, &raw const peerfs_guarded_exchange32_landing),
            (&raw const peerfs_guarded_exchange64_access, &raw const peerfs_guarded_exchange64_landing),
        ]
    }

    macro_rules! word {
        ($type:ty, $add:ident, $exchange:ident) => {
            impl AtomicWord for $type {
                unsafe fn guarded_add(target: *mut Self, value: Self) -> Result<Self, Fault> {
                    let mut operand = value;
                    // SAFETY: the caller's promise; operand is a valid place for what the word was.
                    match unsafe { $add(target, &mut operand) } {
                        0 => Ok(operand),
                        _ => Err(Fault),
                    }
                }

                unsafe fn guarded_exchange(target: *mut Self, current: Self, new: Self) -> Result<Self, Fault> {
                    let mut expected = current;
                    // SAFETY: the caller's promise; expected is a valid place for what the word was.
                    match unsafe { $exchange(target, &mut expected, new) } {
                        0 => Ok(expected),
                        _ => Err(Fault),
                    }
                }
            }
        };
    }

    word!(u32, peerfs_guarded_add32, peerfs_guarded_exchange32);
    word!(u64, peerfs_guarded_add64, peerfs_guarded_exchange64);
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) mod arch {
    use super::sealed::Sealed;
    use crate::guarded::Fault;

    /// A word with atomic operations: u32 or u64.
    pub trait AtomicWord: Copy + Eq + Sealed {
        /// # Safety
        /// None: nothing is done.
        #[doc(hidden)]
        unsafe fn guarded_add(_target: *mut Self, _value: Self) -> Result<Self, Fault> {
            Err(Fault)
        }
        /// # Safety
        /// None: nothing is done.
        #[doc(hidden)]
        unsafe fn guarded_exchange(_target: *mut Self, _current: Self, _new: Self) -> Result<Self, Fault> {
            Err(Fault)
        }
    }

    impl AtomicWord for u32 {}
    impl AtomicWord for u64 {}
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::fs::File;
    use std::thread;

    use super::*;
    use crate::{Engine, RegisteredWindow};

    fn memory(length: u64) -> File {
        let fd = nix::sys::memfd::memfd_create(c"atomics", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("memfd");
        let file = File::from(fd);
        file.set_len(length).expect("room");
        file
    }

    #[test]
    fn words_of_both_widths_add_and_exchange() {
        let file = memory(4096);
        let window = Window::map(&file, 4096, true).expect("map");
        assert_eq!(window.fetch_add(8, u64::MAX), Ok(0));
        assert_eq!(window.fetch_add(8, 3_u64), Ok(u64::MAX));
        assert_eq!(window.compare_exchange(8, 9_u64, 7), Ok(2), "not equal: not stored");
        assert_eq!(window.compare_exchange(8, 2_u64, 7), Ok(2));
        assert_eq!(window.fetch_add(20, u32::MAX), Ok(0));
        assert_eq!(window.compare_exchange(20, u32::MAX, 1), Ok(u32::MAX));
        let mut bytes = [0; 24];
        window.read(0, &mut bytes).expect("read");
        assert_eq!((bytes[8], bytes[16], bytes[20]), (7, 0, 1), "neighbours are not touched");
        assert_eq!(window.fetch_add(4, 1_u64), Err(Fault), "misaligned");
        assert_eq!(window.fetch_add(4096, 1_u32), Err(Fault), "outside");
        let reader = Window::map(&file, 4096, false).expect("map");
        assert_eq!(reader.fetch_add(0, 1_u64), Err(Fault), "read-only");
        file.set_len(0).expect("cut");
        assert_eq!(window.fetch_add(8, 1_u64), Err(Fault));
        assert_eq!(window.compare_exchange(8, 7_u64, 1), Err(Fault));
    }

    /// What the server relies on: an addition that was not reported as a fault is in the pages that it writes back.
    #[test]
    fn a_cut_loses_no_addition_that_was_reported_as_done() {
        let engine = Engine::new().expect("io_uring");
        for _ in 0..20 {
            let memory = RegisteredWindow::create(&engine, 4096).expect("window");
            let adder = |word: usize| {
                let window = Window::map(memory.reopen(true).expect("reopen"), 4096, true).expect("map");
                move || {
                    let mut done = 0_u64;
                    while window.fetch_add(word, 1_u64).is_ok() {
                        done += 1;
                    }
                    done
                }
            };
            let sums: Vec<u64> = thread::scope(|scope| {
                let adders = [0, 0, 8].map(|word| scope.spawn(adder(word)));
                thread::yield_now();
                memory.truncate_to_zero().expect("cut");
                adders.map(|adder| adder.join().expect("no panic")).into()
            });
            let mut words = [0; 16];
            memory.read(0, &mut words).expect("the pages are held");
            let word = |at: usize| u64::from_ne_bytes(words[at..at + 8].try_into().expect("8 bytes"));
            assert_eq!((word(0), word(8)), (sums[0] + sums[1], sums[2]));
        }
    }
}
