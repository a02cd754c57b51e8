//! A stand-in for `dashmap::DashMap`, whose locks shuttle does not see: a thread
//! that spins for a shard, while the one that has it waits for shuttle, would hang
//! the run. One lock for the whole table is the strictest of its promises: whoever
//! holds an entry keeps everybody from every other one.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

use shuttle::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Sorted, so that a schedule that is replayed meets entries in the same order.
#[derive(Debug)]
pub(crate) struct DashMap<K, V>(RwLock<BTreeMap<K, V>>);

/// An entry, to read.
pub(crate) struct Ref<'a, K: Ord, V> {
    table: RwLockReadGuard<'a, BTreeMap<K, V>>,
    key: K,
}

/// An entry, to change.
pub(crate) struct RefMut<'a, K: Ord, V> {
    table: RwLockWriteGuard<'a, BTreeMap<K, V>>,
    key: K,
}

/// A copy of an entry that an iteration came by.
pub(crate) struct Copied<K, V>(K, V);

/// The place of a key, whether or not something is there.
pub(crate) struct Entry<'a, K: Ord, V>(RefMut<'a, K, V>);

impl<K: Ord + Copy, V> DashMap<K, V> {
    pub(crate) fn new() -> Self {
        DashMap(RwLock::new(BTreeMap::new()))
    }

    pub(crate) fn get(&self, key: &K) -> Option<Ref<'_, K, V>> {
        let table = self.read();
        table.contains_key(key).then_some(Ref { table, key: *key })
    }

    pub(crate) fn entry(&self, key: K) -> Entry<'_, K, V> {
        Entry(RefMut { table: self.write(), key })
    }

    pub(crate) fn insert(&self, key: K, value: V) -> Option<V> {
        self.write().insert(key, value)
    }

    pub(crate) fn remove(&self, key: &K) -> Option<(K, V)> {
        self.write().remove_entry(key)
    }

    /// The table stays locked while `gone` decides.
    pub(crate) fn remove_if(&self, key: &K, gone: impl FnOnce(&K, &V) -> bool) -> Option<(K, V)> {
        let mut table = self.write();
        match table.get(key).is_some_and(|value| gone(key, value)) {
            true => table.remove_entry(key),
            false => None,
        }
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.read().contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// As if each entry were in a shard of its own: what others put in or take out meanwhile may be missed or met.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Copied<K, V>>
    where
        V: Clone,
    {
        let keys: Vec<K> = self.read().keys().copied().collect();
        keys.into_iter().filter_map(|key| Some(Copied(key, self.read().get(&key)?.clone())))
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<K, V>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<K, V>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord, V> Ref<'_, K, V> {
    pub(crate) fn value(&self) -> &V {
        self
    }
}

impl<K: Ord, V> Deref for Ref<'_, K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.table[&self.key]
    }
}

impl<K: Ord, V> RefMut<'_, K, V> {
    pub(crate) fn value(&self) -> &V {
        self
    }
}

impl<K: Ord, V> Deref for RefMut<'_, K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.table[&self.key]
    }
}

impl<K: Ord, V> DerefMut for RefMut<'_, K, V> {
    fn deref_mut(&mut self) -> &mut V {
        self.table.get_mut(&self.key).expect("an entry stays while it is held")
    }
}

impl<'a, K: Ord + Copy, V> Entry<'a, K, V> {
    pub(crate) fn or_insert_with(mut self, make: impl FnOnce() -> V) -> RefMut<'a, K, V> {
        self.0.table.entry(self.0.key).or_insert_with(make);
        self.0
    }

    pub(crate) fn or_default(self) -> RefMut<'a, K, V>
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }
}

impl<K, V> Copied<K, V> {
    pub(crate) fn key(&self) -> &K {
        &self.0
    }

    pub(crate) fn value(&self) -> &V {
        &self.1
    }
}
