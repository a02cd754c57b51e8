//! The cases, each declared once: the host reads what to do around it, the guest runs it.

mod bar;
mod conformance;
mod fabrics;
mod kernel;
pub mod kill;
mod peers;
mod pins;
mod programs;
mod reset;
mod restore;
mod tree;

use anyhow::{Context, Result};

use super::guest::Guest;

/// What a case does in one boot.
pub type Step = fn(&mut Guest<'_>) -> Result<()>;

/// A medium that must hold a clean volume after a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// The first controller's persistent memory.
    Pmr,
    /// The second controller's namespace.
    NamespaceB,
}

/// Which controllers a machine has, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rig {
    /// One with a PMR and one with a CMB, on the root bus.
    Pair,
    /// The same, and one with a slow medium, each behind a root port of its own, from which it can be pulled.
    Ports,
}

/// A case.
pub struct Case {
    /// As on the command line.
    pub name: &'static str,
    /// What it shows, in a few words.
    pub shows: &'static str,
    /// What it does in the first boot and in the second, over the same disks. If the machine is killed, the first step is
    /// for every boot.
    pub steps: [Option<Step>; 2],
    /// What the host checks after each boot in which it took part.
    pub leaves: Option<Medium>,
    /// How often the machine is killed while the first step goes on; such a case has machines of its own.
    pub kills: Option<usize>,
    /// The machine it needs. Cases with the same share boots.
    pub rig: Rig,
    /// The IOMMU has to stop transfers in it; in every other it must not have to.
    pub faults: bool,
}

impl Case {
    /// What it does in a boot.
    pub fn step(&self, boot: usize) -> Option<Step> {
        if self.kills.is_some() {
            return self.steps[0];
        }
        self.steps.get(boot).copied().flatten()
    }
}

/// All cases, in the order in which they share a boot.
pub const CASES: &[Case] = &[
    Case {
        name: "ns1-tree",
        shows: "a namespace through VFIO keeps a tree, also over a restart of the machine",
        steps: [Some(tree::ns1_first), Some(tree::ns1_again)],
        leaves: Some(Medium::NamespaceB),
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "pmr-tree",
        shows: "persistent memory keeps a tree, also over a restart of the machine",
        steps: [Some(tree::pmr_first), Some(tree::pmr_again)],
        leaves: Some(Medium::Pmr),
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "bar-windows",
        shows: "files are read through CMB and PMR, and by fallback where no process can be given that memory",
        steps: [None, Some(bar::windows)],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "conformance-pmr",
        shows: "the rules of mapping hold on persistent memory, bare and behind windows",
        steps: [None, Some(conformance::pmr)],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "conformance-ns1",
        shows: "the rules of mapping hold on a namespace with its controller's CMB; with --full also behind windows",
        steps: [None, Some(conformance::ns1)],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "kernel-nvme",
        shows: "a disk of the kernel's NVMe driver keeps a tree",
        steps: [Some(kernel::disk), None],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "nvme-of",
        shows: "a disk over NVMe/TCP keeps a tree",
        steps: [Some(fabrics::disk), None],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "driver-restore",
        shows: "what is in use stays the kernel's, and what was taken from its driver comes back",
        steps: [Some(restore::drivers), None],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "reset-under-load",
        shows: "a reset of the controller under load, of a namespace and of a PMR, hangs nothing and loses nothing that was synced",
        steps: [None, Some(reset::controller)],
        leaves: Some(Medium::NamespaceB),
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "pmr-off-under-load",
        shows: "a PMR that is switched off under load hangs nothing and loses nothing that was synced",
        steps: [None, Some(reset::region)],
        leaves: Some(Medium::Pmr),
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "demo",
        shows: "the demo runs on a stock kernel",
        steps: [Some(programs::demo), None],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "p2p-copy",
        shows: "a controller copies a file device to device, and by fallback where that is decided, in both directions",
        steps: [Some(peers::copy), None],
        leaves: Some(Medium::Pmr),
        kills: None,
        rig: Rig::Ports,
        faults: false,
    },
    Case {
        name: "p2p-cmb",
        shows: "a controller copies device to device through windows in another's CMB",
        steps: [Some(peers::windows), None],
        leaves: Some(Medium::NamespaceB),
        kills: None,
        rig: Rig::Ports,
        faults: false,
    },
    Case {
        name: "p2p-truncate",
        shows: "after a truncation nothing of a transfer under way lands, a bystander's goes on",
        steps: [Some(peers::truncate), None],
        leaves: Some(Medium::Pmr),
        kills: None,
        rig: Rig::Ports,
        faults: false,
    },
    Case {
        name: "p2p-overwrite",
        shows: "a copy that a write overtakes has bytes of before or after, and nothing else",
        steps: [Some(peers::overwrite), None],
        leaves: Some(Medium::Pmr),
        kills: None,
        rig: Rig::Ports,
        faults: false,
    },
    Case {
        name: "p2p-read-lease",
        shows: "the IOMMU keeps a controller from writing what it may only read",
        steps: [Some(peers::read_lease), None],
        leaves: None,
        kills: None,
        rig: Rig::Ports,
        faults: true,
    },
    Case {
        name: "p2p-drain",
        shows: "a transfer that is under way when its window is cut does not land in what the blocks hold next",
        steps: [Some(peers::drained), None],
        leaves: None,
        kills: None,
        rig: Rig::Ports,
        faults: false,
    },
    Case {
        name: "p2p-reset",
        shows: "a reset of either side and a PMR that is switched off under a transfer hang nothing and spoil nothing",
        steps: [Some(peers::reset), None],
        leaves: Some(Medium::Pmr),
        kills: None,
        rig: Rig::Ports,
        faults: false,
    },
    // Last: what it pulls out does not come back in this boot.
    Case {
        name: "p2p-removal",
        shows: "controllers that are pulled out under a transfer take nothing else with them",
        steps: [Some(peers::removal), None],
        leaves: Some(Medium::Pmr),
        kills: None,
        rig: Rig::Ports,
        faults: false,
    },
    Case {
        name: "pin-graphics",
        shows: "a pin is a dma-buf: the graphics subsystem imports it, keeps it alive and is detached by force",
        steps: [Some(pins::imported), None],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "pin-video",
        shows: "a video driver writes frames into a pin and reads them from one, and they are the files' contents",
        steps: [Some(pins::frames), None],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "pin-rules",
        shows: "the rules of pins hold where writable ones are dma-bufs",
        steps: [Some(pins::conform), None],
        leaves: None,
        kills: None,
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "pmr-kill",
        shows: "what was synced to persistent memory outlives power failures",
        steps: [Some(kill::pmr), None],
        leaves: Some(Medium::Pmr),
        kills: Some(3),
        rig: Rig::Pair,
        faults: false,
    },
    Case {
        name: "ns1-kill",
        shows: "what was synced to a namespace outlives a power failure",
        steps: [Some(kill::ns1), None],
        leaves: Some(Medium::NamespaceB),
        kills: Some(1),
        rig: Rig::Pair,
        faults: false,
    },
];

/// The case of a name.
///
/// # Errors
/// When there is none.
pub fn named(name: &str) -> Result<&'static Case> {
    CASES.iter().find(|case| case.name == name).with_context(|| format!("there is no case `{name}`: see --list"))
}
