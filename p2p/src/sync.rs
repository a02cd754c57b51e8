//! Locks, atomics, threads and tables of this crate. They are the standard
//! library's and dashmap's. Under `cfg(shuttle)`, which only the test target of
//! `p2p/shuttle` sets, they are shuttle's: it then chooses which thread goes on at
//! each of them.
//!
//! Whatever decides who may go on comes from here. What only counts (the ledger)
//! or hints, and what is set once before there are threads, stays the standard
//! library's: it would add schedules, and nothing to find in them.
//!
//! Locking is without poisoning: a panicking thread leaves valid data behind
//! (every critical section of this crate is a handful of assignments).

use std::io;
use std::sync::PoisonError;

#[cfg(shuttle)]
mod table;

#[cfg(not(shuttle))]
pub(crate) use dashmap::DashMap;
#[cfg(shuttle)]
pub(crate) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread,
};
#[cfg(not(shuttle))]
pub(crate) use std::{
    sync::{Condvar, Mutex, MutexGuard, atomic, mpsc},
    thread,
};
#[cfg(shuttle)]
pub(crate) use table::DashMap;

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A named thread of a scope.
///
/// # Errors
/// No thread can be had.
#[cfg(not(shuttle))]
pub(crate) fn spawn_scoped<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() + Send + 'scope,
) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn_scoped(scope, work).map(drop)
}

/// As the other one. Shuttle's threads of a scope have no names.
#[cfg(shuttle)]
pub(crate) fn spawn_scoped<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    _name: &str,
    work: impl FnOnce() + Send + 'scope,
) -> io::Result<()> {
    scope.spawn(work);
    Ok(())
}
