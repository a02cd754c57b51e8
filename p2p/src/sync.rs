//! Locking without poisoning: a panicking thread leaves valid data behind
//! (every critical section of this crate is a handful of assignments).

use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
