//! A namespace over NVMe/TCP: the guest is target and host at once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::tree::{fill, look};
use crate::lab::guest::{A, Guest, set, until};

const NAME: &str = "nqn.2014-08.org.nvmexpress:lab";
const TARGET: &str = "/sys/kernel/config/nvmet";

pub fn disk(guest: &mut Guest<'_>) -> Result<()> {
    let backing = guest.kernel_disk(A)?;
    let before = disks()?;
    offer(guest, &backing)?;
    let options = format!("transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn={NAME}");
    set("/dev/nvme-fabrics", &options).context("connecting to the target")?;
    let disk = until("the disk over NVMe/TCP is there", || disks().ok()?.difference(&before).next().cloned())?;
    let device = format!("image:/dev/{disk}");
    let outcome =
        guest.peerfs(&["mkfs", "--force", &device]).and_then(|_| fill(guest, &device)).and_then(|()| look(guest, &device));
    disconnect()?;
    outcome
}

/// Exports a disk on the loopback interface.
fn offer(guest: &Guest<'_>, backing: &str) -> Result<()> {
    for module in ["nvmet-tcp", "nvme-tcp"] {
        guest.run("modprobe", &[module])?;
    }
    if !Path::new(TARGET).exists() {
        guest.run("mount", &["-t", "configfs", "configfs", "/sys/kernel/config"])?;
    }
    let subsystem = format!("{TARGET}/subsystems/{NAME}");
    let namespace = format!("{subsystem}/namespaces/1");
    let port = format!("{TARGET}/ports/1");
    for directory in [&subsystem, &namespace, &port] {
        fs::create_dir(directory).with_context(|| directory.clone())?;
    }
    set(format!("{subsystem}/attr_allow_any_host"), "1")?;
    set(format!("{namespace}/device_path"), backing)?;
    set(format!("{namespace}/enable"), "1")?;
    for (attribute, value) in [("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "127.0.0.1"), ("trsvcid", "4420")] {
        set(format!("{port}/addr_{attribute}"), value)?;
    }
    std::os::unix::fs::symlink(&subsystem, format!("{port}/subsystems/{NAME}"))?;
    Ok(())
}

/// Ends the connection and takes the disk back from the target.
fn disconnect() -> Result<()> {
    for controller in fs::read_dir("/sys/class/nvme")? {
        let controller = controller?.path();
        if fs::read_to_string(controller.join("transport"))?.trim() == "tcp" {
            set(controller.join("delete_controller"), "1")?;
        }
    }
    fs::remove_file(format!("{TARGET}/ports/1/subsystems/{NAME}"))?;
    for directory in ["ports/1".to_owned(), format!("subsystems/{NAME}/namespaces/1"), format!("subsystems/{NAME}")] {
        fs::remove_dir(format!("{TARGET}/{directory}")).with_context(|| directory)?;
    }
    Ok(())
}

/// Names of NVMe disks that programs can open: paths of a multipath disk have none.
fn disks() -> Result<BTreeSet<String>> {
    let names = fs::read_dir("/sys/block")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with("nvme") && Path::new("/dev").join(name).exists()).collect())
}
