//! Bytes in and out by the CPU, and between device and main memory. Live mappings stay: the device serves blocks that
//! are in a window from the window.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use peerfs_blockdev::{BLOCK_BYTES, Io};

use super::allocation::{Allocation, Home, Place};
use super::space::Piece;
use super::{Pool, PoolError};
use crate::types::{ObjectId, Range};

/// Largest single transfer, bytes.
const STEP_BYTES: u64 = 1 << 20;

impl Pool {
    /// Reads at most `length` bytes from `offset`; fewer at the end, none beyond it.
    ///
    /// # Errors
    /// [`PoolError::Gone`], or what the device answers.
    pub fn read(&self, id: u64, offset: u64, length: u64) -> Result<Vec<u8>, PoolError> {
        let allocation = self.find(id)?;
        self.touch(&allocation);
        let transfer = allocation.enter()?;
        let Place { bytes, home } = &transfer.place;
        let range = Range::new(offset, length).intersect(Range { start: 0, end: *bytes });
        let mut out = vec![0; range.length() as usize];
        match home {
            Home::Main(file) => file.read_exact_at(&mut out, range.start)?,
            Home::Device(pieces) => self.read_device(pieces, range, &mut out)?,
        }
        Ok(out)
    }

    /// Writes `data` at `offset` and answers how many bytes fit. Whole blocks are written beside live mappings; a part of
    /// a block ends those that may write it, because what they store meanwhile would be lost.
    ///
    /// # Errors
    /// [`PoolError::BeyondEnd`] when nothing fits, [`PoolError::Gone`], or what the device answers.
    pub fn write(&self, id: u64, offset: u64, data: &[u8]) -> Result<usize, PoolError> {
        let allocation = self.find(id)?;
        self.touch(&allocation);
        if data.is_empty() {
            return Ok(0);
        }
        if offset.is_multiple_of(BLOCK_BYTES) && (data.len() as u64).is_multiple_of(BLOCK_BYTES) {
            let transfer = allocation.enter()?;
            let range = fitting(&allocation, &transfer.place, offset, data)?;
            return self.write_place(&transfer.place, range, data);
        }
        let alone = allocation.alone()?;
        let place = alone.place();
        let range = fitting(&allocation, &place, offset, data)?;
        let closed = self.engine().map(|engine| engine.close_to_writes(ObjectId::device_memory(id), blocks(range)));
        let written = self.write_place(&place, range, data);
        drop(closed);
        written
    }

    fn write_place(&self, place: &Place, range: Range, data: &[u8]) -> Result<usize, PoolError> {
        let data = &data[..range.length() as usize];
        match &place.home {
            Home::Main(file) => file.write_all_at(data, range.start)?,
            Home::Device(pieces) => self.write_device(pieces, range, data)?,
        }
        Ok(data.len())
    }

    fn read_device(&self, pieces: &[Piece], range: Range, out: &mut [u8]) -> Result<(), PoolError> {
        for step in steps(pieces, blocks(range)) {
            let buffer = self.read_step(&step)?;
            let part = step.range().intersect(range);
            let from = (part.start - step.at) as usize;
            let to = (part.start - range.start) as usize;
            let length = part.length() as usize;
            out[to..to + length].copy_from_slice(&buffer[from..from + length]);
        }
        Ok(())
    }

    fn read_step(&self, step: &Piece) -> Result<Vec<u8>, PoolError> {
        let buf = self.device.buffer(step.length as usize);
        let buf = self.device.submit(Io::Read { offset: step.offset, buf }).wait()?;
        Ok(buf.map_or_else(|| vec![0; step.length as usize], |buf| buf[..step.length as usize].to_vec()))
    }

    fn write_device(&self, pieces: &[Piece], range: Range, data: &[u8]) -> Result<(), PoolError> {
        for step in steps(pieces, blocks(range)) {
            let part = step.range().intersect(range);
            let mut buf = self.device.buffer(step.length as usize);
            if part.length() < step.length {
                let old = self.read_step(&step)?;
                buf[..old.len()].copy_from_slice(&old);
            }
            let to = (part.start - step.at) as usize;
            let from = (part.start - range.start) as usize;
            let length = part.length() as usize;
            buf[to..to + length].copy_from_slice(&data[from..from + length]);
            self.device.submit(Io::Write { offset: step.offset, buf }).wait()?;
        }
        Ok(())
    }

    /// Before anybody may see them.
    pub(super) fn zero(&self, pieces: &[Piece]) -> Result<(), PoolError> {
        pieces.iter().try_for_each(|piece| Ok(self.device.write_zeroes(piece.offset, piece.length)?))
    }

    pub(super) fn copy_to_main(&self, pieces: &[Piece], bytes: u64, file: &File) -> Result<(), PoolError> {
        for step in steps(pieces, Range { start: 0, end: bytes }) {
            file.write_all_at(&self.read_step(&step)?, step.at)?;
        }
        Ok(())
    }

    pub(super) fn copy_to_device(&self, file: &File, pieces: &[Piece], bytes: u64) -> Result<(), PoolError> {
        for step in steps(pieces, Range { start: 0, end: bytes }) {
            let mut buf = self.device.buffer(step.length as usize);
            file.read_exact_at(&mut buf[..step.length as usize], step.at)?;
            self.device.submit(Io::Write { offset: step.offset, buf }).wait()?;
        }
        Ok(())
    }
}

/// The part of a write that fits.
fn fitting(allocation: &Arc<Allocation>, place: &Place, offset: u64, data: &[u8]) -> Result<Range, PoolError> {
    let range = Range::new(offset, data.len() as u64).intersect(Range { start: 0, end: place.bytes });
    if range.is_empty() {
        return Err(PoolError::BeyondEnd { id: allocation.id, offset, bytes: place.bytes });
    }
    Ok(range)
}

/// A range widened to whole blocks.
fn blocks(range: Range) -> Range {
    Range { start: range.start / BLOCK_BYTES * BLOCK_BYTES, end: range.end.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES) }
}

/// The parts of pieces that a block-aligned range touches, none larger than a transfer.
fn steps(pieces: &[Piece], range: Range) -> impl Iterator<Item = Piece> {
    let first = pieces.partition_point(|piece| piece.at + piece.length <= range.start);
    pieces[first..].iter().take_while(move |piece| piece.at < range.end).flat_map(move |piece| {
        let part = piece.range().intersect(range);
        (part.start..part.end).step_by(STEP_BYTES as usize).map(move |at| Piece {
            at,
            offset: piece.offset + (at - piece.at),
            length: STEP_BYTES.min(part.end - at),
        })
    })
}
