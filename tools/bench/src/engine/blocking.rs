//! Engines that do one transfer after the other.

use peerfs_sys::AlignedBuf;

use super::{Ended, Engine, PathBytes};
use crate::Error;
use crate::pattern::Step;

/// How one transfer is done.
pub trait Blocking: Send {
    /// Moves the bytes, all of `buffer`, and answers how many it were.
    fn transfer(&mut self, step: &Step, buffer: &mut [u8]) -> Result<u64, Error>;

    /// As [`Engine::sync`].
    fn sync(&mut self, data_only: bool) -> Result<(), Error>;

    /// As [`Engine::paths`].
    fn paths(&self) -> Option<PathBytes> {
        None
    }
}

/// One slot: a transfer has ended when it was started.
pub struct OneByOne<B> {
    inner: B,
    buffer: AlignedBuf,
    ended: Option<Result<u64, Error>>,
}

impl<B: Blocking> OneByOne<B> {
    /// With a buffer of so many bytes.
    pub fn new(inner: B, buffer_bytes: usize) -> OneByOne<B> {
        OneByOne { inner, buffer: AlignedBuf::zeroed(buffer_bytes), ended: None }
    }
}

impl<B: Blocking> Engine for OneByOne<B> {
    fn is_asynchronous(&self) -> bool {
        false
    }

    fn buffer(&mut self, _slot: usize) -> &mut [u8] {
        &mut self.buffer
    }

    fn start(&mut self, _slot: usize, step: &Step) -> Result<(), Error> {
        self.ended = Some(self.inner.transfer(step, &mut self.buffer[..step.length as usize]));
        Ok(())
    }

    fn wait(&mut self, ended: &mut Vec<Ended>) -> Result<(), Error> {
        ended.extend(self.ended.take().map(|moved| Ended { slot: 0, moved }));
        Ok(())
    }

    fn sync(&mut self, data_only: bool) -> Result<(), Error> {
        self.inner.sync(data_only)
    }

    fn paths(&self) -> Option<PathBytes> {
        self.inner.paths()
    }
}
