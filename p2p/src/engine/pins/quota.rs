//! How much may be pinned, by one user and on the whole mount.

use std::collections::HashMap;
use std::sync::Arc;

use crate::sync::{Mutex, lock};
use crate::types::ExportId;

/// A limit of pinned bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinQuota {
    /// Of the aperture's capacity.
    Percent(u8),
    /// Absolute.
    Bytes(u64),
}

impl PinQuota {
    /// The limit, bytes, for an aperture of this capacity.
    pub fn bytes(self, capacity_bytes: u64) -> u64 {
        match self {
            PinQuota::Percent(percent) => (u128::from(capacity_bytes) * u128::from(percent) / 100) as u64,
            PinQuota::Bytes(bytes) => bytes,
        }
    }
}

/// Both limits for one aperture, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) mount: u64,
    pub(super) user: u64,
}

/// Bytes in use, by exporter, and by exporter and user.
#[derive(Default)]
pub(super) struct Quota(Arc<Mutex<Used>>);

type Used = HashMap<(ExportId, Option<u32>), u64>;

/// Bytes charged; given back when dropped.
pub(super) struct Charge {
    used: Arc<Mutex<Used>>,
    export: ExportId,
    uid: u32,
    bytes: u64,
}

impl Quota {
    /// `None`: one of the limits would be exceeded.
    pub(super) fn charge(&self, export: ExportId, uid: u32, bytes: u64, limits: Limits) -> Option<Charge> {
        let mut used = lock(&self.0);
        let fits = bytes <= left(&used, export, Some(uid), limits);
        for key in [(export, None), (export, Some(uid))].into_iter().filter(|_| fits) {
            *used.entry(key).or_default() += bytes;
        }
        fits.then(|| Charge { used: self.0.clone(), export, uid, bytes })
    }

    /// What may still be pinned, by this user or (`None`) by one who has no pins yet.
    pub(super) fn left(&self, export: ExportId, uid: Option<u32>, limits: Limits) -> u64 {
        left(&lock(&self.0), export, uid, limits)
    }

    pub(super) fn used(&self, export: ExportId) -> u64 {
        lock(&self.0).get(&(export, None)).copied().unwrap_or(0)
    }
}

fn left(used: &Used, export: ExportId, uid: Option<u32>, limits: Limits) -> u64 {
    let spent = |key| used.get(&key).copied().unwrap_or(0);
    let of_user = uid.map_or(0, |uid| spent((export, Some(uid))));
    limits.mount.saturating_sub(spent((export, None))).min(limits.user.saturating_sub(of_user))
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut used = lock(&self.used);
        for key in [(self.export, None), (self.export, Some(self.uid))] {
            if let Some(bytes) = used.get_mut(&key) {
                *bytes = bytes.saturating_sub(self.bytes);
                if *bytes == 0 {
                    used.remove(&key);
                }
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_charges_come_back() {
        let quota = Quota::default();
        let limits = Limits { mount: 100, user: 60 };
        let files = ExportId::Files;
        let first = quota.charge(files, 1, 60, limits).expect("fits");
        assert!(quota.charge(files, 1, 1, limits).is_none(), "the user's limit");
        assert!(quota.charge(files, 2, 41, limits).is_none(), "the mount's limit");
        let second = quota.charge(files, 2, 40, limits).expect("fits");
        assert_eq!((quota.used(files), quota.left(files, Some(3), limits)), (100, 0));
        assert_eq!(quota.left(ExportId::DeviceMemory, Some(1), limits), 60);
        drop(first);
        assert_eq!((quota.left(files, Some(1), limits), quota.left(files, Some(2), limits)), (60, 20));
        drop(second);
        assert!(lock(&quota.0).is_empty());
    }

    #[test]
    fn percent_of_the_aperture() {
        assert_eq!(PinQuota::Percent(25).bytes(64 << 20), 16 << 20);
        assert_eq!(PinQuota::Percent(100).bytes(u64::MAX), u64::MAX);
        assert_eq!(PinQuota::Bytes(5).bytes(0), 5);
    }
}
