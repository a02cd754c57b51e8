//! A rule and the case that tries it.

use anyhow::Result;
use peerfs_abi::{Reason, Trigger};

use crate::backend::{ApertureSize, Capability};
use crate::evidence::Fact;
use crate::scene::Scene;
use crate::topology::Topology;

/// The mount that a case runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Setup {
    /// Its aperture.
    pub aperture: ApertureSize,
    /// The list after `-o`.
    pub options: &'static str,
    /// The PCI topology it is told of.
    pub topology: Topology,
    /// Nobody else uses it: the case unmounts it or kills its server.
    pub private: bool,
    /// What is mapped is device memory, which has an aperture of its own whatever the backend's is.
    pub device_memory: bool,
}

impl Setup {
    /// The usual mount: 100 ms to acknowledge.
    pub const USUAL: Setup =
        Setup { aperture: ApertureSize::Usual, options: "", topology: Topology::Unknown, private: false, device_memory: false };
    /// Importers may take longer than any case waits, so whatever ends in time did not wait for the deadline.
    pub const PATIENT: Setup = Setup { options: "deadline_ms=30000", ..Setup::USUAL };

    /// As [`Setup::USUAL`] with other options.
    pub const fn with(options: &'static str) -> Setup {
        Setup { options, ..Setup::USUAL }
    }

    /// With this aperture.
    pub const fn aperture(self, aperture: ApertureSize) -> Setup {
        Setup { aperture, ..self }
    }

    /// With this topology.
    pub const fn topology(self, topology: Topology) -> Setup {
        Setup { topology, ..self }
    }

    /// With other options, for device memory.
    pub const fn with_device_memory(options: &'static str) -> Setup {
        Setup { options, device_memory: true, ..Setup::USUAL }
    }

    /// For this case alone.
    pub const fn alone(self) -> Setup {
        Setup { private: true, ..self }
    }
}

/// One rule, one case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, as in `SEMANTICS.md` and after `--case`.
    pub name: &'static str,
    /// The rule, in one sentence.
    pub rule: &'static str,
    /// The mount it runs on.
    pub setup: Setup,
    /// What the backend must have.
    pub needs: &'static [Capability],
    /// What it must have seen to pass: the reason or the trigger that it is there for.
    pub proves: Option<Fact>,
    pub(crate) run: fn(&mut Scene<'_>) -> Result<()>,
}

impl Case {
    pub(crate) const fn new(name: &'static str, rule: &'static str, setup: Setup, run: fn(&mut Scene<'_>) -> Result<()>) -> Case {
        Case { name, rule, setup, needs: &[], proves: None, run }
    }

    pub(crate) const fn needing(self, needs: &'static [Capability]) -> Case {
        Case { needs, ..self }
    }

    /// The case is there for this reason: a stretch must fall back for it.
    pub(crate) const fn refusing(self, reason: Reason) -> Case {
        Case { proves: Some(Fact::Refused(reason)), ..self }
    }

    /// The case is there for this trigger: it must revoke.
    pub(crate) const fn revoking(self, trigger: Trigger) -> Case {
        Case { proves: Some(Fact::Revoked(trigger)), ..self }
    }
}
