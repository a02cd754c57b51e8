//! The block device over the windows: who serves which part of a request.

use std::sync::{Arc, RwLockReadGuard};

use crate::bounce;
use crate::placed::{Index, Part};
use crate::{ApertureKind, BlockDevice, DeviceError, DeviceInfo, EventSink, Io, IoBuf, Ticket};

use super::raw::RawRequests;
use super::window::Core;
use super::{Cmb, Shared};

impl AsRef<RawRequests> for Arc<Shared> {
    fn as_ref(&self) -> &RawRequests {
        &self.raw_requests
    }
}

/// A part of a request that is under way; where its bytes lie in the request's buffer.
struct Piece<T> {
    at: usize,
    pending: T,
}

impl BlockDevice for Cmb {
    fn info(&self) -> DeviceInfo {
        self.shared.inner.info()
    }

    fn buffer(&self, length: usize) -> IoBuf {
        self.shared.inner.buffer(length)
    }

    fn submit(&self, io: Io) -> Ticket {
        if let Err(err) = self.info().check_range(io.offset(), io.length()) {
            return Ticket::ready(Err(err));
        }
        match io {
            Io::Read { offset, buf } => self.read(offset, buf),
            Io::Write { offset, buf } => self.write(offset, buf),
            Io::FillWindow { offset, window } => {
                let index = self.shared.index();
                if index.split(offset, window.length).iter().any(|part| part.place.is_some()) {
                    drop(index);
                    let done = bounce::fill_window(self, offset, &window);
                    return Ticket::ready(done.map(|()| None));
                }
                self.pass(index, Io::FillWindow { offset, window })
            }
            Io::DrainWindow { offset, window } => {
                let done = bounce::drain_window(self, offset, &window);
                Ticket::ready(done.map(|()| None))
            }
        }
    }

    fn flush(&self) -> Result<(), DeviceError> {
        // Writes go through the windows to the device, or the window is their home; what peers store is Window::flush's.
        self.shared.inner.flush()
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.info().check_range(offset, length)?;
        // Blocks in a window keep their content, which is as good as any.
        self.raw_ranges(offset, length, |inner, offset, length| inner.discard(offset, length)).map(drop)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.info().check_range(offset, length)?;
        let windowed = self.raw_ranges(offset, length, |inner, offset, length| inner.write_zeroes(offset, length))?;
        for part in windowed {
            for (at, length) in bounce::steps(part.length) {
                let mut buf = self.buffer(length as usize);
                buf.fill(0);
                let offset = part.offset + at;
                self.submit(Io::Write { offset, buf }).wait()?;
            }
        }
        Ok(())
    }

    fn subscribe(&self, sink: EventSink) {
        self.shared.inner.subscribe(sink);
    }
}

impl Cmb {
    /// Hands a request on blocks that are in no window to the device below. `index` is the lock under which that was
    /// seen: a window opened afterwards waits for the request if it must not overtake it.
    fn pass(&self, index: RwLockReadGuard<'_, Index<Core>>, io: Io) -> Ticket {
        if !io.is_write() && self.shared.kind == ApertureKind::Windowed {
            // The home keeps its bytes while a window is filled: a read may overlap that.
            drop(index);
            return self.shared.inner.submit(io);
        }
        let raw = RawRequests::enter(self.shared.clone(), io.offset(), io.length());
        drop(index);
        raw.started(self.shared.inner.submit(io));
        Ticket::new(move || raw.wait())
    }

    fn read(&self, offset: u64, buf: IoBuf) -> Ticket {
        let index = self.shared.index();
        let mut parts = index.split(offset, buf.len() as u64);
        if parts.len() > 1 {
            drop(index);
            return self.read_parts(parts, offset, buf);
        }
        match parts.pop().and_then(|part| part.place) {
            None => self.pass(index, Io::Read { offset, buf }),
            Some((core, place)) => {
                drop(index);
                match core.read(&self.shared, place, buf) {
                    Ok(done) => Ticket::ready(done.map(Some)),
                    // It was written back since the look-up.
                    Err(buf) => self.read(offset, buf),
                }
            }
        }
    }

    fn read_parts(&self, parts: Vec<Part<Core>>, offset: u64, mut buf: IoBuf) -> Ticket {
        let pieces: Vec<_> = parts
            .into_iter()
            .map(|part| Piece {
                at: (part.offset - offset) as usize,
                pending: self.read(part.offset, self.buffer(part.length as usize)),
            })
            .collect();
        Ticket::new(move || {
            for piece in pieces {
                if let Some(part) = piece.pending.wait()? {
                    buf[piece.at..piece.at + part.len()].copy_from_slice(&part);
                }
            }
            Ok(Some(buf))
        })
    }

    fn write(&self, offset: u64, buf: IoBuf) -> Ticket {
        let length = buf.len() as u64;
        let index = self.shared.index();
        let mut parts = index.split(offset, length);
        if parts.len() > 1 {
            drop(index);
            return self.write_parts(parts, offset, buf);
        }
        match parts.pop().and_then(|part| part.place) {
            None => self.pass(index, Io::Write { offset, buf }),
            Some((core, place)) => {
                drop(index);
                match core.write(&self.shared, place, offset, buf) {
                    Ok(done) => Ticket::ready(done),
                    Err(buf) => self.write(offset, buf),
                }
            }
        }
    }

    /// Each part finds its own way: the windows may have changed since the split.
    fn write_parts(&self, parts: Vec<Part<Core>>, offset: u64, buf: IoBuf) -> Ticket {
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            let at = (part.offset - offset) as usize;
            let mut piece = self.buffer(part.length as usize);
            let length = piece.len();
            piece.copy_from_slice(&buf[at..at + length]);
            pieces.push(self.write(part.offset, piece));
        }
        Ticket::new(move || {
            let mut result = Ok(Some(buf));
            for piece in pieces {
                if let Err(err) = piece.wait() {
                    result = Err(err);
                }
            }
            result
        })
    }

    /// Runs `work` on the parts of a range that are in no window, and gives the others.
    fn raw_ranges(
        &self,
        offset: u64,
        length: u64,
        work: impl Fn(&dyn BlockDevice, u64, u64) -> Result<(), DeviceError>,
    ) -> Result<Vec<Part<Core>>, DeviceError> {
        let index = self.shared.index();
        let (windowed, raw): (Vec<_>, Vec<_>) = index.split(offset, length).into_iter().partition(|part| part.place.is_some());
        let entered: Vec<_> = raw.iter().map(|part| RawRequests::enter(self.shared.clone(), part.offset, part.length)).collect();
        drop(index);
        for part in &raw {
            work(&*self.shared.inner, part.offset, part.length)?;
        }
        drop(entered);
        Ok(windowed)
    }
}
