//! Identify pages (section 5.15).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Identify Controller (figure 247): the fields this host uses, by their place.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor (VID).
    pub vendor: U16,
    /// PCI subsystem vendor (SSVID).
    pub subsystem_vendor: U16,
    /// Serial number, ASCII padded with spaces (SN).
    pub serial: [u8; 20],
    /// Model number, likewise (MN).
    pub model: [u8; 40],
    /// Firmware revision, likewise (FR).
    pub firmware: [u8; 8],
    reserved_72: [u8; 5],
    /// Largest transfer as a power of two in units of the smallest page; 0 for no limit (MDTS).
    pub max_transfer: u8,
    /// Controller id (CNTLID).
    pub controller_id: U16,
    /// Version (VER).
    pub version: U32,
    reserved_84: [u8; 428],
    /// Submission queue entry sizes, powers of two: required in bits 3:0, largest in 7:4 (SQES).
    pub submission_entry_size: u8,
    /// Completion queue entry sizes, likewise (CQES).
    pub completion_entry_size: u8,
    /// Outstanding commands (MAXCMD).
    pub max_commands: U16,
    /// Highest namespace id (NN).
    pub namespaces: U32,
    /// Optional commands (ONCS).
    pub optional_commands: U16,
    /// Fused operations (FUSES).
    pub fused: U16,
    /// Format attributes (FNA).
    pub format_attributes: u8,
    /// Volatile write cache, bit 0: there is one (VWC).
    pub volatile_write_cache: u8,
    reserved_526: [u8; 3570],
}

const _: () = assert!(size_of::<IdentifyController>() == 4096);
const _: () = assert!(std::mem::offset_of!(IdentifyController, max_transfer) == 77);
const _: () = assert!(std::mem::offset_of!(IdentifyController, submission_entry_size) == 512);
const _: () = assert!(std::mem::offset_of!(IdentifyController, volatile_write_cache) == 525);

impl IdentifyController {
    /// Dataset Management is there (ONCS bit 2).
    pub fn has_dataset_management(&self) -> bool {
        self.optional_commands.get() & (1 << 2) != 0
    }

    /// Write Zeroes is there (ONCS bit 3).
    pub fn has_write_zeroes(&self) -> bool {
        self.optional_commands.get() & (1 << 3) != 0
    }

    /// A volatile write cache: Flush has something to do.
    pub fn has_write_cache(&self) -> bool {
        self.volatile_write_cache & 1 != 0
    }

    /// Largest transfer, bytes, with this smallest page (from CAP); `None` for no limit.
    pub fn max_transfer_bytes(&self, min_page_bytes: u64) -> Option<u64> {
        match self.max_transfer {
            0 => None,
            power => Some(min_page_bytes.checked_shl(power.into()).filter(|bytes| *bytes > 0).unwrap_or(u64::MAX)),
        }
    }

    /// An ASCII field without its padding; what is not printable becomes `?`.
    pub fn text(field: &[u8]) -> String {
        let printable = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' };
        let text: String = field.iter().take_while(|byte| **byte != 0).map(printable).collect();
        text.trim().to_owned()
    }
}

/// One LBA format (figure 246).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata bytes beside each block (MS).
    pub metadata_bytes: U16,
    /// Block size as a power of two; below 9 the format is not there (LBADS).
    pub size_power: u8,
    /// Relative performance (RP).
    pub performance: u8,
}

/// Identify Namespace (figure 245): the fields this host uses, by their place.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size, logical blocks; 0 for an inactive namespace (NSZE).
    pub size: U64,
    /// Capacity, logical blocks (NCAP).
    pub capacity: U64,
    /// Use, logical blocks (NUSE).
    pub used: U64,
    /// Features (NSFEAT).
    pub features: u8,
    /// Formats there are, less one (NLBAF).
    pub formats: u8,
    /// Format in use: index in bits 3:0 (FLBAS).
    pub formatted: u8,
    reserved_27: [u8; 2],
    /// End-to-end protection in use: type in bits 2:0, 0 for none (DPS).
    pub protection: u8,
    reserved_30: [u8; 74],
    /// Globally unique id (NGUID); zeros for none.
    pub nguid: [u8; 16],
    /// IEEE extended unique id (EUI64); zeros for none.
    pub eui64: [u8; 8],
    /// Formats (LBAF0 to LBAF15).
    pub format: [LbaFormat; 16],
    reserved_192: [u8; 3904],
}

const _: () = assert!(size_of::<LbaFormat>() == 4);
const _: () = assert!(size_of::<IdentifyNamespace>() == 4096);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(std::mem::offset_of!(IdentifyNamespace, format) == 128);

impl IdentifyNamespace {
    /// The format in use.
    pub fn current_format(&self) -> LbaFormat {
        self.format[usize::from(self.formatted & 0xF)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn limits_and_texts_of_a_controller() {
        let mut page = IdentifyController::new_zeroed();
        assert_eq!(page.max_transfer_bytes(4096), None);
        page.max_transfer = 7;
        assert_eq!(page.max_transfer_bytes(4096), Some(512 << 10));
        page.max_transfer = 255;
        assert_eq!(page.max_transfer_bytes(4096), Some(u64::MAX));
        page.max_transfer = 60;
        assert_eq!(page.max_transfer_bytes(4096), Some(u64::MAX));
        page.serial[..4].copy_from_slice(b"A\n  ");
        page.serial[4..].fill(b' ');
        assert_eq!(IdentifyController::text(&page.serial), "A?");
        page.optional_commands = U16::new(0b1100);
        assert!(page.has_dataset_management() && page.has_write_zeroes() && !page.has_write_cache());
    }

    #[test]
    fn the_format_in_use() {
        let mut page = IdentifyNamespace::new_zeroed();
        page.formatted = 0x12;
        page.format[2].size_power = 12;
        assert_eq!(page.current_format().size_power, 12);
    }
}
