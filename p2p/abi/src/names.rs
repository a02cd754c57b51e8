//! Virtual files of a mount.
//!
//! The directory [`CONTROL_DIR`] can be looked up in every directory of a mount
//! but is never listed, so a client that sees only a part of the tree (a bind
//! mount in a container) reaches it too.

use crate::ImporterFlags;

/// Name of the control directory.
pub const CONTROL_DIR: &str = ".peerfs";
/// Each open of this file in the control directory is one client session:
/// [`crate::ioctl::CONTEXT`] binds it, poll(2) reports revocations, read(2)
/// returns [`crate::ioctl::Event`]s. Closing its last descriptor ends it.
pub const SESSION: &str = "session";
/// Reading it gives the server's state as JSON.
pub const INFO_JSON: &str = "info.json";
/// Reading it gives the server's state as metrics, in the text format of Prometheus.
pub const METRICS: &str = "metrics";
/// Reading it gives the ledger of mappings as JSON (owner of the mount only).
pub const MAPPINGS_JSON: &str = "mappings.json";
/// Reading it gives the PCI topology and the distance matrix as JSON.
pub const TOPOLOGY_JSON: &str = "topology.json";
/// Commands written to it make the storage device fail (mounts with `-o faults`; owner of the mount only). Reading
/// it gives the faults in force.
pub const FAULTS: &str = "faults";
/// Reading it gives the use of device memory as JSON: of everybody for the owner of the mount, else of the reader's user.
pub const DEVMEM_JSON: &str = "devmem.json";
/// Prefix of a grant's virtual window file; the grant id in 16 hexadecimal digits follows.
pub const GRANT_PREFIX: &str = "grant-";
/// Per-file policy: `prefer` (default), `respect-cache` or `never`.
pub const XATTR_DIRECT: &str = "user.peerfs.direct";

/// The importer inside the server: see [`crate::ioctl::READ_BY_SERVER`].
pub const SERVER_IMPORTER: &str = "server";

/// Importers that a query may name without anybody having registered them, and what they can do.
pub const IMPORTERS: [(&str, ImporterFlags); 5] = [
    ("cpu", ImporterFlags::all()),
    ("static", ImporterFlags::WRITE.union(ImporterFlags::ATOMIC)),
    ("readonly", ImporterFlags::DYNAMIC),
    ("nonatomic", ImporterFlags::DYNAMIC.union(ImporterFlags::WRITE)),
    (SERVER_IMPORTER, ImporterFlags::all()),
];

/// What the name of a GPU begins with; its number follows, as CUDA counts.
pub const CUDA_PREFIX: &str = "cuda:";

/// What a GPU can do: nothing takes a registration with its driver back, so it may hold pins only.
const CUDA_FLAGS: ImporterFlags = ImporterFlags::WRITE;

/// What an importer of this name can do.
pub fn importer_flags(name: &str) -> Option<ImporterFlags> {
    match name.strip_prefix(CUDA_PREFIX) {
        Some(number) => is_number(number).then_some(CUDA_FLAGS),
        None => IMPORTERS.iter().find(|known| known.0 == name).map(|known| known.1),
    }
}

/// A number of a GPU, written in one way only.
fn is_number(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|number| number.to_string() == text)
}

/// File name of a grant in the control directory.
pub fn grant_name(grant_id: u64) -> String {
    format!("{GRANT_PREFIX}{grant_id:016x}")
}

/// The inverse of [`grant_name`].
pub fn parse_grant_name(name: &str) -> Option<u64> {
    let hex = name.strip_prefix(GRANT_PREFIX)?;
    if hex.len() != 16 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    u64::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_importers_that_pin() {
        for name in ["cuda:0", "cuda:15"] {
            assert_eq!(importer_flags(name), Some(ImporterFlags::WRITE));
        }
        for bad in ["cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cuda:01", "cuda:65536", "CUDA:0"] {
            assert_eq!(importer_flags(bad), None, "{bad}");
        }
    }

    #[test]
    fn grant_names_round_trip_and_refuse_others() {
        for id in [0, 1, 0xdead_beef, u64::MAX] {
            assert_eq!(parse_grant_name(&grant_name(id)), Some(id));
        }
        for bad in ["grant-", "grant-1", "grant-000000000000000G", "grant-+00000000000000f", "window-0000000000000001"] {
            assert_eq!(parse_grant_name(bad), None, "{bad}");
        }
    }
}
