//! The books of a pool: what is free, and who holds how much, within limits.

use std::collections::HashMap;
use std::hash::Hash;

use super::space::{Piece, Space};
use super::{PoolConfig, PoolError};
use crate::api::Client;

/// What one user or process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    pub allocations: u64,
    /// On the device and migrated.
    pub bytes: u64,
    pub bytes_migrated: u64,
}

/// Free space, main memory in use, and accounts. They change together.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) space: Space,
    pub(super) main_used: u64,
    /// Bytes of freed allocations that pins still reach. For a moment below zero when a pin ends just as they are counted.
    pub(super) quarantined: i64,
    pub(super) users: HashMap<u32, Usage>,
    pub(super) processes: HashMap<Client, Usage>,
    config: PoolConfig,
}

impl Books {
    pub(super) fn new(device_bytes: u64, config: PoolConfig) -> Books {
        Books {
            space: Space::new(device_bytes),
            main_used: 0,
            quarantined: 0,
            users: HashMap::new(),
            processes: HashMap::new(),
            config,
        }
    }

    /// Charges an allocation (`allocations` 1), or the growth of one (0), before memory is looked for.
    pub(super) fn charge(&mut self, client: Client, bytes: u64, allocations: u64) -> Result<(), PoolError> {
        let user = self.users.get(&client.uid).copied().unwrap_or_default();
        let process = self.processes.get(&client).copied().unwrap_or_default();
        let config = &self.config;
        if user.bytes.saturating_add(bytes) > config.user_bytes_max {
            return Err(PoolError::UserLimit { uid: client.uid, held: user.bytes, limit: config.user_bytes_max });
        }
        if process.bytes.saturating_add(bytes) > config.process_bytes_max {
            return Err(PoolError::ProcessLimit { tgid: client.tgid, held: process.bytes, limit: config.process_bytes_max });
        }
        if user.allocations + allocations > config.user_allocations_max {
            return Err(PoolError::TooMany { uid: client.uid, limit: config.user_allocations_max });
        }
        self.change(client, |usage| {
            usage.bytes += bytes;
            usage.allocations += allocations;
        });
        Ok(())
    }

    /// Undoes a charge.
    pub(super) fn discharge(&mut self, client: Client, bytes: u64, allocations: u64) {
        self.change(client, |usage| {
            usage.bytes -= bytes;
            usage.allocations -= allocations;
        });
    }

    /// Sets main memory aside for bytes of this client. False: the bound is reached.
    pub(super) fn take_main(&mut self, client: Client, bytes: u64) -> bool {
        if self.main_free() < bytes {
            return false;
        }
        self.main_used += bytes;
        self.change(client, |usage| usage.bytes_migrated += bytes);
        true
    }

    pub(super) fn give_main(&mut self, client: Client, bytes: u64) {
        self.main_used -= bytes;
        self.change(client, |usage| usage.bytes_migrated -= bytes);
    }

    pub(super) fn main_free(&self) -> u64 {
        self.config.main_bytes_max.saturating_sub(self.main_used)
    }

    /// Where an allocation of this size would be placed now. Nothing changes.
    pub(super) fn preview(&mut self, bytes: u64) -> Option<Vec<Piece>> {
        let pieces = self.space.take(bytes, 0)?;
        self.space.give(&pieces);
        Some(pieces)
    }

    fn change(&mut self, client: Client, mut change: impl FnMut(&mut Usage)) {
        change_entry(&mut self.users, client.uid, &mut change);
        change_entry(&mut self.processes, client, &mut change);
    }
}

/// Who holds nothing has no entry.
fn change_entry<K: Eq + Hash + Copy>(table: &mut HashMap<K, Usage>, key: K, change: &mut impl FnMut(&mut Usage)) {
    let usage = table.entry(key).or_default();
    change(usage);
    if *usage == Usage::default() {
        table.remove(&key);
    }
}
