//! Pins that are dma-bufs, in the hands of drivers of the kernel. The drivers are emulated devices; what they do with memory
//! is not: they hold it by themselves, and write it as long as they hold it.

mod graphics;
mod rules;
mod video;

pub use graphics::imported;
pub use rules::conform;
pub use video::frames;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peerfs_abi::{ImporterFlags, MapFlags};
use peerfs_client::{ImporterSpec, Mapping, PinKind, Session};
use serde_json::Value;

use crate::Random;
use crate::lab::guest::{Guest, text, until_within};

const WRITE_PIN: MapFlags = MapFlags::PIN.union(MapFlags::WRITE);
/// The server looks for holders every 200 ms; the emulated machine may be slow.
const REAPED: Duration = Duration::from_secs(5);

/// A mounted volume in the guest's memory.
struct Volume {
    point: PathBuf,
}

impl Volume {
    fn mount(guest: &mut Guest<'_>) -> Result<Volume> {
        let device = "image:/tmp/pins.img";
        guest.peerfs(&["mkfs", "--force", device, "--size", "64M"])?;
        Ok(Volume { point: guest.mount(device)? })
    }

    fn umount(self, guest: &mut Guest<'_>) -> Result<()> {
        guest.umount(&self.point)?;
        Ok(fs::remove_file("/tmp/pins.img")?)
    }

    /// A new file with bytes that a seed gives, closed again.
    fn file(&self, name: &str, bytes: usize, seed: u64) -> Result<(PathBuf, Vec<u8>)> {
        let path = self.point.join(name);
        let mut content = vec![0; bytes];
        Random::new(seed).fill(&mut content);
        let mut file = File::create(&path)?;
        file.write_all(&content)?;
        file.sync_all()?;
        Ok((path, content))
    }

    /// Pins a whole file for an importer that nothing can be taken back from, and lends the dma-buf to `with`: afterwards
    /// this process has neither session nor mapping nor descriptor of it.
    fn lend<T>(&self, path: &Path, with: impl FnOnce(&Mapping) -> Result<T>) -> Result<T> {
        let answer = {
            let spec = ImporterSpec { name: "static".into(), flags: ImporterFlags::WRITE, ..ImporterSpec::cpu() };
            let session = Session::open(&self.point, spec)?;
            let file = peerfs_client::File::open_with(path, File::options().read(true).write(true))?;
            with(&pin(&session, &file, WRITE_PIN, PinKind::Dmabuf)?)?
        };
        let gone = || (self.info().ok()?["sessions"] == 0 && self.info().ok()?["mappings"] == 0).then_some(());
        until_within(REAPED, "session and mapping have ended", gone)?;
        Ok(answer)
    }

    fn info(&self) -> Result<Value> {
        self.report("info.json")
    }

    fn report(&self, name: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.point.join(".peerfs").join(name))?)?)
    }

    /// There is one pin, in this state, and all of it is charged.
    fn expect_pin(&self, state: &str, bytes: usize) -> Result<()> {
        let (ledger, info) = (self.report("mappings.json")?, self.info()?);
        let [pin] = ledger["pins"].as_array().context("the ledger has pins")?.as_slice() else {
            anyhow::bail!("the pins are {}", ledger["pins"])
        };
        ensure!(pin["state"] == state && pin["kind"] == "dmabuf", "the pin is {pin} instead of {state}");
        ensure!(info["pinned_bytes"] == bytes, "{} bytes are charged instead of {bytes}", info["pinned_bytes"]);
        Ok(())
    }

    /// The server has looked for holders since now, and this file's pin was not ended by that: another's was.
    fn outlive_a_look(&self) -> Result<()> {
        let before = self.info()?["pins"].clone();
        let (path, _) = self.file("other", 4096, 1)?;
        self.lend(&path, |_| Ok(()))?;
        until_within(REAPED, "the pin without holders has ended", || (self.info().ok()?["pins"] == before).then_some(()))?;
        Ok(fs::remove_file(path)?)
    }

    /// So many bytes of the volume wait for the end of a pin.
    fn expect_quarantined(&self, bytes: u64) -> Result<()> {
        // What is freed comes back with the next commit.
        File::open(&self.point)?.sync_all()?;
        let found = || self.info().map(|info| info["volume"]["quarantined_bytes"].clone());
        until_within(REAPED, "the quarantine has what was given up", || (found().ok()? == bytes).then_some(()))
            .with_context(|| format!("{:?} bytes are in quarantine instead of {bytes}", found()))
    }

    /// Nobody holds a pin any more: its end has come, and given everything back.
    fn expect_all_back(&self) -> Result<()> {
        until_within(REAPED, "the pin has ended", || (self.info().ok()?["pins"] == 0).then_some(()))?;
        let info = self.info()?;
        ensure!(info["pinned_bytes"] == 0 && info["windows"] == 0, "the end of the pin left {info}");
        self.expect_quarantined(0)
    }

    /// Takes a file's pin back by force, as an administrator does: it is detached.
    fn detach(&self, guest: &Guest<'_>, path: &Path, bytes: usize) -> Result<()> {
        let said: Value = serde_json::from_str(&guest.peerfs(&["revoke", "--pins", "--json", &text(path)])?)?;
        ensure!(said["pins_detached"] == 1 && said["pins_cut"] == 0, "the forced revocation answers {said}");
        self.expect_pin("detached", bytes)
    }
}

/// The whole file, direct, as one pin of this kind.
fn pin(session: &Session, file: &peerfs_client::File, flags: MapFlags, kind: PinKind) -> Result<Mapping> {
    // Handles that were just closed may be on their way to the server still.
    let pinned = |mapping: &Mapping| mapping.segments().iter().all(|segment| segment.pin.is_some());
    let mapping = until_within(REAPED, "the file is pinned", || session.map(file, .., flags).ok().filter(pinned))?;
    let kinds: Vec<PinKind> = mapping.pins().iter().map(|pin| pin.kind).collect();
    ensure!(kinds == [kind], "the pins are {kinds:?} instead of one {kind:?}");
    Ok(mapping)
}

/// Contents are equal, or it is said where they are not.
fn same(found: &[u8], expected: &[u8], what: &str) -> Result<()> {
    let first = found.iter().zip(expected).position(|(one, other)| one != other);
    ensure!(found.len() == expected.len() && first.is_none(), "{what}: the first other byte is {first:?} of {}", expected.len());
    Ok(())
}
