//! Which devices reach each other's memory without passing through main memory.

mod address;

pub use address::{BadAddress, PciAddress};
