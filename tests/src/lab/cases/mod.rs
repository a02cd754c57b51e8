//! The cases, each declared once: the host reads what to do around it, the guest runs it.

mod fabrics;
mod kernel;
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

/// A case.
pub struct Case {
    /// As on the command line.
    pub name: &'static str,
    /// What it shows, in a few words.
    pub shows: &'static str,
    /// What it does in the first boot and in the second, over the same disks.
    pub steps: [Option<Step>; 2],
    /// What the host checks after each boot in which it took part.
    pub leaves: Option<Medium>,
    /// Why it is not run unless it is named.
    pub disabled: Option<&'static str>,
}

impl Case {
    /// What it does in a boot.
    pub fn step(&self, boot: usize) -> Option<Step> {
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
        disabled: None,
    },
    Case {
        name: "pmr-tree",
        shows: "persistent memory keeps a tree, also over a restart of the machine",
        steps: [Some(tree::pmr_first), Some(tree::pmr_again)],
        leaves: Some(Medium::Pmr),
        disabled: Some("the PMR is not a device yet"),
    },
    Case {
        name: "kernel-nvme",
        shows: "a disk of the kernel's NVMe driver keeps a tree",
        steps: [Some(kernel::disk), None],
        leaves: None,
        disabled: None,
    },
    Case {
        name: "nvme-of",
        shows: "a disk over NVMe/TCP keeps a tree",
        steps: [Some(fabrics::disk), None],
        leaves: None,
        disabled: None,
    },
];

/// The case of a name.
///
/// # Errors
/// When there is none.
pub fn named(name: &str) -> Result<&'static Case> {
    CASES.iter().find(|case| case.name == name).with_context(|| format!("there is no case `{name}`: see --list"))
}
