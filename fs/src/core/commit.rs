//! When changes become durable: every few seconds, on fsync, and when many wait.
//!
//! A failed commit makes the volume read-only: nobody could say any more what is durable.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use super::handles::OpenFile;
use super::inode::Inode;
use super::meta::Txn;
use super::{Core, FsError, Result};
use crate::store::StoreError;
use crate::sync::lock;

/// Uncommitted changes that wake the commit thread.
const WAKE_BYTES: usize = 16 << 20;
/// Uncommitted changes that make operations wait for a commit.
const WAIT_BYTES: usize = 64 << 20;
/// Blocks that a commit writes, in bytes, for each byte of uncommitted changes, at worst: every record in a page of its own.
const WRITE_AMPLIFICATION: u64 = 128;

/// The commit thread and how to talk to it.
#[derive(Debug, Default)]
pub(super) struct Committer {
    signal: Arc<Signal>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Signal {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    wake: bool,
    stop: bool,
}

impl Signal {
    /// Waits for the interval or a wake-up. True when the thread is to end.
    fn wait(&self, interval: Duration) -> bool {
        let state = lock(&self.state);
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, interval, |state| !state.wake && !state.stop)
            .unwrap_or_else(PoisonError::into_inner);
        state.wake = false;
        state.stop
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }
}

impl Committer {
    /// Starts the thread.
    pub(super) fn start(&self, core: Weak<Core>, interval: Duration) -> std::io::Result<()> {
        let signal = self.signal.clone();
        let thread = std::thread::Builder::new().name("peerfs-commit".into()).spawn(move || run(&core, &signal, interval))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// There is something to do before the interval is over.
    pub(super) fn wake(&self) {
        self.signal.set(|state| state.wake = true);
    }

    /// Ends the thread and waits for it, unless this is the thread.
    pub(super) fn stop(&self) {
        self.signal.set(|state| state.stop = true);
        if let Some(thread) = lock(&self.thread).take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the commit thread panicked");
        }
    }
}

fn run(core: &Weak<Core>, signal: &Signal, interval: Duration) {
    while !signal.wait(interval) {
        let Some(core) = core.upgrade() else {
            return;
        };
        core.reap_queued();
        if core.is_writable() {
            // The error is logged and kept where it happens.
            let _ = core.commit_pending();
        }
        core.cache.sweep(core.committed.load(Ordering::Acquire));
        if core.cache.has_shrunk() {
            peerfs_sys::give_back_free_memory();
        }
    }
}

impl Core {
    /// Changes are possible; called before an operation takes any lock, and waits when
    /// too many changes are not durable yet.
    pub(super) fn admit_change(&self) -> Result<()> {
        if !self.is_writable() {
            return Err(FsError::errno(libc::EROFS));
        }
        let pending = self.volume.pending_bytes();
        let tight = pending as u64 * WRITE_AMPLIFICATION > self.volume.metadata_room_bytes();
        // A commit that had no room is worth another try when there is much more to it: removed things make room.
        if pending > WAIT_BYTES || (tight && pending > 2 * self.refused_bytes.load(Ordering::Relaxed)) {
            return match self.commit() {
                // Removing must go on; what adds asks `admit_growth`.
                Err(error) if error.code() == libc::ENOSPC => {
                    self.refused_bytes.store(pending, Ordering::Relaxed);
                    Ok(())
                }
                other => {
                    self.refused_bytes.store(0, Ordering::Relaxed);
                    other
                }
            };
        }
        if pending > WAKE_BYTES {
            self.committer.wake();
        }
        Ok(())
    }

    /// There is room for more metadata; asked by what makes names and attributes.
    pub(super) fn admit_growth(&self) -> Result<()> {
        if self.volume.metadata_full() { Err(FsError::errno(libc::ENOSPC)) } else { Ok(()) }
    }

    /// The volume takes changes.
    pub(super) fn is_writable(&self) -> bool {
        !self.options.read_only && !self.failed.load(Ordering::Acquire)
    }

    /// Commits if there is anything to commit.
    fn commit_pending(&self) -> Result<()> {
        self.fold_times()?;
        if self.volume.pending_bytes() == 0 {
            return Ok(());
        }
        self.commit_applied()
    }

    /// Makes every change so far durable.
    pub(super) fn commit(&self) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        if self.failed.load(Ordering::Acquire) {
            return Err(FsError::errno(libc::EIO));
        }
        self.fold_times()?;
        self.commit_applied()
    }

    fn commit_applied(&self) -> Result<()> {
        match self.volume.commit() {
            Ok(seq) => {
                self.committed.fetch_max(seq, Ordering::AcqRel);
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    fn fail(&self, error: StoreError) -> FsError {
        let may_pass = error.errno() == libc::ENOSPC && !error.is_failed_flush();
        if !may_pass && !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(
                %error,
                "a commit failed: the volume is read-only from now on; check the device, unmount and mount again"
            );
        }
        error.into()
    }

    /// Puts times that changed in memory into batches.
    fn fold_times(&self) -> Result<()> {
        for ino in self.cache.take_dirty() {
            if let Some(inode) = self.cache.peek(ino) {
                self.fold(&inode)?;
                drop(inode);
                self.cache.mark_idle(ino);
            }
        }
        Ok(())
    }

    /// The same for one inode. Its content lock keeps operations with batches of their own out.
    fn fold(&self, inode: &Arc<Inode>) -> Result<()> {
        let content = inode.share();
        if content.dead || !inode.attributes().dirty {
            return Ok(());
        }
        // Exclusive, so that no second fold puts an older state over a newer one.
        drop(content);
        let content = inode.exclude();
        if content.dead || !inode.attributes().dirty {
            return Ok(());
        }
        let mut txn = Txn::new();
        txn.inode(inode, |_| ());
        self.apply(txn)
    }

    pub(super) fn do_fsync(&self, open: &OpenFile, data_only: bool) -> Result<()> {
        let inode = &open.inode;
        self.coherence().flush(inode.ino)?;
        self.settle(inode, data_only)
    }

    /// Makes an inode's changes durable.
    pub(super) fn settle(&self, inode: &Arc<Inode>, data_only: bool) -> Result<()> {
        if self.options.read_only {
            return Ok(());
        }
        if self.failed.load(Ordering::Acquire) {
            return Err(FsError::errno(libc::EIO));
        }
        if !data_only {
            self.fold(inode)?;
        }
        let changed = inode.changed_in.load(Ordering::Acquire);
        if changed > self.committed.load(Ordering::Acquire) {
            return self.commit_applied();
        }
        self.device.flush().map_err(|error| self.fail(error.into()))
    }

    pub(super) fn do_sync(&self) -> Result<()> {
        let coherence = self.coherence();
        if coherence.is_mapped(None) {
            for ino in self.cache.numbers() {
                if coherence.is_mapped(Some(ino)) {
                    coherence.flush(ino)?;
                }
            }
        }
        self.commit()
    }
}
