//! Registers: what reads answer and what writes do.

use peerfs_nvme_spec::memory::PMR_ENABLE;
use peerfs_nvme_spec::register::{Cc, Csts, offset};

use crate::completion::Late;
use crate::profile::Profile;
use crate::queues::{CompletionQueue, Queues, SubmissionQueue};
use crate::state::State;

/// VS: 1.4.0.
const VERSION: u32 = 1 << 16 | 4 << 8;

/// BARs of controller memory buffer and persistent memory region.
pub(crate) const CMB_BAR: u8 = 2;
pub(crate) const PMR_BAR: u8 = 4;

/// What a reset of the function clears.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub(crate) cc: u32,
    pub(crate) csts: u32,
    pub(crate) aqa: u32,
    pub(crate) asq: u64,
    pub(crate) acq: u64,
    pub(crate) cmbmsc: u64,
    pub(crate) cmb_invalid: bool,
    pub(crate) pmrctl: u32,
}

impl Profile {
    fn capabilities(&self) -> u64 {
        let cmb = u64::from(self.cmb_bytes > 0) << 57;
        let pmr = u64::from(self.pmr_bytes > 0) << 56;
        let nvm_commands = 1 << 37;
        let contiguous = 1 << 16;
        let timeout = u64::from(self.ready_timeout) << 24;
        let stride = u64::from(self.stride_power & 0xF) << 32;
        self.cap.unwrap_or(cmb | pmr | nvm_commands | contiguous | timeout | stride | u64::from(self.entries - 1) & 0xFFFF)
    }

    fn stride_bytes(&self) -> u64 {
        4 << (self.capabilities() >> 32 & 0xF)
    }
}

impl State {
    /// There is still something that answers this access.
    fn answers(&mut self) -> bool {
        if let Some(left) = &mut self.profile.accesses_left {
            self.gone |= *left == 0;
            *left = left.saturating_sub(1);
        }
        !self.gone && !self.undecoded
    }

    /// A naturally aligned read of 4 bytes.
    pub(crate) fn read_register(&mut self, at: u64) -> u32 {
        if !self.answers() {
            return u32::MAX;
        }
        if self.profile.noisy_reads > 0 && self.random.one_in(self.profile.noisy_reads) {
            return self.random.bits() as u32;
        }
        let registers = &self.registers;
        let shown = registers.cmbmsc & 1 != 0 && self.profile.cmb_bytes > 0;
        let region = self.profile.pmr_bytes > 0;
        match at {
            offset::VS => VERSION,
            offset::CC => registers.cc,
            offset::CSTS => registers.csts,
            offset::AQA => registers.aqa,
            offset::CMBLOC if shown => CMB_BAR.into(),
            // In units of 4 KiB; data of reads and of writes.
            offset::CMBSZ if shown => (self.profile.cmb_bytes >> 12 << 12) as u32 | 0b11 << 3,
            offset::CMBSTS => registers.cmb_invalid.into(),
            // Barrier: a read of PMRSTS. Ready within 500 ms.
            offset::PMRCAP if region => u32::from(PMR_BAR) << 5 | 1 << 11 | 1 << 16,
            offset::PMRCTL if region => registers.pmrctl,
            _ => match at & !7 {
                offset::CAP => half(self.profile.capabilities(), at),
                offset::ASQ => half(registers.asq, at),
                offset::ACQ => half(registers.acq, at),
                offset::CMBMSC => half(registers.cmbmsc, at),
                _ => 0,
            },
        }
    }

    /// A naturally aligned write of 4 bytes.
    pub(crate) fn write_register(&mut self, at: u64, value: u32) {
        if !self.answers() {
            return;
        }
        let registers = &mut self.registers;
        match at {
            offset::CC => self.configure(Cc(value)),
            offset::AQA => registers.aqa = value,
            offset::PMRCTL => registers.pmrctl = value & PMR_ENABLE,
            at if at >= offset::DOORBELLS => self.doorbell(at, value),
            _ => match at & !7 {
                offset::ASQ => set_half(&mut registers.asq, at, value),
                offset::ACQ => set_half(&mut registers.acq, at, value),
                offset::CMBMSC => {
                    set_half(&mut registers.cmbmsc, at, value);
                    registers.cmb_invalid = self.profile.rejects_cmb_base && registers.cmbmsc & 0b10 != 0;
                }
                _ => self.violation(format!("a write of {value:#x} to read-only register {at:#x}")),
            },
        }
    }

    fn configure(&mut self, cc: Cc) {
        let was = Cc(self.registers.cc);
        if self.profile.never_stops && was.is_enabled() && !cc.is_enabled() {
            return;
        }
        self.registers.cc = cc.0;
        match (was.is_enabled(), cc.is_enabled()) {
            (false, true) => self.enable(cc),
            (true, false) => self.stop(),
            _ => {}
        }
        if cc.announces_shutdown() && !was.announces_shutdown() {
            self.counts.shutdowns += 1;
            self.media.flush();
            self.registers.csts |= Csts::SHUTDOWN_COMPLETE;
        }
    }

    fn enable(&mut self, cc: Cc) {
        self.counts.enables += 1;
        if self.profile.never_ready {
            return;
        }
        let (submissions, completions) = ((self.registers.aqa & 0xFFF) + 1, (self.registers.aqa >> 16 & 0xFFF) + 1);
        let (asq, acq) = (self.registers.asq, self.registers.acq);
        let right = asq & 0xFFF == 0 && acq & 0xFFF == 0 && submissions >= 2 && completions >= 2;
        if !right || cc.0 & 0x00FF_3FFF != Cc::ENABLED.0 & 0x00FF_3FFF {
            self.violation(format!("enabled with CC {:#x}, AQA {:#x}, ASQ {asq:#x}, ACQ {acq:#x}", cc.0, self.registers.aqa));
            self.registers.csts = Csts::FATAL;
            return;
        }
        self.queues.submission.insert(0, SubmissionQueue::new(asq, submissions, 0));
        self.queues.completion.insert(0, CompletionQueue::new(acq, completions, None));
        self.registers.csts = Csts::READY;
    }

    /// A reset by CC.EN: everything in flight, all queues and the buffer's content are forgotten; what was written stays.
    pub(crate) fn stop(&mut self) {
        self.late.iter_mut().for_each(Late::reset);
        self.queues = Queues::default();
        self.registers.cc &= !1;
        self.registers.csts = 0;
        self.cmb.write(0, &vec![0xA5; self.profile.cmb_bytes as usize]).expect("all of it");
    }

    /// A reset of the function.
    pub(crate) fn reset_function(&mut self) {
        self.stop();
        self.registers = Registers::default();
        self.undecoded = false;
    }

    /// It processes commands.
    pub(crate) fn is_running(&self) -> bool {
        let csts = Csts(self.registers.csts);
        !self.gone && csts.is_ready() && !csts.is_fatal() && !csts.is_shut_down()
    }

    fn doorbell(&mut self, at: u64, value: u32) {
        if self.profile.spurious_interrupts {
            self.raise_all();
        }
        let stride = self.profile.stride_bytes();
        let number = (at - offset::DOORBELLS) / stride;
        if !(at - offset::DOORBELLS).is_multiple_of(stride) || number / 2 > u16::MAX.into() {
            return self.violation(format!("a write to {at:#x}, which is no doorbell"));
        }
        // Whoever was reset behind the driver's back hears from it until it has noticed.
        if !self.is_running() {
            return;
        }
        let queue = (number / 2) as u16;
        match number % 2 {
            0 => self.ring_submission(queue, value),
            _ => self.ring_completion(queue, value),
        }
    }

    fn ring_submission(&mut self, queue: u16, tail: u32) {
        match self.queues.submission.get(&queue) {
            Some(submission) if tail < submission.entries => self.fetch(queue, tail),
            _ => self.violation(format!("tail {tail} of submission queue {queue}")),
        }
    }

    fn ring_completion(&mut self, queue: u16, head: u32) {
        match self.queues.completion.get_mut(&queue) {
            Some(completions) if head < completions.entries => completions.head = head,
            _ => self.violation(format!("head {head} of completion queue {queue}")),
        }
    }
}

fn half(value: u64, at: u64) -> u32 {
    (value >> (at % 8 * 8)) as u32
}

fn set_half(target: &mut u64, at: u64, value: u32) {
    let shift = at % 8 * 8;
    *target = *target & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
}
