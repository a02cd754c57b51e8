//! Commands of the NVM command set (section 6).

use peerfs_nvme_spec::{Command, DatasetRange, Status};
use zerocopy::FromBytes;

use crate::completion::Ending;
use crate::faults::Fault;
use crate::memory::Place;
use crate::profile::Blocked;
use crate::prp::LIST_UNREADABLE;
use crate::queues::Outstanding;
use crate::state::State;

/// Attribute of Dataset Management: deallocate.
const DEALLOCATE: u32 = 1 << 2;

impl State {
    pub(crate) fn execute_io(&mut self, outstanding: &Outstanding) -> Ending {
        let command = &outstanding.command;
        if outstanding.fault == Some(Fault::ListFault) {
            return Ending::failure(LIST_UNREADABLE);
        }
        let named = command.namespace.get();
        let active = named == 1 && self.profile.blocks > 0;
        let result = match command.opcode {
            0x00 if active || named == u32::MAX => {
                self.media.flush();
                Ok(())
            }
            _ if !active => Err(Status::INVALID_NAMESPACE),
            0x01 => self.write(outstanding),
            0x02 => self.read(outstanding),
            0x08 if self.profile.write_zeroes => self.write_zeroes(command),
            0x09 if self.profile.dataset_management => self.manage(command),
            _ => Err(Status::INVALID_OPCODE),
        };
        if !self.profile.write_cache {
            self.media.flush();
        }
        result.map_or_else(Ending::failure, |()| Ending::success())
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        1 << self.told_power.unwrap_or(self.profile.block_power)
    }

    fn check_blocks(&self, start: u64, count: u64) -> Result<(), Status> {
        match start.checked_add(count) {
            Some(end) if end <= self.profile.blocks => Ok(()),
            _ => Err(Status::LBA_OUT_OF_RANGE),
        }
    }

    /// First block and length in bytes of a transfer that is allowed.
    fn transfer(&self, command: &Command) -> Result<(u64, u64), Status> {
        let (start, count) = command.range();
        self.check_blocks(start, count.into())?;
        let length = u64::from(count) * self.block_bytes();
        let limit = if self.profile.max_transfer == 0 { u64::MAX } else { 4096 << self.profile.max_transfer.min(32) };
        match length <= limit {
            true => Ok((start, length)),
            false => Err(Status::INVALID_FIELD),
        }
    }

    /// Memory and length in bytes of each piece of a transfer's data, as its addresses lead there now.
    pub(crate) fn translate(&mut self, command: &Command) -> Option<Vec<(Place, u64)>> {
        let (_, length) = self.transfer(command).ok()?;
        let pieces = self.pieces(command, length).ok()?;
        pieces.into_iter().map(|(address, length)| Some((self.space.translate(address)?, length))).collect()
    }

    fn read(&mut self, outstanding: &Outstanding) -> Result<(), Status> {
        let (start, length) = self.transfer(&outstanding.command)?;
        let mut data = vec![0; length as usize];
        let block_bytes = self.block_bytes() as usize;
        for (block, out) in (start..).zip(data.chunks_mut(block_bytes)) {
            self.media.read(block, out);
        }
        let mut rest = &data[..];
        if let Some(places) = &outstanding.translated {
            for (place, length) in places {
                let (part, after) = rest.split_at(*length as usize);
                place.write(part).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
                rest = after;
            }
            return Ok(());
        }
        for (address, length) in self.pieces(&outstanding.command, length)? {
            let (part, after) = rest.split_at(length as usize);
            let done = self.dma_write(address, part);
            self.blocked_or(done)?;
            rest = after;
        }
        Ok(())
    }

    fn write(&mut self, outstanding: &Outstanding) -> Result<(), Status> {
        let (start, length) = self.transfer(&outstanding.command)?;
        let mut data = vec![0; length as usize];
        let mut rest = &mut data[..];
        match &outstanding.translated {
            Some(places) => {
                for (place, length) in places {
                    let (part, after) = rest.split_at_mut(*length as usize);
                    place.read(part).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
                    rest = after;
                }
            }
            None => {
                for (address, length) in self.pieces(&outstanding.command, length)? {
                    let (part, after) = rest.split_at_mut(length as usize);
                    let done = self.dma_read(address, part);
                    self.blocked_or(done)?;
                    rest = after;
                }
            }
        }
        let block_bytes = self.block_bytes() as usize;
        for (block, bytes) in (start..).zip(data.chunks(block_bytes)) {
            self.media.write(block, Some(bytes));
        }
        Ok(())
    }

    fn blocked_or(&self, done: Option<()>) -> Result<(), Status> {
        match (done, self.profile.blocked) {
            (None, Blocked::Error) => Err(Status::DATA_TRANSFER_ERROR),
            _ => Ok(()),
        }
    }

    fn write_zeroes(&mut self, command: &Command) -> Result<(), Status> {
        let (start, count) = command.range();
        self.check_blocks(start, count.into())?;
        (start..start + u64::from(count)).for_each(|block| self.media.write(block, None));
        Ok(())
    }

    fn manage(&mut self, command: &Command) -> Result<(), Status> {
        let count = u64::from(command.arguments[0].get() & 0xFF) + 1;
        let range_bytes = size_of::<DatasetRange>();
        let mut bytes = vec![0; count as usize * range_bytes];
        let mut at = 0;
        for (address, length) in self.pieces(command, bytes.len() as u64)? {
            let end = at + length as usize;
            self.dma_read(address, &mut bytes[at..end]).ok_or(Status::DATA_TRANSFER_ERROR)?;
            at = end;
        }
        if command.arguments[1].get() & DEALLOCATE == 0 {
            return Ok(());
        }
        for range in bytes.chunks(range_bytes) {
            let range = DatasetRange::read_from_bytes(range).expect("a chunk is a range");
            self.check_blocks(range.start.get(), range.blocks.get().into())?;
            let end = range.start.get() + u64::from(range.blocks.get());
            (range.start.get()..end).for_each(|block| self.media.write(block, None));
        }
        Ok(())
    }
}
