//! A job whose options have been checked against each other.

use std::path::PathBuf;

use crate::settings::{Distribution, EngineKind, Settings, VerifyKind};
use crate::values::Direction;
use crate::{Error, Place, variables, verify};

/// Most transfers under way at once, and most clones.
const MOST: u64 = 4096;

/// Most memory that the buffers of all clones take, bytes.
const MOST_BUFFERS: u64 = 4 << 30;

/// Something to run: so many clones of one kind of access.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub name: String,
    /// Jobs that are reported together have the same number.
    pub group: u32,
    /// The options as written, those of global sections left out.
    pub written: Vec<(String, String)>,
    /// All options.
    pub settings: Settings,
    /// Its number among the jobs of the plan.
    pub index: u64,
}

impl Job {
    /// Checks the options.
    ///
    /// # Errors
    /// [`Error::Job`], which says what contradicts what.
    pub(crate) fn new(
        name: &str,
        place: &Place,
        index: u64,
        written: Vec<(String, String)>,
        settings: Settings,
    ) -> Result<Job, Error> {
        let job = Job { name: name.to_owned(), group: 0, written, settings, index };
        match job.problem() {
            None => Ok(job),
            Some(what) => Err(Error::Job { place: place.clone(), job: job.name, what }),
        }
    }

    fn problem(&self) -> Option<String> {
        let settings = &self.settings;
        let buffers = settings.depth.saturating_mul(settings.clones).saturating_mul(self.largest_block());
        if settings.depth > MOST || settings.clones > MOST {
            return Some(format!("iodepth and numjobs are at most {MOST}"));
        }
        if buffers > MOST_BUFFERS {
            return Some("iodepth times numjobs times the block size is more than 4g: lower one of them".to_owned());
        }
        if settings.time_based && settings.runtime.is_none() {
            return Some("time_based needs a runtime".to_owned());
        }
        if settings.direct && self.is(EngineKind::Mmap) {
            return Some("direct=1 and ioengine=mmap exclude each other: a mapping goes through the page cache".to_owned());
        }
        if settings.verify == Some(VerifyKind::Pattern) && settings.verify_pattern.is_none() {
            return Some("verify=pattern needs a verify_pattern".to_owned());
        }
        if settings.verify == Some(VerifyKind::Crc32c) && self.smallest_block() < verify::SMALLEST_BLOCK {
            return Some(format!("verify=crc32c needs blocks of at least {} bytes", verify::SMALLEST_BLOCK));
        }
        let share = settings.clones > 1 && self.file(0) == self.file(1);
        if share && settings.verify.is_some() && settings.access.writes {
            return Some("clones that verify what they write need a file each: write $jobnum into filename".to_owned());
        }
        self.direct_blocks_problem()
    }

    /// O_DIRECT moves whole sectors.
    fn direct_blocks_problem(&self) -> Option<String> {
        let settings = &self.settings;
        let odd = self.directions().any(|direction| !settings.blocks.get(direction).smallest().is_multiple_of(512));
        (settings.direct && odd).then(|| "direct=1 needs blocks of whole sectors, 512 bytes".to_owned())
    }

    /// The directions it goes.
    pub(crate) fn directions(&self) -> impl Iterator<Item = Direction> {
        let access = self.settings.access;
        Direction::ALL.into_iter().filter(move |direction| access.goes(*direction))
    }

    /// Bytes.
    pub(crate) fn smallest_block(&self) -> u64 {
        self.directions().map(|direction| self.settings.blocks.get(direction).smallest()).min().unwrap_or(1)
    }

    /// Bytes.
    pub(crate) fn largest_block(&self) -> u64 {
        self.directions().map(|direction| self.settings.blocks.get(direction).largest()).max().unwrap_or(1)
    }

    /// Does it move its bytes so?
    pub(crate) fn is(&self, engine: EngineKind) -> bool {
        self.settings.engine == engine
    }

    /// Does each block come up once before any comes up again?
    pub(crate) fn has_random_map(&self) -> bool {
        self.settings.random_map && self.settings.distribution == Distribution::Uniform
    }

    /// Transfers that a clone keeps under way: engines that wait for each have one.
    pub(crate) fn depth(&self) -> usize {
        match self.settings.engine {
            EngineKind::Uring => self.settings.depth as usize,
            _ => 1,
        }
    }

    /// The file of a clone, below the directory if there is one: also a name that begins with `/`.
    pub(crate) fn file(&self, clone: u32) -> PathBuf {
        let settings = &self.settings;
        let name = settings.filename.as_ref().unwrap_or(&settings.filename_format);
        let in_place = |text: &str| variables::for_clone(text, &self.name, clone);
        let name = in_place(name);
        match &settings.directory {
            Some(directory) => PathBuf::from(in_place(&directory.to_string_lossy())).join(name.trim_start_matches('/')),
            None => name.into(),
        }
    }
}
