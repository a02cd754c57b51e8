//! The client process: carries commands out on real files with the client library.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::ops::Bound;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_client::{Error, ImporterSpec, MapFlags, Mapping, Session, SessionOptions};
use peerfs_sys::{FileView, Sharing};

use super::data_of;

/// What a command gives: words and a payload.
type Outcome = io::Result<(String, Vec<u8>)>;

/// An open file of the process.
enum Slot {
    /// Through the page cache, or O_DIRECT; it can be mmapped.
    Plain { file: File, view: Option<FileView> },
    /// The client library's handle.
    Library { file: peerfs_client::File, raw: File },
}

/// Mappings are dropped first: they report through the session.
#[derive(Default)]
struct Servant {
    mappings: HashMap<u64, Mapping>,
    slots: HashMap<u64, Slot>,
    session: Option<Session>,
}

/// Answers commands until `quit` or the end of the input.
///
/// # Errors
/// The pipes broke.
pub fn serve(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut servant = Servant::default();
    for line in input.lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        if words == ["quit"] {
            return Ok(());
        }
        match servant.run(&words) {
            Ok((words, payload)) => {
                let gap = if words.is_empty() { "" } else { " " };
                writeln!(output, "ok {words}{gap}{}", payload.len())?;
                output.write_all(&payload)?;
            }
            Err(error) => writeln!(output, "no {} {error}", error.raw_os_error().unwrap_or(0))?,
        }
        output.flush()?;
    }
    Ok(())
}

fn bad(what: &str) -> io::Error {
    io::Error::other(format!("bad command: {what}"))
}

fn done() -> Outcome {
    Ok((String::new(), Vec::new()))
}

fn number(words: &[&str], at: usize) -> io::Result<u64> {
    words.get(at).and_then(|word| word.parse().ok()).ok_or_else(|| bad(&words.join(" ")))
}

fn other(error: Error) -> io::Error {
    match error {
        Error::System { source, .. } => source,
        error => io::Error::other(error.to_string()),
    }
}

fn fault(_: peerfs_sys::Fault) -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

impl Servant {
    fn run(&mut self, words: &[&str]) -> Outcome {
        let n = |at| number(words, at);
        match words[0] {
            "session" => self.open_session(words),
            "open" => self.open(n(1)?, words),
            "close" => {
                self.slots.remove(&n(1)?);
                done()
            }
            "read" => self.read(n(1)?, n(2)?, n(3)? as usize),
            "write" => self.write(n(1)?, n(2)?, &data_of(n(4)?, n(3)? as usize)),
            "mmap" => self.mmap(n(1)?, n(2)? as usize),
            "load" => self.load(n(1)?, n(2)? as usize, n(3)? as usize),
            "store" => {
                self.view(n(1)?)?.write(n(2)? as usize, &data_of(n(4)?, n(3)? as usize)).map_err(fault)?;
                done()
            }
            "msync" => {
                self.view(n(1)?)?.sync()?;
                done()
            }
            "private" => self.private(n(1)?, n(2)? as usize, n(3)? as usize),
            "truncate" => {
                self.file(n(1)?)?.set_len(n(2)?)?;
                done()
            }
            "fallocate" => self.fallocate(n(1)?, n(2)?, n(3)?, n(4)?),
            "fsync" => {
                self.file(n(1)?)?.sync_all()?;
                done()
            }
            "map" => self.map(n(1)?, n(2)?, n(3)?, n(4)?, n(5)? != 0),
            "device-read" => self.device_read(n(1)?, n(2)?, n(3)? as usize),
            "device-write" => self.device_write(n(1)?, n(2)?, &data_of(n(4)?, n(3)? as usize)),
            "unmap" => {
                let mapping = self.mappings.remove(&n(1)?).ok_or_else(|| bad("unmap"))?;
                let moved = mapping.unmap().map_err(other)?;
                Ok((format!("{} {}", moved.direct(), moved.fallback), Vec::new()))
            }
            "revoke" => self.revoke(n(1)?, n(2)?, n(3)?),
            "counters" => self.counters(n(1)?),
            _ => Err(bad(words[0])),
        }
    }

    fn open_session(&mut self, words: &[&str]) -> Outcome {
        let directory = words.get(2).ok_or_else(|| bad("session"))?;
        let options = SessionOptions { acknowledge: number(words, 1)? != 0 };
        self.session = Some(Session::open_with(directory, ImporterSpec::cpu(), options).map_err(other)?);
        done()
    }

    fn open(&mut self, slot: u64, words: &[&str]) -> Outcome {
        let (Some(kind), Some(path)) = (words.get(2), words.get(3)) else { return Err(bad("open")) };
        let mut options = OpenOptions::new();
        options.read(true);
        let plain = |options: &OpenOptions| Ok::<_, io::Error>(Slot::Plain { file: options.open(path)?, view: None });
        let opened = match *kind {
            "cached-read" => plain(&options)?,
            "cached-write" => plain(options.write(true))?,
            "bypass" => plain(options.write(true).custom_flags(libc::O_DIRECT))?,
            "library" => Slot::Library {
                file: peerfs_client::File::open_with(path, options.write(true)).map_err(other)?,
                raw: options.write(true).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK).open(path)?,
            },
            _ => return Err(bad(kind)),
        };
        self.slots.insert(slot, opened);
        done()
    }

    fn file(&self, slot: u64) -> io::Result<&File> {
        match self.slots.get(&slot) {
            Some(Slot::Plain { file, .. } | Slot::Library { raw: file, .. }) => Ok(file),
            None => Err(bad("slot")),
        }
    }

    fn library(&self, slot: u64) -> io::Result<&peerfs_client::File> {
        match self.slots.get(&slot) {
            Some(Slot::Library { file, .. }) => Ok(file),
            _ => Err(bad("slot of another kind")),
        }
    }

    fn view(&self, slot: u64) -> io::Result<&FileView> {
        match self.slots.get(&slot) {
            Some(Slot::Plain { view: Some(view), .. }) => Ok(view),
            _ => Err(bad("slot without a view")),
        }
    }

    fn read(&self, slot: u64, offset: u64, length: usize) -> Outcome {
        let mut data = vec![0; length];
        let file = self.file(slot)?;
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut data[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        data.truncate(filled);
        Ok((String::new(), data))
    }

    fn write(&self, slot: u64, offset: u64, data: &[u8]) -> Outcome {
        self.file(slot)?.write_all_at(data, offset)?;
        done()
    }

    /// Maps the start of the file, in place of what was mapped before.
    fn mmap(&mut self, slot: u64, length: usize) -> Outcome {
        match self.slots.get_mut(&slot) {
            Some(Slot::Plain { file, view }) => {
                *view = Some(FileView::map(file.as_fd(), length, Sharing::Shared, true)?);
                done()
            }
            _ => Err(bad("slot of another kind")),
        }
    }

    fn load(&self, slot: u64, offset: usize, length: usize) -> Outcome {
        let mut data = vec![0; length];
        self.view(slot)?.read(offset, &mut data).map_err(fault)?;
        Ok((String::new(), data))
    }

    /// Loads through a private mapping that is made and ended for it.
    fn private(&self, slot: u64, offset: usize, length: usize) -> Outcome {
        let view = FileView::map(self.file(slot)?, offset + length, Sharing::Private, false)?;
        let mut data = vec![0; length];
        view.read(offset, &mut data).map_err(fault)?;
        Ok((String::new(), data))
    }

    fn fallocate(&self, slot: u64, mode: u64, offset: u64, length: u64) -> Outcome {
        let flags = FallocateFlags::from_bits(mode as i32).ok_or_else(|| bad("mode"))?;
        fallocate(self.file(slot)?, flags, offset as i64, length as i64)?;
        done()
    }

    fn map(&mut self, name: u64, slot: u64, start: u64, length: u64, write: bool) -> Outcome {
        let session = self.session.as_ref().ok_or_else(|| bad("no session"))?;
        let end = if length == 0 { Bound::Unbounded } else { Bound::Excluded(start + length) };
        let flags = if write { MapFlags::WRITE } else { MapFlags::empty() };
        let mapping = session.map(self.library(slot)?, (Bound::Included(start), end), flags).map_err(other)?;
        let segments: Vec<String> = mapping
            .segments()
            .iter()
            .map(|s| format!("{}:{}:{}", s.file_offset, s.length, s.reason.map_or(0, |reason| reason.code())))
            .collect();
        self.mappings.insert(name, mapping);
        Ok((String::new(), segments.join(",").into_bytes()))
    }

    fn mapping(&self, name: u64) -> io::Result<&Mapping> {
        self.mappings.get(&name).ok_or_else(|| bad("no such mapping"))
    }

    fn device_read(&self, name: u64, offset: u64, length: usize) -> Outcome {
        let mut data = vec![0; length];
        let moved = self.mapping(name)?.read_at(offset, &mut data).map_err(other)?;
        data.truncate(moved.total() as usize);
        Ok((format!("{} {}", moved.direct(), moved.fallback), data))
    }

    fn device_write(&self, name: u64, offset: u64, data: &[u8]) -> Outcome {
        let moved = self.mapping(name)?.write_at(offset, data).map_err(other)?;
        Ok((format!("{} {}", moved.direct(), moved.fallback), Vec::new()))
    }

    fn revoke(&self, slot: u64, start: u64, length: u64) -> Outcome {
        let revoked = self.library(slot)?.revoke(start..start + length).map_err(other)?;
        Ok((format!("{} {}", revoked.grants, revoked.enforced), Vec::new()))
    }

    fn counters(&self, slot: u64) -> Outcome {
        let info = self.library(slot)?.info().map_err(other)?;
        Ok((format!("{} {} {}", info.file_bytes_direct, info.file_bytes_fallback, info.revocations), Vec::new()))
    }
}
