//! Admin commands (section 5).

use peerfs_nvme_spec::{Command, Feature, IdentifyController, IdentifyNamespace, IdentifyPage, LbaFormat, PAGE_BYTES, Status};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::completion::Ending;
use crate::faults::{Answer, Fault};
use crate::profile::Profile;
use crate::queues::{CompletionQueue, Outstanding, SubmissionQueue};
use crate::random::Random;
use crate::state::State;

const COMMAND_SEQUENCE_ERROR: Status = Status(0x0C);
const COMPLETION_QUEUE_INVALID: Status = Status(0x100);
const INVALID_QUEUE_ID: Status = Status(0x101);
const INVALID_QUEUE_SIZE: Status = Status(0x102);
const INVALID_VECTOR: Status = Status(0x108);
const INVALID_QUEUE_DELETION: Status = Status(0x10C);

impl State {
    pub(crate) fn execute_admin(&mut self, outstanding: &Outstanding) -> Ending {
        let command = &outstanding.command;
        let result = match command.opcode {
            0x00 => self.delete_submission_queue(command),
            0x01 => self.create_submission_queue(command),
            0x04 => self.delete_completion_queue(command),
            0x05 => self.create_completion_queue(command),
            0x06 => self.identify(command, outstanding.fault.as_ref()),
            0x09 => self.set_features(command),
            _ => Err(Status::INVALID_OPCODE),
        };
        result.map_or_else(Ending::failure, |result| Ending { status: Status::SUCCESS, result })
    }

    fn set_features(&mut self, command: &Command) -> Result<u32, Status> {
        if command.arguments[0].get() & 0xFF != Feature::Queues as u32 {
            return Err(Status::INVALID_FIELD);
        }
        if self.queues.submission.len() > 1 {
            return Err(COMMAND_SEQUENCE_ERROR);
        }
        let granted = u32::from(self.profile.queues.max(1) - 1);
        Ok(granted << 16 | granted)
    }

    /// Id and entries of a queue to be made.
    fn new_queue(&self, command: &Command) -> Result<(u16, u32), Status> {
        let (queue, entries) = (command.arguments[0].get() as u16, (command.arguments[0].get() >> 16) + 1);
        if self.profile.refuses_queues || queue == 0 || queue > self.profile.queues {
            return Err(INVALID_QUEUE_ID);
        }
        if entries < 2 || entries > self.profile.entries {
            return Err(INVALID_QUEUE_SIZE);
        }
        let contiguous = command.arguments[1].get() & 1 == 1;
        match contiguous && command.prp1.get().is_multiple_of(PAGE_BYTES) {
            true => Ok((queue, entries)),
            false => Err(Status::INVALID_FIELD),
        }
    }

    fn create_completion_queue(&mut self, command: &Command) -> Result<u32, Status> {
        let (queue, entries) = self.new_queue(command)?;
        let attributes = command.arguments[1].get();
        let vector = (attributes & 0b10 != 0).then_some((attributes >> 16) as u16);
        if vector.is_some_and(|vector| vector >= self.profile.vectors) {
            return Err(INVALID_VECTOR);
        }
        if self.queues.completion.contains_key(&queue) {
            return Err(INVALID_QUEUE_ID);
        }
        self.queues.completion.insert(queue, CompletionQueue::new(command.prp1.get(), entries, vector));
        Ok(0)
    }

    fn create_submission_queue(&mut self, command: &Command) -> Result<u32, Status> {
        let (queue, entries) = self.new_queue(command)?;
        let completions = (command.arguments[1].get() >> 16) as u16;
        if completions == 0 || !self.queues.completion.contains_key(&completions) {
            return Err(COMPLETION_QUEUE_INVALID);
        }
        if self.queues.submission.contains_key(&queue) {
            return Err(INVALID_QUEUE_ID);
        }
        self.queues.submission.insert(queue, SubmissionQueue::new(command.prp1.get(), entries, completions));
        Ok(0)
    }

    fn delete_submission_queue(&mut self, command: &Command) -> Result<u32, Status> {
        let queue = command.arguments[0].get() as u16;
        if queue == 0 || !self.queues.submission.contains_key(&queue) {
            return Err(INVALID_QUEUE_ID);
        }
        let (aborted, others) = self.queues.outstanding.drain(..).partition(|command| command.queue == queue);
        self.queues.outstanding = others;
        let aborted: Vec<Outstanding> = aborted;
        for command in &aborted {
            self.complete(command, Ending::failure(Status::ABORTED_BY_QUEUE_DELETION));
        }
        self.queues.submission.remove(&queue);
        Ok(0)
    }

    fn delete_completion_queue(&mut self, command: &Command) -> Result<u32, Status> {
        let queue = command.arguments[0].get() as u16;
        if self.queues.submission.values().any(|submission| submission.completions == queue) {
            return Err(INVALID_QUEUE_DELETION);
        }
        match queue != 0 && self.queues.completion.remove(&queue).is_some() {
            true => Ok(0),
            false => Err(INVALID_QUEUE_ID),
        }
    }

    fn identify(&mut self, command: &Command, fault: Option<&Fault>) -> Result<u32, Status> {
        let mut page = [0; PAGE_BYTES as usize];
        let of_namespace = command.arguments[0].get() & 0xFF == IdentifyPage::Namespace as u32;
        match (command.arguments[0].get() & 0xFF, command.namespace.get()) {
            (_, 1) if of_namespace => page.copy_from_slice(self.profile.namespace_page().as_bytes()),
            (_, _) if of_namespace => return Err(Status::INVALID_NAMESPACE),
            (cns, _) if cns == IdentifyPage::Controller as u32 => page.copy_from_slice(self.profile.controller_page().as_bytes()),
            _ => return Err(Status::INVALID_FIELD),
        }
        let sent = spoil(&mut page, fault);
        if of_namespace {
            let told = IdentifyNamespace::read_from_bytes(&page[..]).expect("a page is a page").current_format().size_power;
            self.told_power = Some(told).filter(|power| (9..=12).contains(power));
        }
        self.send_page(command, &page[..sent])
    }

    fn send_page(&mut self, command: &Command, page: &[u8]) -> Result<u32, Status> {
        let mut at = 0;
        for (address, length) in self.pieces(command, PAGE_BYTES)? {
            let end = (at + length as usize).min(page.len());
            if at < end {
                self.dma_write(address, &page[at..end]).ok_or(Status::DATA_TRANSFER_ERROR)?;
            }
            at += length as usize;
        }
        Ok(0)
    }
}

impl Profile {
    fn controller_page(&self) -> IdentifyController {
        let mut page = IdentifyController::new_zeroed();
        page.vendor = U16::new(0x1B36);
        fill_text(&mut page.serial, &self.serial);
        fill_text(&mut page.model, "peerfs emulated controller");
        fill_text(&mut page.firmware, "1.0");
        page.max_transfer = self.max_transfer;
        page.version = U32::new(1 << 16 | 4 << 8);
        page.submission_entry_size = 0x66;
        page.completion_entry_size = 0x44;
        page.namespaces = U32::new(1);
        page.optional_commands = U16::new(u16::from(self.dataset_management) << 2 | u16::from(self.write_zeroes) << 3);
        page.volatile_write_cache = self.write_cache.into();
        page
    }

    fn namespace_page(&self) -> IdentifyNamespace {
        let mut page = IdentifyNamespace::new_zeroed();
        page.size = U64::new(self.blocks);
        page.capacity = page.size;
        page.used = page.size;
        page.format[0] =
            LbaFormat { metadata_bytes: U16::new(self.metadata_bytes), size_power: self.block_power, performance: 0 };
        page
    }
}

/// What becomes of a page on its way, and how much of it arrives.
fn spoil(page: &mut [u8; PAGE_BYTES as usize], fault: Option<&Fault>) -> usize {
    match fault {
        Some(Fault::Answer(Answer::Filled(byte))) => page.fill(*byte),
        Some(Fault::Answer(Answer::Noise(seed))) => Random::new(*seed).fill(page),
        Some(Fault::Answer(Answer::Short(bytes))) => return usize::from(*bytes).min(page.len()),
        Some(Fault::Answer(Answer::Patched(patches))) => {
            patches.iter().for_each(|(at, byte)| page[usize::from(*at) % PAGE_BYTES as usize] = *byte);
        }
        _ => {}
    }
    page.len()
}

fn fill_text(field: &mut [u8], text: &str) {
    field.fill(b' ');
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}
