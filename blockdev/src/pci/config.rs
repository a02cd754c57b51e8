//! A function's configuration space, as far as it can be read: without privilege the kernel shows the first 64 bytes.
//!
//! Sources: PCI Local Bus 3.0, sections 6.1 and 6.7; PCI Express Base 5.0, sections 7.5.3, 7.6.3 and 7.7.8.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

// Bytes from the start, and what is there.
const COMMAND_AND_STATUS: u64 = 0x04;
const HAS_CAPABILITIES: u32 = 1 << 20;
const FIRST_CAPABILITY: u64 = 0x34;
const FIRST_EXTENDED: u64 = 0x100;
const END: u64 = 0x1000;

const EXPRESS: u32 = 0x10;
const ACCESS_CONTROL: u32 = 0x0D;
/// Request Redirect, Completion Redirect, Egress Control: what `pci_bridge_has_acs_redir` of the kernel looks at.
const REDIRECTS: u32 = 1 << 2 | 1 << 3 | 1 << 5;
/// What a register reads as when nobody answers.
const NOBODY: u32 = u32::MAX;

/// What access control (ACS) does with requests to another device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessControl {
    /// They may go across.
    Direct,
    /// They are sent up, to the root of the tree.
    Redirects,
    /// The register cannot be read.
    Unknown,
}

/// What a function is on PCI Express (Device/Port Type).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortType {
    /// Port of the root complex.
    RootPort,
    /// Port of a switch, towards the root.
    UpstreamPort,
    /// Port of a switch, away from the root.
    DownstreamPort,
    /// Bridge to or from a conventional bus.
    ConventionalBridge,
    /// None of these: an endpoint, a function of a conventional bus, or unknown.
    Other,
}

/// What configuration space says of a function's part in peer-to-peer requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PortRegisters {
    pub(super) port: PortType,
    pub(super) access_control: AccessControl,
}

/// Reads the registers; what cannot be read is unknown.
pub(super) fn read(path: &Path) -> PortRegisters {
    let unknown = PortRegisters { port: PortType::Other, access_control: AccessControl::Unknown };
    File::open(path).ok().and_then(|file| Config(file).registers()).unwrap_or(unknown)
}

struct Config(File);

impl Config {
    /// The aligned word of 4 bytes around an offset; `None`: not shown, or nobody answers.
    fn word(&self, offset: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, offset & !3).ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    /// `None`: too little is shown to tell even what it is.
    fn registers(&self) -> Option<PortRegisters> {
        let status = self.word(COMMAND_AND_STATUS).filter(|word| *word != NOBODY)?;
        if status & HAS_CAPABILITIES == 0 {
            return Some(PortRegisters { port: PortType::Other, access_control: AccessControl::Direct });
        }
        // Only PCI Express has more than 256 bytes, and access control lies there.
        let Some(express) = self.capability(EXPRESS)? else {
            return Some(PortRegisters { port: PortType::Other, access_control: AccessControl::Direct });
        };
        let port = match express >> 20 & 0xF {
            0x4 => PortType::RootPort,
            0x5 => PortType::UpstreamPort,
            0x6 => PortType::DownstreamPort,
            0x7 | 0x8 => PortType::ConventionalBridge,
            _ => PortType::Other,
        };
        Some(PortRegisters { port, access_control: self.access_control().unwrap_or(AccessControl::Unknown) })
    }

    /// First word of a capability; `Some(None)`: it is not in the list.
    fn capability(&self, wanted: u32) -> Option<Option<u32>> {
        let mut at = u64::from(self.word(FIRST_CAPABILITY)? & 0xFC);
        for _ in 0..FIRST_EXTENDED / 4 {
            if at < 0x40 {
                return Some(None);
            }
            let word = self.word(at).filter(|word| *word != NOBODY)?;
            if word & 0xFF == wanted {
                return Some(Some(word));
            }
            at = u64::from(word >> 8 & 0xFC);
        }
        // It leads in a circle.
        None
    }

    /// `None`: the list is not shown, or leads in a circle.
    fn access_control(&self) -> Option<AccessControl> {
        let mut at = FIRST_EXTENDED;
        for _ in 0..END / 4 {
            let header = self.word(at).filter(|word| *word != NOBODY)?;
            if header & 0xFFFF == ACCESS_CONTROL {
                // Capabilities in the lower half, control in the upper one.
                let control = self.word(at + 4).filter(|word| *word != NOBODY)? >> 16;
                let redirects = control & REDIRECTS != 0;
                return Some(if redirects { AccessControl::Redirects } else { AccessControl::Direct });
            }
            at = u64::from(header >> 20 & 0xFFC);
            if at < FIRST_EXTENDED {
                return Some(AccessControl::Direct);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root port whose ACS control register has this value.
    fn root_port(control: u16) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut put = |offset: usize, word: u32| bytes[offset..offset + 4].copy_from_slice(&word.to_le_bytes());
        put(0x04, HAS_CAPABILITIES);
        put(0x34, 0x40);
        put(0x40, 0x5001);
        put(0x50, 0x0042_0010);
        put(0x100, 0x1401_0001);
        put(0x140, 0x0001_000D);
        put(0x144, u32::from(control) << 16 | 0x5F);
        bytes
    }

    fn registers(bytes: &[u8]) -> (PortType, AccessControl) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("room");
        let PortRegisters { port, access_control } = read(file.path());
        (port, access_control)
    }

    #[test]
    fn each_redirecting_bit_counts_and_no_other() {
        for bit in 0..7 {
            let redirects = matches!(bit, 2 | 3 | 5);
            let expected = if redirects { AccessControl::Redirects } else { AccessControl::Direct };
            assert_eq!(registers(&root_port(1 << bit)), (PortType::RootPort, expected), "bit {bit}");
        }
    }

    #[test]
    fn what_is_not_shown_is_unknown() {
        let whole = root_port(0);
        for length in [0, 3, 64] {
            assert_eq!(registers(&whole[..length]), (PortType::Other, AccessControl::Unknown), "{length} bytes");
        }
        for length in [256, 258, 0x140, 0x146] {
            assert_eq!(registers(&whole[..length]), (PortType::RootPort, AccessControl::Unknown), "{length} bytes");
        }
        assert_eq!(registers(&[0xFF; 4096]), (PortType::Other, AccessControl::Unknown), "nobody answers");
        assert_eq!(read(Path::new("/nonexistent")).access_control, AccessControl::Unknown);
    }

    #[test]
    fn functions_without_access_control_do_not_redirect() {
        let mut none = root_port(0x1D);
        none[0x140..0x144].fill(0);
        assert_eq!(registers(&none), (PortType::RootPort, AccessControl::Direct));
        let conventional = [0; 256];
        assert_eq!(registers(&conventional), (PortType::Other, AccessControl::Direct));
        let mut without_express = root_port(0x1D);
        without_express[0x50] = 0x05;
        assert_eq!(registers(&without_express[..256]), (PortType::Other, AccessControl::Direct));
    }

    #[test]
    fn lists_that_lead_in_a_circle_end() {
        let mut extended = root_port(0);
        extended[0x140..0x144].copy_from_slice(&0x1001_0001u32.to_le_bytes());
        assert_eq!(registers(&extended), (PortType::RootPort, AccessControl::Unknown));
        let mut standard = root_port(0);
        standard[0x50..0x54].copy_from_slice(&0x4001u32.to_le_bytes());
        assert_eq!(registers(&standard), (PortType::Other, AccessControl::Unknown));
    }
}
