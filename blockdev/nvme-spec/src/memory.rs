//! Registers of the memory that a controller lends: Controller Memory Buffer and Persistent Memory Region.

use crate::register::bits;

/// Controller Memory Buffer Location (3.1.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CmbLocation(pub u32);

/// Controller Memory Buffer Size (3.1.12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CmbSize(pub u32);

impl CmbLocation {
    /// The BAR it is in (BIR).
    pub const fn bar(self) -> u8 {
        bits(self.0 as u64, 0, 3) as u8
    }

    /// Where in the BAR it starts, bytes; OFST counts in the unit of [`CmbSize::unit_bytes`].
    pub const fn offset_bytes(self, size: CmbSize) -> u64 {
        bits(self.0 as u64, 12, 20) * size.unit_bytes()
    }
}

impl CmbSize {
    /// Unit of size and offset, bytes (SZU: 0 is 4 KiB, each step is 16 times more); 0 for units above 6, which are reserved.
    pub const fn unit_bytes(self) -> u64 {
        let power = bits(self.0 as u64, 8, 4);
        if power > 6 { 0 } else { 1 << (12 + 4 * power) }
    }

    /// Size, bytes; 0 when the unit is reserved.
    pub const fn bytes(self) -> u64 {
        bits(self.0 as u64, 12, 20) * self.unit_bytes()
    }

    /// Data of commands that read from the controller may lie in it (RDS).
    pub const fn takes_read_data(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    /// Data of commands that write to the controller may lie in it (WDS).
    pub const fn takes_write_data(self) -> bool {
        self.0 & (1 << 4) != 0
    }
}

/// Memory Space Control of the CMB (3.1.16): capabilities are shown (CRE), and addresses from `base` on, a multiple of
/// 4096, mean the buffer in commands (CMSE).
pub const fn cmb_memory_space(base: u64) -> u64 {
    base & !0xFFF | 0b11
}

/// Memory Space Control of the CMB with nothing but its capabilities shown (CRE).
pub const CMB_CAPABILITIES_SHOWN: u64 = 1;

/// The base address was invalid (CMBSTS.CBAI, 3.1.17).
pub const CMB_BASE_INVALID: u32 = 1;

/// Persistent Memory Region Capabilities (3.1.18).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PmrCap(pub u32);

impl PmrCap {
    /// The BAR it is all of (BIR).
    pub const fn bar(self) -> u8 {
        bits(self.0 as u64, 5, 3) as u8
    }

    /// A read of memory in the region completes earlier writes (PMRWBM bit 0).
    pub const fn memory_read_is_barrier(self) -> bool {
        self.0 & (1 << 10) != 0
    }

    /// A read of PMRSTS completes earlier writes (PMRWBM bit 1).
    pub const fn status_read_is_barrier(self) -> bool {
        self.0 & (1 << 11) != 0
    }

    /// Worst time to get ready, milliseconds (PMRTO, in the unit PMRTU).
    pub const fn ready_timeout_ms(self) -> u64 {
        let unit_ms = if bits(self.0 as u64, 8, 2) == 1 { 60_000 } else { 500 };
        bits(self.0 as u64, 16, 8) * unit_ms
    }
}

/// Region enabled (PMRCTL.EN, 3.1.19).
pub const PMR_ENABLE: u32 = 1;

/// Persistent Memory Region Status (3.1.20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PmrStatus(pub u32);

impl PmrStatus {
    /// Not ready (NRDY).
    pub const NOT_READY: u32 = 1 << 8;

    /// NRDY is 0. A disabled region answers that too.
    pub const fn is_ready(self) -> bool {
        self.0 & PmrStatus::NOT_READY == 0
    }

    /// ERR, 0 for none: earlier writes may not have got there.
    pub const fn error(self) -> u8 {
        self.0 as u8
    }

    /// HSTS.
    pub const fn health(self) -> PmrHealth {
        match bits(self.0 as u64, 9, 3) {
            0 => PmrHealth::Normal,
            1 => PmrHealth::RestoreError,
            2 => PmrHealth::ReadOnly,
            3 => PmrHealth::Unreliable,
            _ => PmrHealth::Reserved,
        }
    }
}

/// Health of a Persistent Memory Region (PMRSTS.HSTS, 3.1.20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PmrHealth {
    /// As it should be.
    Normal,
    /// Contents of an earlier power cycle could not be brought back.
    RestoreError,
    /// Writes have no effect.
    ReadOnly,
    /// Reads may answer what was never written, or writes not persist.
    Unreliable,
    /// A value that the specification does not know.
    Reserved,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_of_an_emulated_controller() {
        // QEMU 7.2 with cmb_size_mb=64: unit 1 MiB, all uses; in BAR 2, from its start.
        let size = CmbSize(64 << 12 | 2 << 8 | 0x1F);
        let location = CmbLocation(2);
        assert_eq!(size.bytes(), 64 << 20);
        assert_eq!((location.bar(), location.offset_bytes(size)), (2, 0));
        assert!(size.takes_read_data() && size.takes_write_data());
        assert_eq!(CmbSize(1 << 12 | 15 << 8).bytes(), 0);
        assert_eq!(CmbLocation(1 << 12).offset_bytes(CmbSize(1 << 12 | 15 << 8)), 0);
        assert_eq!(cmb_memory_space(0x1_2345_6000), 0x1_2345_6003);
    }

    #[test]
    fn a_region_of_an_emulated_controller() {
        let cap = PmrCap(4 << 5 | 0b10 << 10 | 3 << 16);
        assert_eq!(cap.bar(), 4);
        assert!(cap.status_read_is_barrier() && !cap.memory_read_is_barrier());
        assert_eq!(cap.ready_timeout_ms(), 1500);
        assert_eq!(PmrCap(1 << 8 | 2 << 16).ready_timeout_ms(), 120_000);
        let status = PmrStatus(PmrStatus::NOT_READY | 2 << 9 | 7);
        assert!(!status.is_ready() && PmrStatus(0).is_ready());
        assert_eq!((status.error(), status.health()), (7, PmrHealth::ReadOnly));
    }
}
