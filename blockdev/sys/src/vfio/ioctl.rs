//! The ioctls of VFIO, one function each. Nothing else in `vfio` is unsafe.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::dma_range::DmaRange;

use super::abi;

/// Most bytes of an answer; the kernel's lists are a few hundred.
const MAX_ANSWER_BYTES: usize = 64 << 10;

pub(super) fn api_version(container: &File) -> io::Result<i32> {
    // SAFETY: takes no argument.
    unsafe { with_integer(container, abi::GET_API_VERSION, 0) }
}

pub(super) fn has_extension(container: &File, extension: u32) -> io::Result<bool> {
    // SAFETY: takes an integer.
    unsafe { with_integer(container, abi::CHECK_EXTENSION, extension) }.map(|answer| answer > 0)
}

pub(super) fn set_iommu(container: &File, kind: u32) -> io::Result<()> {
    // SAFETY: takes an integer.
    unsafe { with_integer(container, abi::SET_IOMMU, kind) }.map(drop)
}

pub(super) fn iommu_info(container: &File) -> io::Result<(abi::IommuHeader, Vec<u8>)> {
    ask(container, abi::IOMMU_GET_INFO, abi::IommuHeader::default())
}

pub(super) fn map_dma(container: &File, range: &DmaRange, iova: u64, flags: u32) -> io::Result<()> {
    let mut map = abi::DmaMap { argsz: 0, flags, vaddr: range.address(), iova, size: range.length() };
    // SAFETY: the memory named is a `DmaRange`: mapped, and free of references that a device's access would break.
    unsafe { with_bytes(container, abi::IOMMU_MAP_DMA, map.as_mut_bytes()) }.map(drop)
}

/// Answers how many bytes were unmapped.
pub(super) fn unmap_dma(container: &File, iova: u64, size: u64) -> io::Result<u64> {
    let mut unmap = abi::DmaUnmap { iova, size, ..Default::default() };
    // SAFETY: names no memory.
    unsafe { with_bytes(container, abi::IOMMU_UNMAP_DMA, unmap.as_mut_bytes()) }?;
    Ok(unmap.size)
}

pub(super) fn group_status(group: &File) -> io::Result<u32> {
    ask(group, abi::GROUP_GET_STATUS, abi::GroupStatus::default()).map(|(status, _)| status.flags)
}

pub(super) fn set_container(group: &File, container: &File) -> io::Result<()> {
    let descriptor = container.as_raw_fd();
    // SAFETY: the kernel reads one descriptor number, which is alive.
    done(unsafe { libc::ioctl(group.as_raw_fd(), abi::GROUP_SET_CONTAINER as libc::Ioctl, &raw const descriptor) }).map(drop)
}

/// Opens a device of the group. The kernel opens it with O_CLOEXEC.
pub(super) fn device_fd(group: &File, name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the kernel reads a string that ends with a zero byte.
    let fd = done(unsafe { libc::ioctl(group.as_raw_fd(), abi::GROUP_GET_DEVICE_FD as libc::Ioctl, name.as_ptr()) })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

pub(super) fn device_info(device: &File) -> io::Result<abi::DeviceInfo> {
    ask(device, abi::DEVICE_GET_INFO, abi::DeviceInfo::default()).map(|(info, _)| info)
}

pub(super) fn region_info(device: &File, index: u32) -> io::Result<(abi::RegionHeader, Vec<u8>)> {
    ask(device, abi::DEVICE_GET_REGION_INFO, abi::RegionHeader { index, ..Default::default() })
}

pub(super) fn irq_info(device: &File, index: u32) -> io::Result<abi::IrqInfo> {
    ask(device, abi::DEVICE_GET_IRQ_INFO, abi::IrqInfo { index, ..Default::default() }).map(|(info, _)| info)
}

/// `data` follows the structure, as its flags say.
pub(super) fn set_irqs(device: &File, set: abi::IrqSet, data: &[i32]) -> io::Result<()> {
    let mut bytes = [set.as_bytes(), data.as_bytes()].concat();
    // SAFETY: names no memory; descriptors in the data are numbers that the kernel looks up.
    unsafe { with_bytes(device, abi::DEVICE_SET_IRQS, &mut bytes) }.map(drop)
}

pub(super) fn reset(device: &File) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { with_integer(device, abi::DEVICE_RESET, 0) }.map(drop)
}

/// Asks a question whose answer is a `T`, followed by capabilities for which `argsz` comes back larger. Gives all of its bytes too.
fn ask<T>(file: &File, command: u32, question: T) -> io::Result<(T, Vec<u8>)>
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable,
{
    let mut room = size_of::<T>();
    loop {
        let mut bytes = question.as_bytes().to_vec();
        bytes.resize(room, 0);
        // SAFETY: questions name no memory.
        unsafe { with_bytes(file, command, &mut bytes) }?;
        let unreadable = || io::Error::other("VFIO gives an answer that is too short");
        let (needed, _) = u32::read_from_prefix(&bytes).map_err(|_| unreadable())?;
        let needed = needed as usize;
        if needed <= room {
            let (answer, _) = T::read_from_prefix(&bytes).map_err(|_| unreadable())?;
            return Ok((answer, bytes));
        }
        if needed > MAX_ANSWER_BYTES {
            return Err(io::Error::other("VFIO asks for more room than any answer needs"));
        }
        room = needed;
    }
}

/// Calls `command` with a structure that begins with its own size, `argsz`, which is set here.
///
/// # Safety
/// The command takes such a structure, and memory that its fields name is the caller's to give.
unsafe fn with_bytes(file: &File, command: u32, argument: &mut [u8]) -> io::Result<i32> {
    let argsz = argument.len() as u32;
    argument[..4].copy_from_slice(&argsz.to_ne_bytes());
    repeat(|| {
        // SAFETY: the kernel reads and writes at most `argsz` bytes of the structure; the rest is the caller's promise.
        unsafe { libc::ioctl(file.as_raw_fd(), command as libc::Ioctl, argument.as_mut_ptr()) }
    })
}

/// # Safety
/// The command takes an integer, or nothing.
unsafe fn with_integer(file: &File, command: u32, argument: u32) -> io::Result<i32> {
    repeat(|| {
        // SAFETY: the caller's promise.
        unsafe { libc::ioctl(file.as_raw_fd(), command as libc::Ioctl, libc::c_ulong::from(argument)) }
    })
}

/// Again, as long as a signal interrupts it.
fn repeat(mut call: impl FnMut() -> i32) -> io::Result<i32> {
    loop {
        match done(call()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer,
        }
    }
}

fn done(result: i32) -> io::Result<i32> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
