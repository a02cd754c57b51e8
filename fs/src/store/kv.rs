//! The metadata database with its overlay of uncommitted changes.
//!
//! Operations read and change records in memory; a commit writes everything
//! changed so far as one transaction. An operation's batch is never split
//! between two commits, and operations go on while a commit is under way.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use redb::{Builder, Database, ReadOnlyTable, ReadableDatabase, StorageError, TableDefinition, TableError};

use super::StoreError;
use super::backend::Backend;
use super::overlay::{Bytes, Changes, Overlay};
use crate::sync::{lock, read, write};

const TABLE: TableDefinition<&[u8], &[u8]> = TableDefinition::new("records");

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// Changes to be made together, in order.
pub type Ops = Vec<(Vec<u8>, Option<Bytes>)>;

/// The number of a commit. A batch is durable when the commit whose number
/// [`Kv::apply`] returned, or a later one, has succeeded.
pub type CommitSeq = u64;

/// See the module.
pub struct Kv {
    backend: Backend,
    device: String,
    cache_bytes: usize,
    engine: Mutex<Option<Database>>,
    state: RwLock<State>,
    commits: Mutex<Commits>,
    commit_done: Condvar,
}

struct State {
    overlay: Overlay,
    /// The database as of the last commit; `None` while it cannot be opened.
    snapshot: Option<Arc<Table>>,
    /// Number of the commit that the active changes will be part of.
    next_commit: CommitSeq,
}

#[derive(Default)]
struct Commits {
    running: bool,
    started: u64,
    finished: u64,
    /// Outcome of the last finished one.
    outcome: Option<Result<CommitSeq, StoreError>>,
}

/// How to open the database.
pub(super) struct KvOptions {
    /// Memory for its page cache, in bytes.
    pub cache_bytes: usize,
    /// Read and verify everything first.
    pub check_integrity: bool,
}

impl Kv {
    /// Opens the database, or makes one when the area is empty. `device` is for messages.
    pub(super) fn open(backend: Backend, device: String, options: KvOptions) -> Result<Self, StoreError> {
        let KvOptions { cache_bytes, check_integrity } = options;
        let kv = Kv {
            backend,
            device,
            cache_bytes,
            engine: Mutex::new(None),
            state: RwLock::new(State { overlay: Overlay::default(), snapshot: None, next_commit: 1 }),
            commits: Mutex::default(),
            commit_done: Condvar::new(),
        };
        kv.open_engine(&mut lock(&kv.engine), check_integrity)?;
        Ok(kv)
    }

    fn open_engine(&self, engine: &mut Option<Database>, check_integrity: bool) -> Result<(), StoreError> {
        write(&self.state).snapshot = None;
        *engine = None;
        self.backend.area().start_over();
        // After a failed flush nothing is written any more, but reading goes on.
        let backend =
            if self.backend.area().flush_failed() { Backend::shadow(self.backend.area().clone()) } else { self.backend.clone() };
        let database = Builder::new()
            .set_cache_size(self.cache_bytes)
            .set_check_integrity_on_open(check_integrity)
            .create_with_backend(backend)
            .map_err(|error| self.failed(error))?;
        let snapshot = match self.take_snapshot(&database) {
            Err(TakeError::NoTable) => {
                self.write_changes(&database, &Changes::new())?;
                self.take_snapshot(&database)
            }
            other => other,
        };
        let snapshot = snapshot.map_err(|error| self.failed(error))?;
        write(&self.state).snapshot = Some(snapshot);
        *engine = Some(database);
        Ok(())
    }

    fn take_snapshot(&self, database: &Database) -> Result<Arc<Table>, TakeError> {
        let transaction = database.begin_read().map_err(|error| TakeError::Other(error.to_string()))?;
        match transaction.open_table(TABLE) {
            Ok(table) => Ok(Arc::new(table)),
            Err(TableError::TableDoesNotExist(_)) => Err(TakeError::NoTable),
            Err(error) => Err(TakeError::Other(error.to_string())),
        }
    }

    /// The device's error if there was one, else the database's.
    fn failed(&self, error: impl std::fmt::Display) -> StoreError {
        self.backend
            .take_failure()
            .unwrap_or_else(|| StoreError::CorruptMetadata { device: self.device.clone(), reason: error.to_string() })
    }

    /// The current value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.with_snapshot(
            || {
                let state = read(&self.state);
                match state.overlay.get(key) {
                    Some(change) => Looked::Found(change),
                    None => Looked::Below(state.snapshot.clone(), ()),
                }
            },
            |table, ()| Ok(redb::ReadableTable::get(table, key)?.map(|guard| Bytes::from(guard.value()))),
        )
    }

    /// The first `limit` records of a range, in key order.
    pub fn scan(&self, range: Range<Vec<u8>>, limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        if range.start >= range.end || limit == 0 {
            return Ok(Vec::new());
        }
        self.with_snapshot(
            || {
                let state = read(&self.state);
                Looked::Below(state.snapshot.clone(), state.overlay.scan(&range, limit))
            },
            |table, changes| merge(table, changes, &range, limit),
        )
    }

    /// The last record of a range.
    pub fn last_before(&self, range: Range<Vec<u8>>) -> Result<Option<(Vec<u8>, Bytes)>, StoreError> {
        if range.start >= range.end {
            return Ok(None);
        }
        self.with_snapshot(
            || {
                let state = read(&self.state);
                Looked::Below(state.snapshot.clone(), state.overlay.scan_back(&range))
            },
            |table, changes| last_of(table, changes, &range),
        )
    }

    /// Runs a look-up against overlay and snapshot taken at the same instant. The database refuses
    /// everything after one failed access, so after a device error it is reopened and asked once more.
    fn with_snapshot<T, C>(
        &self,
        look: impl Fn() -> Looked<T, C>,
        below: impl Fn(&Table, C) -> Result<T, StorageError>,
    ) -> Result<T, StoreError> {
        let mut healed = false;
        loop {
            let (snapshot, changes) = match look() {
                Looked::Found(value) => return Ok(value),
                Looked::Below(snapshot, changes) => (snapshot, changes),
            };
            let error = match &snapshot {
                Some(table) => match below(table, changes) {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                },
                None => StorageError::PreviousIo,
            };
            if healed || !is_latched(&error) {
                return Err(self.failed(error));
            }
            healed = true;
            let device_error = self.backend.take_failure();
            if let Err(error) = self.heal(snapshot.as_ref()) {
                return Err(device_error.unwrap_or(error));
            }
        }
    }

    /// Reopens the database unless somebody did since `failed` was taken.
    fn heal(&self, failed: Option<&Arc<Table>>) -> Result<(), StoreError> {
        let mut engine = lock(&self.engine);
        let unchanged = match (&read(&self.state).snapshot, failed) {
            (Some(current), Some(failed)) => Arc::ptr_eq(current, failed),
            (current, _) => current.is_none(),
        };
        if unchanged { self.open_engine(&mut engine, false) } else { Ok(()) }
    }

    /// Makes changes visible, all at once. Returns the commit they will be part of.
    pub fn apply(&self, ops: Ops) -> Result<CommitSeq, StoreError> {
        self.check_writable()?;
        let mut state = write(&self.state);
        for (key, value) in ops {
            state.overlay.apply(key, value);
        }
        Ok(state.next_commit)
    }

    /// Approximate memory of uncommitted changes, in bytes.
    pub fn pending_bytes(&self) -> usize {
        read(&self.state).overlay.bytes()
    }

    /// Makes every change applied before this call durable, and with it every data write that
    /// completed before. Callers that come together share one commit. Returns its number.
    /// After an error the changes are kept and the next commit tries again.
    pub fn commit(&self) -> Result<CommitSeq, StoreError> {
        self.check_writable()?;
        let mut commits = lock(&self.commits);
        // One that is running may have started before our changes: only the next is ours for sure.
        let mine = commits.started + 1;
        while commits.running && commits.finished < mine {
            commits = self.commit_done.wait(commits).unwrap_or_else(PoisonError::into_inner);
        }
        if commits.finished >= mine
            && let Some(outcome) = commits.outcome.clone()
        {
            return outcome;
        }
        commits.running = true;
        commits.started += 1;
        drop(commits);
        let mut running = Running { kv: self, outcome: None };
        let outcome = self.commit_now();
        running.outcome = Some(outcome.clone());
        outcome
    }

    /// Refuses changes that could never be committed.
    fn check_writable(&self) -> Result<(), StoreError> {
        if !self.backend.is_live() {
            return Err(StoreError::ReadOnly { device: self.device.clone() });
        }
        if self.backend.area().flush_failed() {
            return Err(StoreError::FlushFailed { device: self.device.clone() });
        }
        Ok(())
    }

    fn commit_now(&self) -> Result<CommitSeq, StoreError> {
        let (changes, seq) = {
            let mut state = write(&self.state);
            if state.overlay.is_empty() {
                let seq = state.next_commit - 1;
                drop(state);
                self.backend.area().sync().map_err(|error| self.failed(error))?;
                return Ok(seq);
            }
            let seq = state.next_commit;
            state.next_commit += 1;
            (state.overlay.freeze(), seq)
        };
        let mut engine = lock(&self.engine);
        if engine.is_none() {
            self.open_engine(&mut engine, false)?;
        }
        let Some(database) = engine.as_ref() else {
            return Err(self.failed("the database is not open"));
        };
        let written = self
            .write_changes(database, &changes)
            .and_then(|()| self.take_snapshot(database).map_err(|error| self.failed(error)));
        match written {
            Ok(snapshot) => {
                let mut state = write(&self.state);
                state.snapshot = Some(snapshot);
                state.overlay.thaw();
                Ok(seq)
            }
            Err(error) => {
                // Reopened so that reads go on; if that fails too, the next access tries again.
                if let Err(again) = self.open_engine(&mut engine, false) {
                    tracing::warn!(%again, "the metadata database does not open after a failed commit");
                }
                Err(error)
            }
        }
    }

    fn write_changes(&self, database: &Database, changes: &Changes) -> Result<(), StoreError> {
        // Whoever reads meanwhile may have taken the backend's word of what failed.
        write_transaction(database, changes).map_err(|error| {
            let failed = self.failed(&error);
            device_error(&error).unwrap_or(failed)
        })
    }

    /// Closes the database; a commit must have made everything durable.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        write(&self.state).snapshot = None;
        match lock(&self.engine).take() {
            Some(database) => database.close().map_err(|error| self.failed(error)),
            None => Ok(()),
        }
    }
}

/// Ends a commit for those who wait for it, also when the database panicked.
struct Running<'a> {
    kv: &'a Kv,
    outcome: Option<Result<CommitSeq, StoreError>>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let outcome = self.outcome.take();
        let mut commits = lock(&self.kv.commits);
        commits.running = false;
        commits.finished = commits.started;
        commits.outcome = Some(outcome.unwrap_or_else(|| Err(self.kv.failed("the commit did not end"))));
        self.kv.commit_done.notify_all();
    }
}

enum Looked<T, C> {
    Found(T),
    Below(Option<Arc<Table>>, C),
}

enum TakeError {
    NoTable,
    Other(String),
}

impl std::fmt::Display for TakeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TakeError::NoTable => f.write_str("the table of records is missing"),
            TakeError::Other(reason) => f.write_str(reason),
        }
    }
}

/// The device's error, where the database has passed it on.
fn device_error(error: &redb::Error) -> Option<StoreError> {
    match error {
        redb::Error::Io(error) => error.get_ref()?.downcast_ref::<StoreError>().cloned(),
        _ => None,
    }
}

fn is_latched(error: &StorageError) -> bool {
    matches!(error, StorageError::Io(_) | StorageError::PreviousIo | StorageError::DatabaseClosed)
}

fn write_transaction(database: &Database, changes: &Changes) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    // Saves the allocator's state and commits in two phases: opening after a crash stays fast.
    transaction.set_quick_repair(true);
    {
        let mut table = transaction.open_table(TABLE)?;
        for (key, value) in changes {
            match value {
                Some(value) => drop(table.insert(key.as_slice(), value.as_ref())?),
                None => drop(table.remove(key.as_slice())?),
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Merges changes over the database's records.
fn merge(
    table: &Table,
    changes: Vec<(Vec<u8>, Option<Bytes>)>,
    range: &Range<Vec<u8>>,
    limit: usize,
) -> Result<Vec<(Vec<u8>, Bytes)>, StorageError> {
    let mut merged = Vec::new();
    let mut changes = changes.into_iter().peekable();
    let mut below = redb::ReadableTable::range(table, range.start.as_slice()..range.end.as_slice())?;
    let mut next_below = below.next().transpose()?;
    while merged.len() < limit {
        let change_first = match (changes.peek(), &next_below) {
            (None, None) => break,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((key, _)), Some((record, _))) => {
                if key.as_slice() == record.value() {
                    next_below = below.next().transpose()?;
                    true
                } else {
                    key.as_slice() < record.value()
                }
            }
        };
        if change_first {
            if let Some((key, Some(value))) = changes.next() {
                merged.push((key, value));
            }
        } else if let Some((key, value)) = next_below.take() {
            merged.push((key.value().to_vec(), Bytes::from(value.value())));
            next_below = below.next().transpose()?;
        }
    }
    Ok(merged)
}

/// The last record of a range under changes that are sorted last first and end with a value.
fn last_of(
    table: &Table,
    changes: Vec<(Vec<u8>, Option<Bytes>)>,
    range: &Range<Vec<u8>>,
) -> Result<Option<(Vec<u8>, Bytes)>, StorageError> {
    let mut below = redb::ReadableTable::range(table, range.start.as_slice()..range.end.as_slice())?;
    let mut last_below = below.next_back().transpose()?;
    for (key, value) in changes {
        match &last_below {
            Some((record, _)) if record.value() > key.as_slice() => break,
            Some((record, _)) if record.value() == key.as_slice() => {
                last_below = below.next_back().transpose()?;
            }
            _ => {}
        }
        if let Some(value) = value {
            return Ok(Some((key, value)));
        }
    }
    Ok(last_below.map(|(key, value)| (key.value().to_vec(), Bytes::from(value.value()))))
}

impl std::fmt::Debug for Kv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kv").field("pending_bytes", &self.pending_bytes()).finish_non_exhaustive()
    }
}
