//! The options of a job as typed, before they are checked against each other.

mod access;
mod choices;
mod nearest;
mod table;

use std::path::PathBuf;
use std::time::Duration;

pub use access::Access;
pub use choices::{Distribution, EngineKind, PathChoice, VerifyKind};
pub use table::{apply, is_switch, names};

use crate::values::{BlockSizes, Extent, PatternPiece, PerDirection};

/// Seed of jobs that do not name one.
const DEFAULT_SEED: u64 = 0x89;

/// Every option, with fio's defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub(crate) description: Option<String>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) filename: Option<String>,
    pub(crate) filename_format: String,
    pub(crate) access: Access,
    /// Reads, percent of all operations of a mixed job.
    pub(crate) mix_read: u8,
    pub(crate) blocks: PerDirection<BlockSizes>,
    pub(crate) size: Option<Extent>,
    /// Bytes.
    pub(crate) file_size: Option<u64>,
    pub(crate) io_size: Option<Extent>,
    pub(crate) offset: Extent,
    pub(crate) runtime: Option<Duration>,
    pub(crate) time_based: bool,
    pub(crate) ramp_time: Duration,
    pub(crate) start_delay: (Duration, Duration),
    pub(crate) loops: u64,
    pub(crate) depth: u64,
    pub(crate) clones: u64,
    pub(crate) direct: bool,
    pub(crate) invalidate: bool,
    pub(crate) create_on_open: bool,
    pub(crate) unlink: bool,
    /// fsync(2) after so many writes; 0: never.
    pub(crate) fsync: u64,
    /// fdatasync(2) after so many writes; 0: never.
    pub(crate) fdatasync: u64,
    pub(crate) end_fsync: bool,
    pub(crate) verify: Option<VerifyKind>,
    pub(crate) verify_pattern: Option<Vec<PatternPiece>>,
    pub(crate) do_verify: bool,
    pub(crate) verify_fatal: bool,
    /// Bytes per second; 0: as fast as it goes.
    pub(crate) rate: PerDirection<u64>,
    /// Operations per second; 0: as fast as it goes.
    pub(crate) rate_iops: PerDirection<u64>,
    pub(crate) distribution: Distribution,
    pub(crate) random_map: bool,
    pub(crate) seed: u64,
    pub(crate) repeatable: bool,
    pub(crate) group_reporting: bool,
    pub(crate) new_group: bool,
    pub(crate) stonewall: bool,
    pub(crate) engine: EngineKind,
    /// The engine was named `libaio`.
    pub(crate) asked_for_libaio: bool,
    pub(crate) path: PathChoice,
    pub(crate) importer: String,
}

impl Default for Settings {
    fn default() -> Self {
        let blocks = BlockSizes::Fixed(4096);
        Settings {
            description: None,
            directory: None,
            filename: None,
            filename_format: "$jobname.$jobnum.$filenum".to_owned(),
            access: Access::default(),
            mix_read: 50,
            blocks: PerDirection { read: blocks.clone(), write: blocks },
            size: None,
            file_size: None,
            io_size: None,
            offset: Extent::Bytes(0),
            runtime: None,
            time_based: false,
            ramp_time: Duration::ZERO,
            start_delay: (Duration::ZERO, Duration::ZERO),
            loops: 1,
            depth: 1,
            clones: 1,
            direct: false,
            invalidate: true,
            create_on_open: false,
            unlink: false,
            fsync: 0,
            fdatasync: 0,
            end_fsync: false,
            verify: None,
            verify_pattern: None,
            do_verify: true,
            verify_fatal: false,
            rate: PerDirection::default(),
            rate_iops: PerDirection::default(),
            distribution: Distribution::Uniform,
            random_map: true,
            seed: DEFAULT_SEED,
            repeatable: true,
            group_reporting: false,
            new_group: false,
            stonewall: false,
            engine: EngineKind::Psync,
            asked_for_libaio: false,
            path: PathChoice::Auto,
            importer: "cpu".to_owned(),
        }
    }
}
