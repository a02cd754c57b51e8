//! A driver in the kernel that moves frames from and to dma-bufs: a queue of the video subsystem (V4L2, videobuf2). From the
//! first time a buffer is queued the queue holds the dma-buf, whatever becomes of descriptors, until it is dropped.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

// Commands of linux/videodev2.h.
/// `_IOWR('V', 4, struct v4l2_format)`.
const GET_FORMAT: u32 = 0xc0d0_5604;
/// `_IOWR('V', 8, struct v4l2_requestbuffers)`.
const REQUEST_BUFFERS: u32 = 0xc014_5608;
/// `_IOWR('V', 15, struct v4l2_buffer)`.
const QUEUE_BUFFER: u32 = 0xc058_560f;
/// `_IOWR('V', 17, struct v4l2_buffer)`.
const TAKE_BUFFER: u32 = 0xc058_5611;
/// `_IOW('V', 18, int)`.
const START: u32 = 0x4004_5612;
/// `_IOW('V', 19, int)`.
const STOP: u32 = 0x4004_5613;
/// `_IOWR('V', 28, struct v4l2_control)`.
const SET_CONTROL: u32 = 0xc008_561c;

/// `V4L2_MEMORY_DMABUF`.
const MEMORY_DMABUF: u32 = 4;
/// `V4L2_BUF_FLAG_ERROR`.
const FLAG_ERROR: u32 = 0x40;

/// Which way frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The driver writes them (`V4L2_BUF_TYPE_VIDEO_CAPTURE`).
    Capture = 1,
    /// The driver reads them (`V4L2_BUF_TYPE_VIDEO_OUTPUT`).
    Output = 2,
}

/// `struct v4l2_format` with a single plane.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Format {
    flow: u32,
    padding: u32,
    width: u32,
    height: u32,
    pixel_format: u32,
    field: u32,
    line_bytes: u32,
    image_bytes: u32,
    rest: [u8; 176],
}

/// `struct v4l2_requestbuffers`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RequestBuffers {
    count: u32,
    flow: u32,
    memory: u32,
    capabilities: u32,
    flags: u32,
}

/// `struct v4l2_buffer` with a single plane, of a machine with 64 bits.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Buffer {
    index: u32,
    flow: u32,
    used_bytes: u32,
    flags: u32,
    field: u32,
    padding: u32,
    timestamp: [u64; 2],
    timecode: [u32; 4],
    sequence: u32,
    memory: u32,
    dmabuf: i32,
    dmabuf_padding: u32,
    length_bytes: u32,
    reserved: u32,
    request: i32,
    padding_at_end: u32,
}

/// `struct v4l2_control`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Control {
    id: u32,
    value: i32,
}

const _: () = assert!(size_of::<Format>() == 208 && size_of::<RequestBuffers>() == 20 && size_of::<Buffer>() == 88);

/// A queue with one buffer.
pub struct VideoQueue {
    device: File,
    flow: Flow,
}

impl VideoQueue {
    /// Opens the device of this name, as its driver gave it.
    ///
    /// # Errors
    /// When there is none, or it takes no dma-bufs.
    pub fn open(name: &str, flow: Flow) -> Result<VideoQueue> {
        let entries = fs::read_dir("/sys/class/video4linux").context("this kernel has no video devices")?;
        let named = |path: &std::path::Path| fs::read_to_string(path.join("name")).is_ok_and(|found| found.trim() == name);
        let found = entries.flatten().find(|entry| named(&entry.path()));
        let node = found.with_context(|| format!("no video device is called `{name}`"))?.file_name();
        let path = std::path::Path::new("/dev").join(node);
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let queue = VideoQueue { device: device.with_context(|| path.display().to_string())?, flow };
        let mut request = RequestBuffers { count: 1, flow: flow as u32, memory: MEMORY_DMABUF, capabilities: 0, flags: 0 };
        peerfs_sys::ioctl(&queue.device, REQUEST_BUFFERS, &mut request).with_context(|| format!("`{name}` takes no dma-bufs"))?;
        Ok(queue)
    }

    /// Size of a frame, bytes.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn frame_bytes(&self) -> io::Result<u32> {
        let mut format = Format::new_zeroed();
        format.flow = self.flow as u32;
        peerfs_sys::ioctl(&self.device, GET_FORMAT, &mut format)?;
        Ok(format.image_bytes)
    }

    /// Sets a control of the driver.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn set(&self, control: u32, value: i32) -> io::Result<()> {
        peerfs_sys::ioctl(&self.device, SET_CONTROL, &mut Control { id: control, value }).map(drop)
    }

    /// Gives the buffer to the driver; its memory is this dma-buf.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn queue(&self, memory: BorrowedFd<'_>) -> io::Result<()> {
        let mut buffer = self.buffer();
        buffer.dmabuf = memory.as_raw_fd();
        if self.flow == Flow::Output {
            buffer.used_bytes = self.frame_bytes()?;
            // V4L2_FIELD_NONE: whole frames.
            buffer.field = 1;
        }
        peerfs_sys::ioctl(&self.device, QUEUE_BUFFER, &mut buffer).map(drop)
    }

    /// The driver moves frames from now on.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn start(&self) -> io::Result<()> {
        peerfs_sys::ioctl(&self.device, START, &mut (self.flow as i32)).map(drop)
    }

    /// The driver stops, and gives back what is queued.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn stop(&self) -> io::Result<()> {
        peerfs_sys::ioctl(&self.device, STOP, &mut (self.flow as i32)).map(drop)
    }

    /// Takes the buffer back once the driver has moved a frame, and answers how many bytes the frame has.
    ///
    /// # Errors
    /// When it takes longer than `patience`, or the driver marks the frame as spoilt.
    pub fn take(&self, patience: Duration) -> Result<u32> {
        let mut ready = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
        let events = poll(&mut ready, PollTimeout::try_from(patience)?)?;
        ensure!(events == 1, "no frame within {patience:?}");
        let mut buffer = self.buffer();
        peerfs_sys::ioctl(&self.device, TAKE_BUFFER, &mut buffer)?;
        ensure!(buffer.flags & FLAG_ERROR == 0, "the driver marks the frame as spoilt");
        Ok(buffer.used_bytes)
    }

    fn buffer(&self) -> Buffer {
        let mut buffer = Buffer::new_zeroed();
        (buffer.flow, buffer.memory) = (self.flow as u32, MEMORY_DMABUF);
        buffer
    }
}
