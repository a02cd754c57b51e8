//! Commands of the NVM command set (section 6).

use peerfs_nvme_spec::{Command, DatasetRange, Status};
use zerocopy::FromBytes;

use crate::completion::Ending;
use crate::faults::Fault;
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
            0x01 => self.write(command),
            0x02 => self.read(command),
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

    fn read(&mut self, command: &Command) -> Result<(), Status> {
        let (start, length) = self.transfer(command)?;
        let pieces = self.pieces(command, length)?;
        let mut data = vec![0; length as usize];
        let block_bytes = self.block_bytes() as usize;
        for (block, out) in (start..).zip(data.chunks_mut(block_bytes)) {
            self.media.read(block, out);
        }
        let mut at = 0;
        for (address, length) in pieces {
            let end = at + length as usize;
            let done = self.dma_write(address, &data[at..end]);
            self.blocked_or(done)?;
            at = end;
        }
        Ok(())
    }

    fn write(&mut self, command: &Command) -> Result<(), Status> {
        let (start, length) = self.transfer(command)?;
        let pieces = self.pieces(command, length)?;
        let mut data = vec![0; length as usize];
        let mut at = 0;
        for (address, length) in pieces {
            let end = at + length as usize;
            let done = self.dma_read(address, &mut data[at..end]);
            self.blocked_or(done)?;
            at = end;
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
