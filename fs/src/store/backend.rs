//! What the database writes to: the metadata area itself, or a shadow over it
//! that keeps every change in memory. Opening the database always writes (a
//! flag, sometimes a recovery), so whoever must not touch the device, the
//! read-only mount and the checker, opens it over a shadow.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use peerfs_blockdev::BLOCK_BYTES;
use redb::StorageBackend;

use super::StoreError;
use super::meta_area::MetaArea;
use crate::sync::lock;

const PAGE: usize = BLOCK_BYTES as usize;

/// The database's storage.
#[derive(Debug, Clone)]
pub(super) enum Backend {
    /// Changes reach the device.
    Live(Arc<MetaArea>),
    /// Changes stay in memory.
    Shadow(Arc<Shadow>),
}

/// Changed blocks over an unchanged area.
#[derive(Debug)]
pub(super) struct Shadow {
    area: Arc<MetaArea>,
    state: Mutex<ShadowState>,
}

#[derive(Debug)]
struct ShadowState {
    length: u64,
    /// Area bytes at and after this were cut off once and read as zeros.
    area_end: u64,
    blocks: HashMap<u64, Box<[u8]>>,
}

impl Backend {
    /// Over an area whose device must not change.
    pub(super) fn shadow(area: Arc<MetaArea>) -> Self {
        let length = area.length();
        let state = ShadowState { length, area_end: length, blocks: HashMap::new() };
        Backend::Shadow(Arc::new(Shadow { area, state: Mutex::new(state) }))
    }

    /// True when changes reach the device.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Backend::Live(_))
    }

    /// The area below.
    pub(super) fn area(&self) -> &Arc<MetaArea> {
        match self {
            Backend::Live(area) => area,
            Backend::Shadow(shadow) => &shadow.area,
        }
    }

    /// The typed error behind the database's last failure.
    pub(super) fn take_failure(&self) -> Option<StoreError> {
        self.area().take_failure()
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        match self {
            Backend::Live(area) => Ok(area.length()),
            Backend::Shadow(shadow) => Ok(lock(&shadow.state).length),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Backend::Live(area) => area.read_bytes(offset, out),
            Backend::Shadow(shadow) => shadow.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self {
            Backend::Live(area) => area.resize(len),
            Backend::Shadow(shadow) => {
                shadow.resize(len);
                Ok(())
            }
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self {
            Backend::Live(area) => area.sync(),
            Backend::Shadow(_) => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Backend::Live(area) => area.write_bytes(offset, data),
            Backend::Shadow(shadow) => shadow.write(offset, data),
        }
    }
}

impl Shadow {
    fn resize(&self, length: u64) {
        let mut state = lock(&self.state);
        state.area_end = state.area_end.min(length);
        state.length = length;
        let end_block = length.div_ceil(BLOCK_BYTES);
        state.blocks.retain(|block, _| *block < end_block);
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = lock(&self.state);
        state.check(offset, out.len())?;
        let mut done = 0;
        while done < out.len() {
            let position = offset + done as u64;
            let skip = (position % BLOCK_BYTES) as usize;
            let length = (PAGE - skip).min(out.len() - done);
            let target = &mut out[done..done + length];
            match state.blocks.get(&(position / BLOCK_BYTES)) {
                Some(block) => target.copy_from_slice(&block[skip..skip + length]),
                None => state.read_below(&self.area, position, target)?,
            }
            done += length;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.check(offset, data.len())?;
        let mut done = 0;
        while done < data.len() {
            let position = offset + done as u64;
            let skip = (position % BLOCK_BYTES) as usize;
            let length = (PAGE - skip).min(data.len() - done);
            let number = position / BLOCK_BYTES;
            if !state.blocks.contains_key(&number) {
                let mut block = vec![0; PAGE];
                state.read_below(&self.area, number * BLOCK_BYTES, &mut block)?;
                state.blocks.insert(number, block.into_boxed_slice());
            }
            if let Some(block) = state.blocks.get_mut(&number) {
                block[skip..skip + length].copy_from_slice(&data[done..done + length]);
            }
            done += length;
        }
        Ok(())
    }
}

impl ShadowState {
    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        match offset.checked_add(length as u64) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn read_below(&self, area: &MetaArea, position: u64, out: &mut [u8]) -> io::Result<()> {
        let there = self.area_end.saturating_sub(position).min(out.len() as u64) as usize;
        let (below, beyond) = out.split_at_mut(there);
        beyond.fill(0);
        if below.is_empty() { Ok(()) } else { area.read_bytes(position, below) }
    }
}
