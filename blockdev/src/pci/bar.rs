//! Base address registers: what of a device's memory and registers can be mapped.

use std::path::Path;

use super::PciError;
use super::host::{malformed, text};

/// Standard BARs of a function; the expansion ROM and the windows of bridges follow in `resource`.
const BARS: usize = 6;
// include/linux/ioport.h
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_MEM_64: u64 = 0x10_0000;

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next BAR's place too.
    Memory64,
}

/// One implemented BAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bar {
    /// 0 to 5.
    pub index: u8,
    /// Where it is in the processor's address space, bytes.
    pub start: u64,
    /// Its size, bytes.
    pub bytes: u64,
    /// What it decodes.
    pub kind: BarKind,
    /// Reads of it have no side effects.
    pub prefetchable: bool,
}

impl Bar {
    /// A controller memory buffer or persistent memory region may lie in it: memory other than the one with the
    /// registers (NVMe Base 2.0, CMBLOC.BIR and PMRCAP.BIR). Whether one does, only the controller's registers say.
    pub fn may_be_aperture(&self) -> bool {
        self.index > 0 && self.kind != BarKind::Io
    }
}

/// Reads a function's `resource`: a line of start, end and flags for each.
pub(super) fn read(path: &Path) -> Result<Vec<Bar>, PciError> {
    let table = text(path)?;
    let mut bars = Vec::new();
    for (index, line) in table.lines().take(BARS).enumerate() {
        bars.extend(bar(index as u8, line).ok_or_else(|| malformed(path, line))?);
    }
    Ok(bars)
}

/// `None`: not understood; `Some(None)`: not implemented.
fn bar(index: u8, line: &str) -> Option<Option<Bar>> {
    let mut fields = line.split_whitespace().map(|field| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok());
    let (start, end, flags) = (fields.next()??, fields.next()??, fields.next()??);
    let kind = match flags {
        _ if flags & IORESOURCE_IO != 0 => BarKind::Io,
        _ if flags & IORESOURCE_MEM == 0 => return Some(None),
        _ if flags & IORESOURCE_MEM_64 != 0 => BarKind::Memory64,
        _ => BarKind::Memory32,
    };
    let bytes = end.checked_sub(start)?.checked_add(1)?;
    Some(Some(Bar { index, start, bytes, kind, prefetchable: flags & IORESOURCE_PREFETCH != 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_bar_nothing_or_an_error() {
        let memory = bar(4, "0x0000000800000000 0x000000080fffffff 0x000000000014220c");
        let expected = Bar { index: 4, start: 0x8_0000_0000, bytes: 256 << 20, kind: BarKind::Memory64, prefetchable: true };
        assert_eq!(memory, Some(Some(expected)));
        assert_eq!(bar(1, "0x0 0x0 0x0"), Some(None));
        let ports = bar(0, "0xe000 0xe07f 0x40101").flatten().expect("a BAR");
        assert_eq!((ports.kind, ports.bytes, ports.may_be_aperture()), (BarKind::Io, 128, false));
        for bad in ["", "0x0 0x1", "0x2 0x1 0x200", "0x0 0xffffffffffffffff 0x200", "1 2 0x200", "0xg 0x1 0x200"] {
            assert_eq!(bar(0, bad), None, "{bad}");
        }
    }
}
