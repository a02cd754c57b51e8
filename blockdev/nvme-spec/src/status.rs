//! Status codes (section 4.6.1).

use std::fmt;

/// The status field of a completion: 15 bits, 0 for success.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

/// Status Code Type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusType {
    /// Of any command (4.6.1.2.1).
    Generic,
    /// Of this command (4.6.1.2.2).
    CommandSpecific,
    /// Media and data integrity (4.6.1.2.3).
    Media,
    /// Path related (4.6.1.2.4).
    Path,
    /// The vendor's, or reserved.
    Other,
}

impl Status {
    /// Success.
    pub const SUCCESS: Status = Status(0);
    /// Generic: the opcode is not known.
    pub const INVALID_OPCODE: Status = Status(0x01);
    /// Generic: a field is not valid.
    pub const INVALID_FIELD: Status = Status(0x02);
    /// Generic: data could not be transferred, for example because an IOMMU blocked it.
    pub const DATA_TRANSFER_ERROR: Status = Status(0x04);
    /// Generic: power is about to be lost.
    pub const POWER_LOSS: Status = Status(0x05);
    /// Generic: internal error.
    pub const INTERNAL_ERROR: Status = Status(0x06);
    /// Generic: aborted because its queue was deleted.
    pub const ABORTED_BY_QUEUE_DELETION: Status = Status(0x08);
    /// Generic: no such namespace, or a bad format of its id.
    pub const INVALID_NAMESPACE: Status = Status(0x0B);
    /// Generic: the range leaves the namespace.
    pub const LBA_OUT_OF_RANGE: Status = Status(0x80);
    /// Generic: no capacity is left.
    pub const CAPACITY_EXCEEDED: Status = Status(0x81);
    /// Generic: not ready.
    pub const NAMESPACE_NOT_READY: Status = Status(0x82);
    /// Generic: write protected.
    pub const WRITE_PROTECTED: Status = Status(0x20);
    /// Media: what was written may be lost.
    pub const WRITE_FAULT: Status = Status(0x280);
    /// Media: it cannot be read.
    pub const UNRECOVERED_READ_ERROR: Status = Status(0x281);

    /// Command succeeded.
    pub const fn is_success(self) -> bool {
        self.type_and_code() == 0
    }

    /// Type and code (11 bits), without hints.
    pub const fn type_and_code(self) -> u16 {
        self.0 & 0x7FF
    }

    /// SC: the code within its type.
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// SCT: the type.
    pub const fn kind(self) -> StatusType {
        match (self.0 >> 8) & 0x7 {
            0 => StatusType::Generic,
            1 => StatusType::CommandSpecific,
            2 => StatusType::Media,
            3 => StatusType::Path,
            _ => StatusType::Other,
        }
    }

    /// DNR: the same command would fail again.
    pub const fn do_not_retry(self) -> bool {
        self.0 & (1 << 14) != 0
    }

    /// What it means, where this crate knows.
    pub const fn meaning(self) -> &'static str {
        match self.type_and_code() {
            0x00 => "success",
            0x01 => "invalid opcode",
            0x02 => "invalid field",
            0x03 => "command id conflict",
            0x04 => "data transfer error",
            0x05 => "aborted: power loss",
            0x06 => "internal error",
            0x07 => "aborted on request",
            0x08 => "aborted: queue deleted",
            0x0B => "invalid namespace or format",
            0x0C => "command sequence error",
            0x13 => "PRP offset invalid",
            0x20 => "namespace is write protected",
            0x80 => "LBA out of range",
            0x81 => "capacity exceeded",
            0x82 => "namespace not ready",
            0x83 => "reservation conflict",
            0x84 => "format in progress",
            0x100 => "completion queue invalid",
            0x101 => "invalid queue id",
            0x102 => "invalid queue size",
            0x108 => "invalid interrupt vector",
            0x182 => "write to a read-only range",
            0x280 => "write fault",
            0x281 => "unrecovered read error",
            0x282 => "end-to-end guard check error",
            0x285 => "compare failure",
            0x286 => "access denied",
            0x287 => "deallocated or unwritten block",
            _ => "unknown status",
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let retry = if self.do_not_retry() { ", do not retry" } else { "" };
        write!(f, "{} (status {:#x}{retry})", self.meaning(), self.type_and_code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_status() {
        let status = Status(0x4000 | 0x281);
        assert!(!status.is_success() && status.do_not_retry());
        assert_eq!((status.kind(), status.code()), (StatusType::Media, 0x81));
        assert_eq!(status.to_string(), "unrecovered read error (status 0x281, do not retry)");
        assert!(Status::SUCCESS.is_success());
        assert_eq!(Status(0x7FF).kind(), StatusType::Other);
    }
}
