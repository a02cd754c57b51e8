//! The PCI topologies that cases describe to the mount.

use std::io::Write;

use anyhow::Result;
use tempfile::NamedTempFile;

const EXAMPLE: &str = include_str!("../../../p2p/topology-example.json");
/// A field of the example's aperture, beside which others can be put.
const APERTURE: &str = "\"bytes\": \"0x4000000\"";

/// What the mount is told of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topology {
    /// Nothing.
    Unknown,
    /// The example of the documentation, which has every case.
    Example,
    /// The same with an aperture that no kernel object can hand to a process.
    NotGrantable,
    /// The same with an aperture that peers may only read.
    NotWritable,
}

impl Topology {
    /// The file for `-o topology=`; `None` when there is nothing to tell.
    pub(crate) fn file(self) -> Result<Option<NamedTempFile>> {
        let with = |field: &str| EXAMPLE.replace(APERTURE, &format!("{APERTURE}, {field}"));
        let text = match self {
            Topology::Unknown => return Ok(None),
            Topology::Example => EXAMPLE.to_owned(),
            Topology::NotGrantable => with("\"grantable\": false"),
            Topology::NotWritable => with("\"writable\": false, \"atomic\": false"),
        };
        let mut file = NamedTempFile::new()?;
        file.write_all(text.as_bytes())?;
        Ok(Some(file))
    }
}
