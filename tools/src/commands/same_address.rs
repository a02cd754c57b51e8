//! `peerfs map --va-bits`: the file at one address for the processor and a device of limited address width, and
//! the proof that both see the same bytes there.

use anyhow::{Context, Result, ensure};
use peerfs_client::cpu::{Device, DeviceConfig, DeviceStats};
use peerfs_client::svm::{Placement, SharedRange};
use peerfs_client::{Mapping, Session};
use serde_json::{Value, json};

use crate::args::MapArgs;
use crate::{output, ranges};

/// Bytes compared at once.
const PIECE_BYTES: usize = 1 << 20;

/// What was found.
pub struct SameAddress {
    address: u64,
    bits: u32,
    equal_bytes: u64,
    stats: DeviceStats,
}

/// Maps what `mapping` maps once more, at one address, and compares every byte.
pub fn compare(args: &MapArgs, session: &Session, mapping: &Mapping, bits: u32) -> Result<SameAddress> {
    let what = || format!("share {} at one address", args.request.file.display());
    let device = Device::new(session, DeviceConfig { va_bits: bits, ..DeviceConfig::default() });
    let flags = ranges::flags(&args.request);
    let shared =
        SharedRange::map(&device, &args.request.file, mapping.range(), flags, Placement::default()).with_context(what)?;
    let length = usize::try_from(mapping.range().end - mapping.range().start)?;
    let (mut by_device, mut by_cpu) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let mut at = 0;
    while at < length {
        let piece = PIECE_BYTES.min(length - at);
        let address = shared.address() + at as u64;
        let count = device.load(address, &mut by_device[..piece]).with_context(what)?;
        ensure!(count == piece, "cannot compare at address {address:#x}: the file became shorter");
        let loaded = shared.cpu().read(at, &mut by_cpu[..piece]);
        loaded.ok().with_context(|| format!("cannot load at address {address:#x}: the file became shorter"))?;
        ensure!(
            by_device[..piece] == by_cpu[..piece],
            "processor and device differ within {piece} bytes at address {address:#x}"
        );
        at += piece;
    }
    Ok(SameAddress { address: shared.address(), bits, equal_bytes: length as u64, stats: device.stats() })
}

impl SameAddress {
    /// One line.
    pub fn text(&self) -> String {
        format!(
            "at address {:#x} for processor and device ({} bits): {} equal on both sides, {} of them directly, {} faults\n",
            self.address,
            self.bits,
            output::bytes(self.equal_bytes),
            output::bytes(self.stats.moved.direct()),
            self.stats.faults
        )
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        json!({
            "address": self.address,
            "va_bits": self.bits,
            "bytes_equal": self.equal_bytes,
            "bytes_direct": self.stats.moved.direct(),
            "faults": self.stats.faults,
        })
    }
}
