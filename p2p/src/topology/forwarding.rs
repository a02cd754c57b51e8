//! Which host bridges pass requests between devices on, as far as the kernel knows.
//!
//! No register tells. The facts are those of `drivers/pci/p2pdma.c` of Linux 6.12, which was told of each by whoever makes
//! or tried it; later kernels know of more.

use super::Forwarding;

const INTEL: u16 = 0x8086;

/// First device of the host bridge's bus, and what passes between devices there.
const KNOWN: [(u16, u16, Forwarding); 10] = [
    // Xeon E5, Core i7 (Sandy Bridge-E).
    (INTEL, 0x3c00, Forwarding::Same),
    (INTEL, 0x3c01, Forwarding::Same),
    // Xeon E5 v3, E7 v3 (Haswell).
    (INTEL, 0x2f00, Forwarding::Same),
    (INTEL, 0x2f01, Forwarding::Same),
    // Skylake-E: four root ports, and the host bridge.
    (INTEL, 0x2030, Forwarding::Any),
    (INTEL, 0x2031, Forwarding::Any),
    (INTEL, 0x2032, Forwarding::Any),
    (INTEL, 0x2033, Forwarding::Any),
    (INTEL, 0x2020, Forwarding::Any),
    // Ice Lake and later.
    (INTEL, 0x09a2, Forwarding::Any),
];

/// Family of the first Zen processors.
const ZEN: u32 = 0x17;

/// Every host bridge of a machine with this processor passes requests on (text of `/proc/cpuinfo`; the first one counts).
/// Hygon's processors have a vendor of their own and are not among them.
pub(super) fn processor_forwards(cpuinfo: &str) -> bool {
    let field = |name: &str| {
        let mut fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
    };
    let family: Option<u32> = field("cpu family").and_then(|family| family.parse().ok());
    field("vendor_id") == Some("AuthenticAMD") && family.is_some_and(|family| family >= ZEN)
}

/// What the host bridge passes on whose bus has this device first.
pub(super) fn of_first_device(vendor: u16, device: u16) -> Forwarding {
    let known = KNOWN.iter().find(|known| (known.0, known.1) == (vendor, device));
    known.map_or(Forwarding::No, |known| known.2)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn cpuinfo(vendor: &str, family: u32) -> String {
        format!("processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 1\n\nprocessor\t: 1\nvendor_id\t: x\n")
    }

    #[test]
    fn zen_and_later_processors_of_amd_pass_everything_on() {
        assert!(processor_forwards(&cpuinfo("AuthenticAMD", 23)) && processor_forwards(&cpuinfo("AuthenticAMD", 26)));
        assert!(!processor_forwards(&cpuinfo("AuthenticAMD", 22)));
        assert!(!processor_forwards(&cpuinfo("HygonGenuine", 24)) && !processor_forwards(&cpuinfo("GenuineIntel", 23)));
        assert!(!processor_forwards("") && !processor_forwards("processor: 0\ncpu family: x\nvendor_id: AuthenticAMD"));
    }

    #[test]
    fn known_host_bridges_are_told_from_others() {
        assert_eq!(of_first_device(INTEL, 0x2f00), Forwarding::Same);
        assert_eq!(of_first_device(INTEL, 0x09a2), Forwarding::Any);
        assert_eq!(of_first_device(INTEL, 0x29c0), Forwarding::No, "QEMU's q35");
        assert_eq!(of_first_device(0x1022, 0x2020), Forwarding::No);
    }
}
