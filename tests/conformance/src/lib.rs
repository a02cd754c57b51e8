//! The rules of mapping, one named case each, on a real mount served by the real binary.
//!
//! `SEMANTICS.md` states the rules; each names its case here. A case runs against any [`Backend`], so that a hardware
//! backend is measured by the same rules as the software ones, and asserts path and reason, not only bytes: the runner
//! fails one that has not seen the reason or trigger it is there for, and one that leaves anything behind. What a
//! backend or this machine cannot show is skipped with the reason why, and never counted as passed.

mod backend;
mod case;
mod cases;
mod evidence;
pub mod kit;
mod leftovers;
pub mod puppet;
mod report;
mod runner;
mod scene;
mod topology;
mod witness;

pub use backend::{ApertureSize, Backend, Capability, DeviceBackend, ImageBackend, MemBackend, software_backends};
pub use case::{Case, Setup};
pub use cases::all as all_cases;
pub use evidence::Fact;
pub use report::{Line, Report, Verdict};
pub use runner::run;
pub use topology::Topology;
