//! The pool for people and metrics.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::Pool;
use super::accounts::Usage;
use super::allocation::Home;
use crate::sync::lock;
use crate::types::ObjectId;

/// The state of a pool. All sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct PoolRecord {
    /// The device's memory.
    pub device_bytes: u64,
    /// Of it, not handed out.
    pub free_bytes: u64,
    /// Of it, freed but still reached by pins.
    pub quarantined_bytes: u64,
    /// Stretches that the free memory is in.
    pub free_runs: u64,
    /// Main memory for what was moved off the device, at most.
    pub main_bytes_max: u64,
    /// Of it, in use.
    pub main_bytes_used: u64,
    /// What one user may hold.
    pub user_bytes_max: u64,
    /// What one process may hold.
    pub process_bytes_max: u64,
    /// Moves to main memory since the start.
    pub moved_out: u64,
    /// Moves back.
    pub moved_in: u64,
    /// By user.
    pub users: Vec<UsageRecord>,
    /// By process.
    pub processes: Vec<UsageRecord>,
    /// One by one.
    pub allocations: Vec<AllocationRecord>,
}

/// What a user or a process holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageRecord {
    /// User.
    pub uid: u32,
    /// Process; 0 in an account of a user.
    pub pid: u32,
    /// Allocations.
    pub allocations: u64,
    /// Bytes on the device.
    pub device_bytes: u64,
    /// Bytes in main memory.
    pub migrated_bytes: u64,
}

/// One allocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AllocationRecord {
    /// Its number, as in the name of its device file.
    pub id: u64,
    /// The object that mappings of it name.
    pub object: u64,
    /// Owner's process.
    pub pid: u32,
    /// Owner's user.
    pub uid: u32,
    /// Permission bits of the device file.
    pub mode: u32,
    /// Size.
    pub bytes: u64,
    /// It is in main memory.
    pub migrated: bool,
    /// Stretches on the device it consists of.
    pub pieces: u64,
    /// An importer reaches some of it directly.
    pub mapped: bool,
}

impl Pool {
    /// Who holds how much, and where it is. Exact whenever nothing is under way.
    pub fn record(&self) -> PoolRecord {
        let mut allocations: Vec<AllocationRecord> = self.table.iter().filter_map(|entry| record(entry.value())).collect();
        allocations.iter_mut().for_each(|record| record.mapped = self.is_mapped(record.id));
        allocations.sort_unstable_by_key(|record| record.id);
        let books = lock(&self.books);
        let mut users: Vec<UsageRecord> = books.users.iter().map(|(uid, usage)| usage_record(*uid, 0, usage)).collect();
        let mut processes: Vec<UsageRecord> =
            books.processes.iter().map(|(client, usage)| usage_record(client.uid, client.tgid, usage)).collect();
        users.sort_unstable_by_key(|record| record.uid);
        processes.sort_unstable_by_key(|record| (record.uid, record.pid));
        PoolRecord {
            device_bytes: self.device.info().size_bytes,
            free_bytes: books.space.free_bytes(),
            quarantined_bytes: books.quarantined.max(0).cast_unsigned(),
            free_runs: books.space.runs(),
            main_bytes_max: self.config.main_bytes_max,
            main_bytes_used: books.main_used,
            user_bytes_max: self.config.user_bytes_max,
            process_bytes_max: self.config.process_bytes_max,
            moved_out: self.moved_out.load(Ordering::Relaxed),
            moved_in: self.moved_in.load(Ordering::Relaxed),
            users,
            processes,
            allocations,
        }
    }
}

fn record(allocation: &super::Allocation) -> Option<AllocationRecord> {
    let place = allocation.place().ok()?;
    let (migrated, pieces) = match place.home {
        Home::Device(pieces) => (false, pieces.len() as u64),
        Home::Main(_) => (true, 0),
    };
    Some(AllocationRecord {
        id: allocation.id,
        object: ObjectId::device_memory(allocation.id).0,
        pid: allocation.owner.client.tgid,
        uid: allocation.owner.client.uid,
        mode: allocation.owner.mode,
        bytes: place.bytes,
        migrated,
        pieces,
        mapped: false,
    })
}

fn usage_record(uid: u32, pid: u32, usage: &Usage) -> UsageRecord {
    UsageRecord {
        uid,
        pid,
        allocations: usage.allocations,
        device_bytes: usage.bytes - usage.bytes_migrated,
        migrated_bytes: usage.bytes_migrated,
    }
}
