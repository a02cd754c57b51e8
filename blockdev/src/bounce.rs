//! Window transfers for devices that cannot reach a window's memory: through a buffer of their own.

use crate::{BlockDevice, DeviceError, Io, WindowSlice};

/// Largest step in bytes: what fits the biggest pool buffer.
const STEP_BYTES: u64 = 1 << 20;

/// Copies from the device at `offset` (bytes) into the window.
///
/// # Errors
/// What the device or the window's memory answers; part may have been copied.
pub fn fill_window(device: &(impl BlockDevice + ?Sized), offset: u64, window: &WindowSlice) -> Result<(), DeviceError> {
    for (at, length) in steps(window.length) {
        let buf = device.buffer(length as usize);
        let offset = offset + at;
        if let Some(buf) = device.submit(Io::Read { offset, buf }).wait()? {
            window.memory.write(window.offset + at, &buf[..length as usize])?;
        }
    }
    Ok(())
}

/// Copies from the window to the device at `offset` (bytes).
///
/// # Errors
/// What the device or the window's memory answers; part may have been copied.
pub fn drain_window(device: &(impl BlockDevice + ?Sized), offset: u64, window: &WindowSlice) -> Result<(), DeviceError> {
    for (at, length) in steps(window.length) {
        let mut buf = device.buffer(length as usize);
        let piece = &mut buf[..length as usize];
        window.memory.read(window.offset + at, piece)?;
        let offset = offset + at;
        device.submit(Io::Write { offset, buf }).wait()?;
    }
    Ok(())
}

/// Cuts `length` into steps: (offset, length) each.
pub(crate) fn steps(length: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..length).step_by(STEP_BYTES as usize).map(move |at| (at, STEP_BYTES.min(length - at)))
}
