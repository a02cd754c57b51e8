//! What a mount tells of itself, in one answer.

use std::path::Path;

use anyhow::Result;
use peerfs_abi::devmem::device_memory_name;
use peerfs_p2p::ObjectId;
use serde_json::{Value, json};

use crate::commands::server_info;

/// State, ledger, device memory and metrics. What this user may not ask, or the mount has not, is null.
///
/// # Errors
/// The mount has gone.
pub fn state(mountpoint: &Path) -> Result<Value> {
    let info = server_info::info(mountpoint).map_err(anyhow::Error::from)?;
    let ledger = server_info::mappings(mountpoint).ok().map(with_names);
    let device_memory = match info["device_memory"].is_null() {
        true => None,
        false => server_info::device_memory(mountpoint).ok().map(with_names),
    };
    Ok(json!({
        "info": info,
        "ledger": ledger,
        "device_memory": device_memory,
        "metrics": server_info::metrics(mountpoint)?,
    }))
}

/// Numbers of objects as text: those of device memory have more bits than numbers in a browser.
fn with_names(mut ledger: Value) -> Value {
    for list in ledger.as_object_mut().into_iter().flatten().filter_map(|(_, list)| list.as_array_mut()) {
        for record in list {
            if let Some(object) = record["object"].as_u64().map(ObjectId) {
                record["object"] = object.allocation().map_or_else(|| object.0.to_string(), device_memory_name).into();
            }
        }
    }
    ledger
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named() {
        let memory = ObjectId::device_memory(3).0;
        let named = with_names(json!({ "mappings": [{ "object": 7 }, { "object": memory }], "left_out": 1, "pins": [{}] }));
        assert_eq!(named["mappings"], json!([{ "object": "7" }, { "object": "devmem-3" }]));
        assert_eq!((&named["left_out"], &named["pins"]), (&json!(1), &json!([{}])));
    }
}
