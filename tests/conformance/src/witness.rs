//! An importer that does nothing by itself: it takes its windows, hears of revocations, and stops or does not, as the
//! case decides. What the library hides is visible through it.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use peerfs_abi::ioctl::{Event, Map, Segment};
use peerfs_abi::{MapFlags, Trigger};
use peerfs_sys::Window;

use crate::kit::raw::{RawSession, direct_segments, open_direct, readable};
use crate::scene::{Scene, Subject};

/// An event that does not come within so long does not come.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Calls after which a server that does not wait would be done.
const ROUND_TRIPS: usize = 20;

/// A direct segment with its window.
pub struct Held {
    /// The segment.
    pub segment: Segment,
    /// The grant's memory.
    pub window: Window,
    /// The grant's descriptor.
    pub fd: OwnedFd,
}

/// A mapping held by hand.
pub struct Witness {
    /// Its session.
    pub session: RawSession,
    /// Its handle of the file.
    pub file: File,
    /// The answer.
    pub answer: Box<Map>,
    /// Its windows, in the order of the file.
    pub held: Vec<Held>,
    sequences: Window,
}

impl Witness {
    /// Maps a range in a session of its own. All of it must be direct.
    pub fn map(scene: &Scene<'_>, subject: &Subject, range: Range<u64>, flags: MapFlags) -> Result<Witness> {
        let session = RawSession::open(&scene.directory)?;
        Witness::map_in(scene, session, subject, range, flags)
    }

    /// As [`Witness::map`], in this session.
    pub fn map_in(
        scene: &Scene<'_>,
        session: RawSession,
        subject: &Subject,
        range: Range<u64>,
        flags: MapFlags,
    ) -> Result<Witness> {
        if !scene.grants() {
            scene.map_direct(&scene.session()?, subject, flags)?;
        }
        let file = open_direct(&subject.path, flags.contains(MapFlags::WRITE))?;
        Witness::of_file(scene, session, file, range, flags)
    }

    /// As [`Witness::map_in`], of this file.
    pub fn of_file(scene: &Scene<'_>, session: RawSession, file: File, range: Range<u64>, flags: MapFlags) -> Result<Witness> {
        let answer = session.map_calmly(&file, range.start, range.end - range.start, flags)?;
        scene.expect_direct(&answer)?;
        let writable = flags.contains(MapFlags::WRITE);
        let take = |segment: &Segment| -> Result<Held> {
            let fd = session.take(segment.grant_id, writable).context("the grant is not handed over")?;
            let window = Window::map(&fd, segment.grant_length as usize, writable)?;
            Ok(Held { segment: *segment, window, fd })
        };
        let held = direct_segments(&answer).map(take).collect::<Result<Vec<Held>>>()?;
        let sequences = session.sequences().context("the sequence page is not handed over")?;
        Ok(Witness { session, file, answer, held, sequences })
    }

    /// The next revocation, which must have this cause.
    pub fn expect_event(&self, scene: &Scene<'_>, trigger: Trigger) -> Result<Event> {
        let event = self.session.event(PATIENCE)?.with_context(|| format!("no revocation by {trigger} is told"))?;
        ensure!(event.trigger == trigger.code(), "told of {:?} instead of {trigger}", Trigger::from_code(event.trigger));
        ensure!(event.mapping_id == self.answer.mapping_id, "told of another mapping");
        scene.evidence.trigger(trigger);
        Ok(event)
    }

    /// Nothing has been told and nothing was taken.
    pub fn expect_undisturbed(&self, scene: &Scene<'_>) -> Result<()> {
        scene.round_trips(ROUND_TRIPS)?;
        ensure!(self.session.event(Duration::ZERO)?.is_none(), "the mapping is being revoked");
        ensure!(self.is_current(0)?, "the sequence number has changed");
        self.expect_alive()
    }

    /// Every page can still be reached, also after the server has had the time to cut.
    pub fn expect_alive(&self) -> Result<()> {
        for held in &self.held {
            ensure!(readable(&held.window) == held.window.length() / 4096, "the window was cut");
        }
        Ok(())
    }

    /// As [`Witness::expect_alive`], after the server has had the time to cut if it did not wait.
    pub fn expect_still_alive(&self, scene: &Scene<'_>) -> Result<()> {
        self.expect_alive()?;
        scene.round_trips(ROUND_TRIPS)?;
        self.expect_alive().context("nobody waited for the acknowledgement")
    }

    /// No page can be reached any more, by the old mapping or a new one of the same descriptor.
    pub fn expect_cut(&self) -> Result<()> {
        for held in &self.held {
            ensure!(readable(&held.window) == 0, "{} pages outlive the cut", readable(&held.window));
            let again = Window::map(&held.fd, held.window.length(), false).map_or(0, |again| readable(&again));
            ensure!(again == 0, "{again} pages can be mapped again after the cut");
        }
        Ok(())
    }

    /// The sequence number of a window still says that it is valid.
    pub fn is_current(&self, index: usize) -> Result<bool> {
        let segment = &self.held[index].segment;
        let word = self.sequences.load_word(segment.sequence_slot as usize).ok().context("the sequence page is gone")?;
        Ok(word == segment.sequence)
    }

    /// The word that says that the server is gone.
    pub fn server_gone(&self) -> Result<bool> {
        Ok(self.sequences.load_word(0).ok().context("the sequence page is gone")? != 0)
    }

    /// Stores at a file offset.
    pub fn store(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let (held, at) = self.place(offset)?;
        held.window.write(at, bytes).ok().context("the store faults")
    }

    /// Loads from a file offset.
    pub fn load(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let (held, at) = self.place(offset)?;
        let mut bytes = vec![0; length];
        held.window.read(at, &mut bytes).ok().context("the load faults")?;
        Ok(bytes)
    }

    fn place(&self, offset: u64) -> Result<(&Held, usize)> {
        let covers = |held: &&Held| (held.segment.file_offset..held.segment.file_offset + held.segment.length).contains(&offset);
        let held = self.held.iter().find(covers).context("no window covers the offset")?;
        Ok((held, (held.segment.grant_offset + offset - held.segment.file_offset) as usize))
    }

    /// Acknowledges a revocation.
    pub fn acknowledge(&self, event: &Event) -> Result<()> {
        Ok(self.session.acknowledge(event.grant_id)?)
    }
}
