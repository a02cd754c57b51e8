//! Controller registers (section 3.1).

/// Byte offset of each register in BAR 0.
pub mod offset {
    /// Controller Capabilities, 8 bytes (3.1.1).
    pub const CAP: u64 = 0x00;
    /// Version (3.1.2).
    pub const VS: u64 = 0x08;
    /// Interrupt Mask Set (3.1.3).
    pub const INTMS: u64 = 0x0C;
    /// Interrupt Mask Clear (3.1.4).
    pub const INTMC: u64 = 0x10;
    /// Controller Configuration (3.1.5).
    pub const CC: u64 = 0x14;
    /// Controller Status (3.1.6).
    pub const CSTS: u64 = 0x1C;
    /// Admin Queue Attributes (3.1.8).
    pub const AQA: u64 = 0x24;
    /// Admin Submission Queue Base Address, 8 bytes (3.1.9).
    pub const ASQ: u64 = 0x28;
    /// Admin Completion Queue Base Address, 8 bytes (3.1.10).
    pub const ACQ: u64 = 0x30;
    /// Controller Memory Buffer Location (3.1.11).
    pub const CMBLOC: u64 = 0x38;
    /// Controller Memory Buffer Size (3.1.12).
    pub const CMBSZ: u64 = 0x3C;
    /// Controller Memory Buffer Memory Space Control, 8 bytes (3.1.16).
    pub const CMBMSC: u64 = 0x50;
    /// Controller Memory Buffer Status (3.1.17).
    pub const CMBSTS: u64 = 0x58;
    /// Persistent Memory Region Capabilities (3.1.18).
    pub const PMRCAP: u64 = 0xE00;
    /// Persistent Memory Region Control (3.1.19).
    pub const PMRCTL: u64 = 0xE04;
    /// Persistent Memory Region Status (3.1.20).
    pub const PMRSTS: u64 = 0xE08;
    /// Persistent Memory Region Memory Space Control Lower (3.1.23).
    pub const PMRMSCL: u64 = 0xE14;
    /// Persistent Memory Region Memory Space Control Upper (3.1.24).
    pub const PMRMSCU: u64 = 0xE18;
    /// The first doorbell (3.1.25).
    pub const DOORBELLS: u64 = 0x1000;
}

/// The doorbell of a submission queue tail, byte offset in BAR 0 (3.1.25). `stride_bytes` from [`Cap::doorbell_stride_bytes`].
pub const fn submission_doorbell(queue: u16, stride_bytes: u64) -> u64 {
    offset::DOORBELLS + 2 * queue as u64 * stride_bytes
}

/// The doorbell of a completion queue head, byte offset in BAR 0 (3.1.26).
pub const fn completion_doorbell(queue: u16, stride_bytes: u64) -> u64 {
    offset::DOORBELLS + (2 * queue as u64 + 1) * stride_bytes
}

/// Bits `low..low + width` of a register.
pub(crate) const fn bits(value: u64, low: u32, width: u32) -> u64 {
    (value >> low) & ((1 << width) - 1)
}

/// Controller Capabilities (3.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// Entries that a queue may have at most; a controller says at least 2 (MQES, which counts from 0).
    pub const fn max_queue_entries(self) -> u32 {
        bits(self.0, 0, 16) as u32 + 1
    }

    /// Worst time for CSTS.RDY to follow CC.EN, milliseconds (TO, in units of 500 ms).
    pub const fn ready_timeout_ms(self) -> u64 {
        bits(self.0, 24, 8) * 500
    }

    /// Distance between doorbells, bytes (DSTRD).
    pub const fn doorbell_stride_bytes(self) -> u64 {
        4 << bits(self.0, 32, 4)
    }

    /// The NVM command set is there (CSS bit 0).
    pub const fn has_nvm_commands(self) -> bool {
        bits(self.0, 37, 1) == 1
    }

    /// Smallest host page size, bytes (MPSMIN).
    pub const fn min_page_bytes(self) -> u64 {
        1 << (12 + bits(self.0, 48, 4))
    }

    /// There is a Persistent Memory Region (PMRS).
    pub const fn has_pmr(self) -> bool {
        bits(self.0, 56, 1) == 1
    }

    /// There is a Controller Memory Buffer (CMBS).
    pub const fn has_cmb(self) -> bool {
        bits(self.0, 57, 1) == 1
    }
}

/// Controller Configuration (3.1.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cc(pub u32);

impl Cc {
    /// Disabled: nothing is processed.
    pub const DISABLED: Cc = Cc(0);
    /// Enabled, NVM command set, 4 KiB pages, round robin, entries of 64 (IOSQES = 6) and 16 bytes (IOCQES = 4).
    pub const ENABLED: Cc = Cc(1 | 6 << 16 | 4 << 20);

    /// EN.
    pub const fn is_enabled(self) -> bool {
        self.0 & 1 == 1
    }

    /// The same, with a normal shutdown announced (SHN = 01b).
    pub const fn shutting_down(self) -> Cc {
        Cc(self.0 & !(0b11 << 14) | 0b01 << 14)
    }

    /// SHN: a shutdown is announced.
    pub const fn announces_shutdown(self) -> bool {
        bits(self.0 as u64, 14, 2) != 0
    }
}

/// Controller Status (3.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// RDY.
    pub const READY: u32 = 1;
    /// CFS.
    pub const FATAL: u32 = 1 << 1;
    /// SHST = 10b: shutdown complete.
    pub const SHUTDOWN_COMPLETE: u32 = 0b10 << 2;

    /// RDY: commands are processed.
    pub const fn is_ready(self) -> bool {
        self.0 & Csts::READY != 0
    }

    /// CFS: a fatal error; only a reset helps.
    pub const fn is_fatal(self) -> bool {
        self.0 & Csts::FATAL != 0
    }

    /// SHST: what was announced is done.
    pub const fn is_shut_down(self) -> bool {
        self.0 & (0b11 << 2) == Csts::SHUTDOWN_COMPLETE
    }

    /// What a read of a device answers that is no longer there.
    pub const fn is_gone(self) -> bool {
        self.0 == u32::MAX
    }
}

/// Admin Queue Attributes (3.1.8) for admin queues of this many entries, 2 to 4096.
pub const fn admin_queue_attributes(entries: u16) -> u32 {
    let last = (entries - 1) as u32;
    last << 16 | last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_an_emulated_controller() {
        // A large one: 2048 entries, TO 15 (7.5 s), the NVM command set, CMB and PMR.
        let cap = Cap(0x0300_00E0_0F01_07FF | 1 << 37);
        assert_eq!(cap.max_queue_entries(), 2048);
        assert_eq!(cap.ready_timeout_ms(), 7500);
        assert_eq!(cap.doorbell_stride_bytes(), 4);
        assert_eq!(cap.min_page_bytes(), 4096);
        assert!(cap.has_nvm_commands() && cap.has_pmr() && cap.has_cmb());
        assert!(!Cap(0).has_nvm_commands() && !Cap(0).has_pmr() && !Cap(0).has_cmb());
    }

    #[test]
    fn doorbells_alternate() {
        assert_eq!(submission_doorbell(0, 4), 0x1000);
        assert_eq!(completion_doorbell(0, 4), 0x1004);
        assert_eq!(submission_doorbell(3, 8), 0x1030);
        assert_eq!(completion_doorbell(3, 8), 0x1038);
    }

    #[test]
    fn configuration_and_status() {
        assert_eq!(Cc::ENABLED.0, 0x0046_0001);
        assert_eq!(Cc::ENABLED.shutting_down().0, 0x0046_4001);
        assert!(Cc::ENABLED.shutting_down().announces_shutdown() && !Cc::ENABLED.announces_shutdown());
        assert!(Csts(1).is_ready() && !Csts(1).is_fatal() && !Csts(1).is_shut_down());
        assert!(Csts(0b1010).is_shut_down() && Csts(0b1010).is_fatal());
        assert!(Csts(u32::MAX).is_gone());
        assert_eq!(admin_queue_attributes(32), 0x001F_001F);
    }
}
