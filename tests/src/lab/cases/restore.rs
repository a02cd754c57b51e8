//! Taking controllers from the kernel and giving them back.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::lab::guest::{A, B, Guest, until};

/// Where nothing has its signature: behind it are data.
const HEAD: usize = 128 << 10;

pub fn drivers(guest: &mut Guest<'_>) -> Result<()> {
    let disk = guest.kernel_disk(A)?;
    guest.kernel_disk(B)?;

    let mut head = vec![0; HEAD];
    partition_table(&mut head);
    overwrite(&disk, &head)?;
    guest.run("blockdev", &["--rereadpt", &disk])?;
    must_stay(guest, "partition")?;

    overwrite(&disk, &[0; HEAD])?;
    guest.run("blockdev", &["--rereadpt", &disk])?;
    for module in ["crc32c_generic", "ext4"] {
        guest.run("modprobe", &[module])?;
    }
    guest.run("mke2fs", &["-F", &disk])?;
    std::fs::create_dir_all("/mnt/kernel")?;
    guest.run("mount", &["-t", "ext4", &disk, "/mnt/kernel"])?;
    let outcome = must_stay(guest, "mounted");
    guest.run("umount", &["/mnt/kernel"])?;
    outcome?;

    overwrite(&disk, &[0; HEAD])?;
    guest.peerfs(&["nvme", "bind", A.address])?;
    ensure!(A.driver().as_deref() == Some("vfio-pci"), "the driver of A is {:?}", A.driver());
    ensure!(B.driver().as_deref() == Some("nvme"), "the driver of B is {:?}", B.driver());
    guest.peerfs(&["nvme", "unbind", A.address])?;
    until("A is the kernel's again", || (A.driver().as_deref() == Some("nvme")).then_some(()))?;
    guest.kernel_disk(A)?;
    for_as_long_as_it_is_mounted(guest)?;
    guest.kernel_disk(A).map(drop)
}

/// Commands that name a controller take it from its driver, and give it back when they end.
fn for_as_long_as_it_is_mounted(guest: &mut Guest<'_>) -> Result<()> {
    let device = A.part("ns1");
    let is_the_kernels = || (A.driver().as_deref() == Some("nvme")).then_some(());
    guest.peerfs(&["mkfs", &device])?;
    until("A is the kernel's again after mkfs", is_the_kernels)?;
    let point = guest.mount(&device)?;
    ensure!(A.driver().as_deref() == Some("vfio-pci"), "the driver of the mounted A is {:?}", A.driver());
    ensure!(B.driver().as_deref() == Some("nvme"), "the driver of B is {:?}", B.driver());
    // What somebody has is nobody else's.
    for command in [&["fsck", &device][..], &["nvme", "unbind", A.address]] {
        guest.refused("peerfs", command)?;
    }
    std::fs::write(point.join("file"), b"kept")?;
    guest.umount(&point)?;
    until("A is the kernel's again after the mount", is_the_kernels)?;
    let said = guest.peerfs(&["fsck", &device])?;
    ensure!(said.contains("clean"), "fsck says {said}");
    until("A is the kernel's again after fsck", is_the_kernels)
}

/// Binding A is refused and both controllers stay with the kernel.
fn must_stay(guest: &Guest<'_>, because: &str) -> Result<()> {
    let said = guest.refused("peerfs", &["nvme", "bind", A.address])?;
    ensure!(said.contains(because), "the refusal does not say `{because}`: {said}");
    for controller in [A, B] {
        ensure!(controller.driver().as_deref() == Some("nvme"), "{} was taken from nvme after: {said}", controller.address);
    }
    Ok(())
}

/// An MBR with one partition of Linux, from sector 2048.
fn partition_table(head: &mut [u8]) {
    head[446 + 4] = 0x83;
    head[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    head[446 + 12..446 + 16].copy_from_slice(&8192_u32.to_le_bytes());
    head[510..512].copy_from_slice(&[0x55, 0xAA]);
}

fn overwrite(disk: &str, head: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).open(disk).with_context(|| disk.to_owned())?;
    file.write_all_at(head, 0)?;
    file.sync_all().with_context(|| disk.to_owned())
}
