//! The video subsystem (vivid on videobuf2): its driver writes frames into pins, and reads them from pins.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peerfs_conformance::kit::{Flow, VideoQueue};
use peerfs_sys::Window;

use super::{Volume, same};
use crate::lab::guest::{Guest, until};

/// Of the driver, one video input and one output, both HDMI.
const PARAMETERS: [&str; 5] = ["node_types=0x101", "num_inputs=1", "input_types=3", "num_outputs=1", "output_types=1"];
const INPUT: &str = "vivid-000-vid-cap";
const OUTPUT: &str = "vivid-000-vid-out";
/// Controls, of vivid-ctrls.c.
const TEST_PATTERN: u32 = 0x00f0_f000;
const OVERLAY: u32 = TEST_PATTERN + 1;
const CONNECTED_TO: u32 = TEST_PATTERN + 113;
/// `OVERLAY`: no text over the picture.
const NO_TEXT: i32 = 2;
/// `CONNECTED_TO`: the generator of test pictures; the first output.
const GENERATOR: i32 = 0;
const FIRST_OUTPUT: i32 = 2;
/// For one frame.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn frames(guest: &mut Guest<'_>) -> Result<()> {
    guest.run("modprobe", &[&["vivid"], &PARAMETERS[..]].concat())?;
    let volume = Volume::mount(guest)?;
    written(guest, &volume)?;
    read_and_written(guest, &volume)?;
    detached(guest, &volume)?;
    volume.umount(guest)
}

/// The driver's frame is the file's content, and the driver alone keeps the pin.
fn written(guest: &Guest<'_>, volume: &Volume) -> Result<()> {
    let (queue, bytes) = capture(GENERATOR)?;
    let (path, old) = volume.file("picture", bytes, guest.seed())?;
    let fd = queued(volume, &queue, &path)?;
    frame(&queue, bytes)?;
    let picture = fs::read(&path)?;
    ensure!(picture.chunks(4096).zip(old.chunks(4096)).all(|(new, old)| new != old), "a page of the file is as it was");
    let window = Window::map(fd, bytes, false)?;
    let mut found = vec![0; bytes];
    window.read(0, &mut found).ok().context("the load faults")?;
    same(&picture, &found, "read(2) against an mmap of the dma-buf")?;
    drop(window);

    volume.outlive_a_look()?;
    volume.expect_pin("live", bytes)?;
    let half = bytes / 8192 * 4096;
    File::options().write(true).open(&path)?.set_len(half as u64)?;
    volume.expect_pin("orphaned", bytes)?;
    volume.expect_quarantined((bytes - half) as u64)?;
    drop(queue);
    volume.expect_all_back()?;
    same(&fs::read(&path)?, &picture[..half], "read(2) after the pin")
}

/// One file is what the driver puts out, and comes in again as another: bytes go from file to file by pins alone.
fn read_and_written(guest: &Guest<'_>, volume: &Volume) -> Result<()> {
    let output = VideoQueue::open(OUTPUT, Flow::Output)?;
    let (queue, bytes) = capture(FIRST_OUTPUT)?;
    ensure!(output.frame_bytes()? as usize == bytes, "input and output differ");
    let (source, content) = volume.file("source", bytes, guest.seed() + 1)?;
    let (target, _) = volume.file("target", bytes, guest.seed() + 2)?;
    drop(queued(volume, &output, &source)?);
    output.start()?;
    drop(queued(volume, &queue, &target)?);
    frame(&queue, bytes)?;
    same(&fs::read(&target)?, &content, "the file that came in against the one that went out")?;
    drop((output, queue));
    volume.expect_all_back()?;
    same(&fs::read(&target)?, &content, "the same after the pin")
}

/// What the driver writes once the pin was taken back by force reaches nobody.
fn detached(guest: &Guest<'_>, volume: &Volume) -> Result<()> {
    let (queue, bytes) = capture(GENERATOR)?;
    let (path, old) = volume.file("forced", bytes, guest.seed() + 3)?;
    let fd = queued(volume, &queue, &path)?;
    volume.detach(guest, &path, bytes)?;
    frame(&queue, bytes)?;
    let mut found = vec![0; bytes];
    Window::map(&fd, bytes, false)?.read(0, &mut found).ok().context("the load faults")?;
    ensure!(found != old, "the driver wrote nothing");
    same(&fs::read(&path)?, &old, "read(2) after a frame to what was detached")?;
    drop((queue, fd));
    volume.expect_all_back()?;
    same(&fs::read(&path)?, &old, "read(2) after the pin")
}

/// The input, and the size of its frames.
fn capture(connected_to: i32) -> Result<(VideoQueue, usize)> {
    let queue = VideoQueue::open(INPUT, Flow::Capture)?;
    queue.set(OVERLAY, NO_TEXT).context("no text")?;
    // The driver learns of its outputs a little after it was loaded.
    until("the input is connected", || queue.set(CONNECTED_TO, connected_to).ok())?;
    let bytes = queue.frame_bytes()? as usize;
    Ok((queue, bytes))
}

/// Pins a file and queues the pin; what is left of it here is a descriptor.
fn queued(volume: &Volume, queue: &VideoQueue, path: &Path) -> Result<OwnedFd> {
    volume.lend(path, |mapping| {
        let fd = mapping.pins()[0].fd.try_clone_to_owned()?;
        queue.queue(fd.as_fd()).context("the driver does not take the pin")?;
        Ok(fd)
    })
}

/// One frame comes in, whole.
fn frame(queue: &VideoQueue, bytes: usize) -> Result<()> {
    queue.start()?;
    let moved = queue.take(PATIENCE)? as usize;
    ensure!(moved == bytes, "the frame has {moved} bytes, not {bytes}");
    Ok(queue.stop()?)
}
