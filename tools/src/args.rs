//! The command line as typed. Nothing here is checked against the world.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use peerfs_blockdev::pci::PciAddress;
use peerfs_blockdev::{SpecError, parse_size};

/// peerfs: a filesystem whose files devices can map.
#[derive(Parser)]
#[command(name = "peerfs", version, about, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "Example, on a machine without any device:\n  peerfs demo")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub log: LogArgs,
}

/// How diagnostics are written.
#[derive(Args, Clone)]
pub struct LogArgs {
    /// What to log: error, warn, info, debug or trace, also by module (`warn,peerfs_fs=debug`) [default: $RUST_LOG, or warn]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = crate::log::parse_level)]
    pub log_level: Option<String>,
    /// How to log
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// A line of a log.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object with timestamp, level, target and fields.
    Json,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make an empty volume on a device (image:PATH, just PATH, pmem:PATH, nvme:BDF/ns1 or nvme:BDF/pmr)
    #[command(after_help = "Example:\n  peerfs mkfs image:/srv/vol.img --size 4G --label models")]
    Mkfs(MkfsArgs),
    /// Mount a volume; returns when the mount is usable
    #[command(
        after_help = "Examples:\n  peerfs mount image:/srv/vol.img /mnt/peer --cmb 256M\n  peerfs mount nvme:0000:01:00.0/ns1 /mnt/peer -o noatime,deadline_ms=50"
    )]
    Mount(MountArgs),
    /// Unmount; returns when the volume is closed
    #[command(after_help = "Example:\n  peerfs umount /mnt/peer")]
    Umount(UmountArgs),
    /// Show a mount (space, aperture, mappings, revocations) or an unmounted volume
    #[command(after_help = "Examples:\n  peerfs info /mnt/peer\n  peerfs info image:/srv/vol.img --json")]
    Info(InfoArgs),
    /// Show which ranges of a file an importer would map directly, and why not the others; changes nothing
    #[command(
        after_help = "Examples:\n  peerfs query /mnt/peer/model.bin\n  peerfs query /mnt/peer/model.bin --offset 1M --length 64K --write --importer cpu@0000:01:00.0"
    )]
    Query(QueryArgs),
    /// Map a file, read through the mapping and report the way its bytes went
    #[command(
        after_help = "Examples:\n  peerfs map /mnt/peer/model.bin --checksum\n  peerfs map /mnt/peer/model.bin --pin --hold 60"
    )]
    Map(MapArgs),
    /// Show who maps what since when, and the last refusals
    #[command(after_help = "Example:\n  peerfs mappings /mnt/peer")]
    Mappings(MountpointArgs),
    /// Show live what a mount does: aperture, mappings, revocations, rates, refusals, pins, transfers
    #[command(after_help = "Examples:\n  peerfs top /mnt/peer\n  peerfs top --once /mnt/peer")]
    Top(TopArgs),
    /// Show who holds how much device memory, and where it is
    #[command(after_help = "Example:\n  peerfs devmem /mnt/peer")]
    Devmem(MountpointArgs),
    /// Show a mount live in the browser; prints the address to open
    #[command(after_help = "Example:\n  peerfs serve /mnt/peer")]
    Serve(ServeArgs),
    /// Take direct mappings back
    #[command(
        after_help = "Examples:\n  peerfs revoke /mnt/peer/model.bin --offset 2M --length 2M\n  peerfs revoke --mapping 4294967312 /mnt/peer\n  peerfs revoke --all --pins /mnt/peer"
    )]
    Revoke(RevokeArgs),
    /// Make a file that shares the blocks of another; nothing is copied until one of them is written
    #[command(after_help = "Example:\n  peerfs reflink /mnt/peer/model.bin /mnt/peer/copy.bin")]
    Reflink(ReflinkArgs),
    /// Tell the device which blocks hold nothing (the owner of the mount may)
    #[command(after_help = "Examples:\n  peerfs trim /mnt/peer\n  peerfs trim /mnt/peer --minimum 1M --json")]
    Trim(TrimArgs),
    /// Copy between a file and a namespace of an importer: device to device, where that is decided
    #[command(
        after_help = "Examples:\n  peerfs copy /mnt/peer/model.bin --to-importer nvme:0000:02:00.0 --lba 0\n  peerfs copy /mnt/peer/back.bin --from-importer nvme:0000:02:00.0 --lba 0 --length 64M"
    )]
    Copy(CopyArgs),
    /// Run fio job files, on any path or through the client library, and say which way the bytes went
    Bench(BenchArgs),
    /// Show the importers of a mount
    #[command(after_help = "Example:\n  peerfs importers /mnt/peer")]
    Importers(MountpointArgs),
    /// Show which devices reach each other's memory, and which hop refuses the others
    #[command(after_help = "Examples:\n  peerfs topology\n  peerfs topology /mnt/peer --json")]
    Topology(TopologyArgs),
    /// Show NVMe controllers, give them to vfio-pci, or back to the kernel
    #[command(subcommand)]
    #[command(after_help = "Example:\n  peerfs nvme list")]
    Nvme(NvmeCommand),
    /// Check an unmounted volume
    #[command(after_help = "Example:\n  peerfs fsck image:/srv/vol.img")]
    Fsck(FsckArgs),
    /// Try everything on a temporary volume with real files
    #[command(after_help = "Example:\n  peerfs demo --size 64M")]
    Demo(DemoArgs),
    /// Try every rule of mapping on a scratch volume; one line per rule
    #[command(after_help = "Example:\n  peerfs conformance --backend mem --case trigger-truncate")]
    Conformance(ConformanceArgs),
    /// Write the manual pages, or what a shell needs to complete command lines
    #[command(subcommand)]
    #[command(after_help = "Example:\n  peerfs generate man /usr/local/share/man/man1")]
    Generate(GenerateCommand),
    /// Keeps windows beyond the death of a server (started by the server)
    #[command(hide = true)]
    #[command(after_help = "Example:\n  peerfs guardian")]
    Guardian,
    /// Reads all metadata, so that a process of its own dies if it is corrupt
    #[command(hide = true)]
    #[command(after_help = "Example:\n  peerfs check-metadata image:/srv/vol.img --full")]
    CheckMetadata(CheckMetadataArgs),
    /// A client process of the conformance suite (started by it)
    #[command(hide = true)]
    #[command(after_help = "Example:\n  peerfs conformance-client pid-reuse image /mnt/peer")]
    ConformanceClient(ConformanceClientArgs),
    /// An importer that never acknowledges (started by the demo)
    #[command(hide = true)]
    #[command(after_help = "Example:\n  peerfs demo-hung /mnt/peer/model.bin")]
    DemoHung(DemoHungArgs),
}

#[derive(Args)]
pub struct MkfsArgs {
    /// image:PATH, or just PATH (a file or a block device); pmem:PATH: a file on a DAX filesystem, or /dev/daxX.Y;
    /// nvme:BDF/ns1, nvme:BDF/pmr: a namespace, or the Persistent Memory Region, of an NVMe controller
    /// (pmem:PATH,nodax takes any file)
    pub device: String,
    /// Size of the volume, for example 10G; makes or extends a file. Default: what is there
    #[arg(long, value_parser = size)]
    pub size: Option<u64>,
    /// Name of the volume
    #[arg(long, default_value = "")]
    pub label: String,
    /// Overwrite what the device holds
    #[arg(long)]
    pub force: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct MountArgs {
    /// image:PATH, just PATH, pmem:PATH (persistent memory; pmem:PATH,nodax takes any file), nvme:BDF/ns1 or nvme:BDF/pmr
    /// (a namespace, or the Persistent Memory Region, of an NVMe controller), or mem:SIZE (a new,
    /// volatile volume)
    pub device: String,
    /// An empty directory
    pub mountpoint: PathBuf,
    /// Options, separated by commas: ro, noatime, nodev, nosuid, noexec, sync, fsname=NAME, ... and cmb=SIZE,
    /// direct=prefer|respect-cache|never, deadline_ms=1..60000, commit=SECONDS, grants=passthrough|socket,
    /// pin_quota=SIZE|PERCENT%, pin_quota_user=SIZE|PERCENT% (of the aperture),
    /// importer=nvme:BDF[/nsN] (a controller that moves bytes of files to and from a namespace: peerfs copy),
    /// topology=FILE (PCI topology for importers on a bus, in place of the machine's own), importer_grants=N (of one session), user_sessions=N,
    /// discard (of freed blocks, at every commit), remount (with ro, rw and generic options),
    /// faults (the device fails on command); metrics=ADDR (as --metrics); devmem=SIZE for device memory to be handed out, with devmem_main=SIZE (main
    /// memory it may move to), devmem_user_limit=SIZE, devmem_process_limit=SIZE
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Size of the software CMB, the aperture; 0 for none [default: 64M; for mem: and pmem: all of the device; for nvme: the controller's CMB]
    #[arg(long, value_parser = size)]
    pub cmb: Option<u64>,
    /// Serve metrics to Prometheus at http://ADDR/metrics: PORT or ADDRESS:PORT; a port alone is one of the loopback, 0 any
    #[arg(long, value_name = "ADDR", value_parser = peerfs_http::parse_address)]
    pub metrics: Option<SocketAddr>,
    /// Stay in the foreground
    #[arg(long)]
    pub foreground: bool,
    /// Where the server logs once it is in the background
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// Only check the device's name and the options, as mount -f does
    #[arg(long, hide = true)]
    pub fake: bool,
    /// Say `ready` on stdout, then go into the background
    #[arg(long, hide = true)]
    pub ready_stdout: bool,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("importer").required(true).args(["to_importer", "from_importer"]))]
pub struct CopyArgs {
    /// A file of a mount with -o importer=nvme:BDF
    pub file: PathBuf,
    /// Copy out of the file, to this controller's namespace: overwrites what is there
    #[arg(long, value_name = "nvme:BDF")]
    pub to_importer: Option<String>,
    /// Copy into the file, which is made if it is not there, from this controller's namespace
    #[arg(long, value_name = "nvme:BDF", requires = "length")]
    pub from_importer: Option<String>,
    /// First logical block of the namespace
    #[arg(long, value_name = "N")]
    pub lba: u64,
    /// Where in the file, bytes: a multiple of the logical block
    #[arg(long, default_value = "0", value_parser = size)]
    pub offset: u64,
    /// How much, bytes [default: to the end of the file]
    #[arg(long, value_parser = size)]
    pub length: Option<u64>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct UmountArgs {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
    /// End all direct mappings; detach the mount even while programs have files open
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct InfoArgs {
    /// A mount point, or a device
    #[arg(value_name = "MOUNTPOINT|DEVICE")]
    pub target: String,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
    /// Report a mount as metrics, in the text format of Prometheus
    #[arg(long, conflicts_with = "json")]
    pub metrics: bool,
}

/// What is asked of a file.
#[derive(Args, Clone)]
pub struct RequestArgs {
    /// A file of a mount
    pub file: PathBuf,
    /// Start of the range, bytes
    #[arg(long, value_parser = size, default_value = "0")]
    pub offset: u64,
    /// Length of the range, bytes [default: to the end of the file]
    #[arg(long, value_parser = size)]
    pub length: Option<u64>,
    /// cpu, static (cannot honour revocation), readonly, nonatomic, server (inside the server, the one that reads BARs), or
    /// cuda:N (the GPU with number N; pins only); NAME@PCI-ADDRESS: a device on the bus
    #[arg(long, default_value = "cpu", value_name = "NAME[@ADDRESS]")]
    pub importer: String,
    /// The importer wants to write
    #[arg(long)]
    pub write: bool,
    /// The mapping shall not be revoked: it lives until its last holder is gone
    #[arg(long)]
    pub pin: bool,
    /// The importer wants atomic operations
    #[arg(long)]
    pub atomic: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct QueryArgs {
    #[command(flatten)]
    pub request: RequestArgs,
}

#[derive(Args)]
pub struct MapArgs {
    #[command(flatten)]
    pub request: RequestArgs,
    /// Hold the mapping that long after reading; fractions of a second are fine
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub hold: Option<Duration>,
    /// Report the CRC-32C of the bytes
    #[arg(long)]
    pub checksum: bool,
    /// Read that often, and compare with memcpy and read(2)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeat: Option<u32>,
    /// Map it also at one address for the processor and a device of so many address bits, and compare
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(22..=48), conflicts_with = "hung")]
    pub va_bits: Option<u32>,
    /// Never acknowledge a revocation
    #[arg(long)]
    pub hung: bool,
}

#[derive(Args)]
pub struct MountpointArgs {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ServeArgs {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
    /// PORT or ADDRESS:PORT; a port alone is one of the loopback, 0 any
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = peerfs_http::parse_address)]
    pub listen: SocketAddr,
}

#[derive(Args)]
pub struct TopArgs {
    /// Where the volume is mounted
    pub mountpoint: PathBuf,
    /// Time between two looks at the mount
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub interval: f64,
    /// Print one screen as text, and end
    #[arg(long)]
    pub once: bool,
}

#[derive(Args)]
pub struct TopologyArgs {
    /// Where a volume is mounted: what its server goes by. Default: this machine's PCI bus
    pub mountpoint: Option<PathBuf>,
    /// All devices of this machine, also those that neither store, compute nor communicate (256 at most)
    #[arg(long, conflicts_with = "mountpoint")]
    pub all: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct RevokeArgs {
    /// A file of a mount; with --all or --mapping the mount point
    #[arg(value_name = "FILE|MOUNTPOINT")]
    pub path: PathBuf,
    /// Every mapping of the mount
    #[arg(long, conflicts_with_all = ["offset", "length"])]
    pub all: bool,
    /// One mapping, by its number in `peerfs mappings`; for the owner of the mount
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["all", "pins", "offset", "length"])]
    pub mapping: Option<u64>,
    /// Pins too, by force; for the owner of the mount
    #[arg(long)]
    pub pins: bool,
    /// Start of the range, bytes
    #[arg(long, value_parser = size, default_value = "0")]
    pub offset: u64,
    /// Length of the range, bytes [default: to the end]
    #[arg(long, value_parser = size)]
    pub length: Option<u64>,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct ReflinkArgs {
    /// An existing file
    pub source: PathBuf,
    /// A file on the same mount; made if it is missing, emptied first if it is there
    pub destination: PathBuf,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct TrimArgs {
    /// Where the volume is mounted, or a directory of it
    pub mountpoint: PathBuf,
    /// First byte of the volume
    #[arg(long, default_value_t = 0, value_parser = size, value_name = "SIZE")]
    pub offset: u64,
    /// How much of the volume [default: to its end]
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub length: Option<u64>,
    /// Leave shorter runs of free space alone
    #[arg(long, default_value_t = 0, value_parser = size, value_name = "SIZE")]
    pub minimum: u64,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum NvmeCommand {
    /// Show the controllers, their namespaces and what these hold
    #[command(after_help = "Example:\n  peerfs nvme list --json")]
    List(NvmeListArgs),
    /// Give a controller to vfio-pci; refuses while anything on it is in use or would be lost
    #[command(after_help = "Example:\n  peerfs nvme bind 0000:01:00.0")]
    Bind(NvmeBindArgs),
    /// Give a controller that is on vfio-pci to the driver that the kernel finds for it
    #[command(after_help = "Example:\n  peerfs nvme unbind 0000:01:00.0")]
    Unbind(NvmeUnbindArgs),
}

#[derive(Args)]
pub struct NvmeListArgs {
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct NvmeBindArgs {
    /// PCI address of the controller, for example 0000:01:00.0
    #[arg(value_name = "BDF")]
    pub address: PciAddress,
    /// Take it even from mounted filesystems and other users: what is there may be lost
    #[arg(long)]
    pub force: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct NvmeUnbindArgs {
    /// PCI address of the controller, for example 0000:01:00.0
    #[arg(value_name = "BDF")]
    pub address: PciAddress,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct FsckArgs {
    /// image:PATH, just PATH, pmem:PATH, nvme:BDF/ns1 or nvme:BDF/pmr
    pub device: String,
    /// Repair what is wrong
    #[arg(long)]
    pub repair: bool,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
#[command(after_help = BENCH_HELP, override_usage = "peerfs bench [OPTION]... [JOBFILE]... [--name=JOB [--OPTION=VALUE]...]...")]
pub struct BenchArgs {
    /// Job files, as fio reads them, and options; see below
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "WORDS")]
    pub words: Vec<String>,
}

const BENCH_HELP: &str = "\
Options of the command:
  --output-format=normal|json|json,normal   as fio prints it for people (default), or fio's JSON
  --output=FILE                             there instead of to stdout
  --eta=auto|always|never                   a line of progress: auto, on a terminal
  --ignore-unknown                          leave out options that are not known

Options of jobs are fio's: --rw, --bs, --size, --iodepth, --numjobs, --runtime, --verify, ... Those before the first --name
are for all jobs. Engines (--ioengine): psync, io_uring, mmap, and peerfs, for files of a mount, with
  --path=auto|direct|fallback               directly where that is decided; or else fail; never
  --importer=cpu|static|readonly|nonatomic  for whom it maps

The same random reads through the mapping and through the filesystem:

Example:
  peerfs bench --filename=/mnt/peer/f --rw=randread --bs=4k --size=64m --ioengine=peerfs --name=direct --path=direct --name=fallback --stonewall --path=fallback";

#[derive(Args)]
pub struct DemoArgs {
    /// Where the temporary volume is made [default: the directory for temporary files]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep the unmounted volume
    #[arg(long)]
    pub keep: bool,
    /// Bytes of files to work with
    #[arg(long, value_parser = size, default_value = "256M")]
    pub size: u64,
}

#[derive(Args)]
pub struct ConformanceArgs {
    /// image or mem [default: both], or a device whose content the cases destroy: nvme:BDF/nsN, nvme:BDF/pmr (nvme:BDF is
    /// its namespace 1) or pmem:PATH[,nodax]. Of the device 64 MiB are used; a peerfs volume is left on it
    #[arg(long)]
    pub backend: Option<String>,
    /// With a device: put a software CMB of this size over it, whose windows clients are given. Without, only the importer in
    /// the server reaches its memory
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub cmb: Option<u64>,
    /// With a device: destroy what is on it also where mkfs would refuse to
    #[arg(long)]
    pub force: bool,
    /// Only the case of this name, or those whose name contains it (may be given again)
    #[arg(long = "case", value_name = "NAME")]
    pub cases: Vec<String>,
    /// Only list the cases and their rules
    #[arg(long)]
    pub list: bool,
    /// Seed of random content
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand)]
pub enum GenerateCommand {
    /// Write the manual pages into a directory
    #[command(after_help = "Example:\n  peerfs generate man /usr/local/share/man/man1")]
    Man {
        /// An existing directory
        directory: PathBuf,
    },
    /// Print the completions of a shell
    #[command(after_help = "Example:\n  peerfs generate completions bash")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
pub struct ConformanceClientArgs {
    pub words: Vec<OsString>,
}

#[derive(Args)]
pub struct CheckMetadataArgs {
    pub device: String,
    /// Check every cross-reference too
    #[arg(long)]
    pub full: bool,
}

#[derive(Args)]
pub struct DemoHungArgs {
    pub file: PathBuf,
}

/// Longest time to hold a mapping, seconds: three years.
const HOLD_MAX: f64 = 1e8;

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=HOLD_MAX).contains(number));
    number.map(Duration::from_secs_f64).ok_or_else(|| format!("give seconds, 0 to {HOLD_MAX}"))
}

fn size(text: &str) -> Result<u64, SpecError> {
    parse_size(text)
}

/// What the command line asks for.
pub enum Parsed {
    /// A command.
    Run(Box<Cli>),
    /// Help or version, on stdout.
    Print(String),
    /// It is wrong: a line that says how.
    Usage(String),
}

/// Parses a command line, program name first.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Parsed {
    let error = match Cli::try_parse_from(arguments) {
        Ok(cli) => return Parsed::Run(Box::new(cli)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Print(error.to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Parsed::Usage("no command is named".into()),
        _ => Parsed::Usage(usage_line(&error.to_string())),
    }
}

/// clap explains in paragraphs; what is wrong comes before the usage.
fn usage_line(text: &str) -> String {
    let what = text.split("\n\nUsage:").next().unwrap_or(text).split("\n\nFor more information").next().unwrap_or(text);
    let what = what.strip_prefix("error: ").unwrap_or(what);
    what.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Parsed {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    /// The commands of the tree with how they are called, the hidden ones too.
    fn tree(command: &clap::Command, called: &str) -> Vec<(String, clap::Command)> {
        let below = command.get_subcommands().flat_map(|sub| tree(sub, &format!("{called} {}", sub.get_name())));
        std::iter::once((called.to_owned(), command.clone())).chain(below).collect()
    }

    #[test]
    fn every_command_ends_its_help_with_an_example_that_parses() {
        let commands = tree(&<Cli as clap::CommandFactory>::command(), "peerfs");
        assert!(commands.len() > 20, "{} commands", commands.len());
        for (called, command) in commands {
            let after = command.get_after_help().unwrap_or_else(|| panic!("{called} has no example")).to_string();
            let (_, examples) = after.rsplit_once("Example").unwrap_or_else(|| panic!("{called}: {after}"));
            let examples: Vec<&str> = examples.lines().skip(1).map(str::trim).collect();
            assert!(!examples.is_empty(), "{called}: {after}");
            for example in examples {
                assert!(example.starts_with(&called), "{called}: {example} is another command");
                if let Parsed::Usage(why) = parsed(example) {
                    panic!("{example}: {why}");
                }
            }
        }
    }

    #[test]
    fn mistakes_become_one_line() {
        for line in [
            "peerfs mount",
            "peerfs frobnicate",
            "peerfs mkfs x --size 5Q",
            "peerfs map x --repeat 0",
            "peerfs map x --hold -1",
            "peerfs map x --hold 1e99",
        ] {
            let Parsed::Usage(what) = parsed(line) else { panic!("{line} is accepted") };
            assert!(!what.contains('\n') && !what.starts_with("error"), "{what}");
        }
    }
}
