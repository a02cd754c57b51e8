//! The fault path: maps what an access needs and enters the translations.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::device::{DeviceShared, Region};
use super::page_table::{LARGE_PAGE, Leaf, PAGE, Target};
use super::stats::bump;
use crate::mapping::Place;
use crate::registry::lock;
use crate::{Error, MapFlags, Mapping, Revocation, Segment};

/// Maps the large page around `address`, as far as it lies in the region.
/// No lock is held while the server is asked: its answer may wait for our acknowledgement of something else.
pub(super) fn serve(device: &Arc<DeviceShared>, region: &Arc<Region>, address: u64) -> Result<(), Error> {
    bump(&device.stats.faults);
    let retired = std::mem::take(&mut lock(&device.state).retired);
    drop(retired);
    let chunk = chunk(region, address);
    let in_file = region.file_offset_of(chunk.start)..region.file_offset_of(chunk.end);
    let flags = region.flags & (MapFlags::WRITE | MapFlags::ATOMIC);
    let mapping = Arc::new(device.session.map(&region.file, in_file, flags)?);
    shoot_down_on_revocation(device, region, &mapping);
    let leaves = leaves(device, region, &chunk, &mapping);
    let mut state = lock(&device.state);
    // A region that was unbound meanwhile gets no translations.
    let bound = state.regions.get(&region.addresses.start);
    if !bound.is_some_and(|bound| Arc::ptr_eq(bound, region)) {
        return Ok(());
    }
    let mut replaced = state.cache.remove(&chunk);
    for leaf in leaves {
        replaced.extend(state.table.insert(leaf));
    }
    drop(state);
    drop(replaced);
    Ok(())
}

fn chunk(region: &Region, address: u64) -> Range<u64> {
    let start = address - address % LARGE_PAGE;
    let end = start.saturating_add(LARGE_PAGE);
    start.max(region.addresses.start)..end.min(region.addresses.end)
}

/// The mapping must not keep the device alive, nor the device's end be kept by a callback.
fn shoot_down_on_revocation(device: &Arc<DeviceShared>, region: &Arc<Region>, mapping: &Mapping) {
    let (device, region) = (Arc::downgrade(device), Arc::clone(region));
    mapping.on_revoke(move |revocation| {
        if let Some(device) = device.upgrade() {
            device.shoot_down(&addresses_of(&region, revocation));
        }
    });
}

/// The device addresses of a revoked range of the region's file.
fn addresses_of(region: &Region, revocation: &Revocation) -> Range<u64> {
    let to_address = |offset: u64| {
        let inside = offset.saturating_sub(region.file_offset);
        let address = region.addresses.start.saturating_add(inside);
        address.min(region.addresses.end)
    };
    let end = revocation.file_offset.saturating_add(revocation.length);
    to_address(revocation.file_offset)..to_address(end)
}

fn leaves(device: &DeviceShared, region: &Region, chunk: &Range<u64>, mapping: &Arc<Mapping>) -> Vec<Leaf> {
    let refused = mapping.retry_after().unwrap_or_default();
    let until = Instant::now() + refused.max(device.config.fallback_lifetime);
    let mut leaves = Vec::new();
    for (segment, place) in mapping.pieces() {
        if let Some(place) = place {
            leaves.extend(direct_leaves(region, segment, place, mapping));
        }
    }
    let direct = leaves.len();
    for start in (chunk.start..chunk.end).step_by(PAGE as usize) {
        let before = leaves[..direct].partition_point(|leaf| leaf.start <= start);
        if before == 0 || leaves[before - 1].end() <= start {
            leaves.push(Leaf { start, size: PAGE, target: Target::Fallback { mapping: Arc::clone(mapping), until } });
        }
    }
    leaves
}

fn direct_leaves(region: &Region, segment: &Segment, place: &Place, mapping: &Arc<Mapping>) -> Vec<Leaf> {
    let start = region.addresses.start + (segment.file_offset - region.file_offset);
    let aligned = |size: u64| start.is_multiple_of(size) && place.offset.is_multiple_of(size);
    let size = match segment.length == LARGE_PAGE && aligned(LARGE_PAGE) {
        true => LARGE_PAGE,
        false => PAGE,
    };
    if !aligned(PAGE) {
        return Vec::new();
    }
    let offsets = (0..segment.length).step_by(size as usize);
    let leaf = |offset| Leaf {
        start: start + offset,
        size,
        target: Target::Direct {
            mapping: Arc::clone(mapping),
            place: Place { grant: Arc::clone(&place.grant), offset: place.offset + offset },
            valid: size.min(segment.length - offset),
        },
    };
    offsets.map(leaf).collect()
}
