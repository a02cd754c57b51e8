//! PCI addresses: domain, bus, device and function.

use std::fmt;
use std::str::FromStr;

/// Where a function is on the PCI bus, for example `0000:01:00.0`; the domain may be left out when it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// Device 0, function 0 of its bus.
    pub fn is_device_zero(self) -> bool {
        self.device == 0 && self.function == 0
    }
}

/// Not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no PCI address: write DOMAIN:BUS:DEVICE.FUNCTION as lspci -D does, for example 0000:01:00.0")]
pub struct BadAddress(String);

impl FromStr for PciAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        parse(text).ok_or_else(|| BadAddress(text.chars().take(32).collect()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (domain, rest) = match text.matches(':').count() {
        1 => ("0000", text),
        _ => text.split_once(':')?,
    };
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let address = PciAddress {
        domain: hex(domain, 4..=5)?,
        bus: u8::try_from(hex(bus, 2..=2)?).ok()?,
        device: u8::try_from(hex(device, 2..=2)?).ok()?,
        function: u8::try_from(hex(function, 1..=1)?).ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

/// `from_str_radix` alone would take a sign.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_lspci_writes_them() {
        for good in ["0000:01:00.0", "10000:e1:1f.7"] {
            assert_eq!(good.parse::<PciAddress>().expect(good).to_string(), good);
        }
        assert_eq!("ABCD:0A:00.1".parse::<PciAddress>().expect("upper case").to_string(), "abcd:0a:00.1");
        assert_eq!("e1:1f.7".parse::<PciAddress>().expect("as lspci writes it").to_string(), "0000:e1:1f.7");
        for bad in [
            "",
            "01:00",
            ":01:00.0",
            "0000:01:00",
            "1:2:3:4.0",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:+1:00.0",
            "0000:01:00.0 ",
            "0000:1:00.0",
        ] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }
}
