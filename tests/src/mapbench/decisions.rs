//! Decisions without side effects, beside the closest thing another filesystem answers: FIEMAP on ext4.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use peerfs_abi::MapFlags;
use peerfs_abi::ioctl::{Map, QUERY};
use peerfs_conformance::kit::{ScratchMount, raw};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{Plan, make_file};
use crate::report::{Report, median};

const FILE_BYTES: u64 = 64 << 20;
/// FS_IOC_FIEMAP (linux/fs.h): the command's size is that of the header alone.
const FIEMAP: u32 = 0xC020_660B;

/// struct fiemap (linux/fiemap.h) with room for no extent: it answers how many there are.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

pub(super) fn measure(plan: &Plan) -> Result<Report> {
    let scratch = ScratchMount::new("256M", &["--cmb", "96M"])?;
    let path = scratch.join("asked");
    make_file(&path, FILE_BYTES)?;
    let ours = raw::open_direct(&path, false)?;
    let ext4 = Ext4::mount(&scratch)?;
    let theirs = ext4.as_ref().map(Ext4::open).transpose()?;
    let (mut query, mut fiemap, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        query.push(rate(plan.decisions, || ask(&ours))?);
        if let Some(theirs) = &theirs {
            fiemap.push(rate(plan.decisions, || ask_extents(theirs))?);
        }
        threads.push(in_two_threads(plan.decisions, &ours)?);
    }
    let mut report = Report::new(
        "Decisions only (QUERY of a file of 64 MiB), per second",
        &["QUERY, 1 thread", "QUERY, 2 threads", "FIEMAP on ext4 (loop), 1 thread", "QUERY / FIEMAP"],
    );
    let (query, two) = (median(query), median(threads));
    let (shown, ratio) = match fiemap.is_empty() {
        true => ("not measured: no loop device or mkfs.ext4".to_owned(), "-".to_owned()),
        false => {
            let fiemap = median(fiemap);
            (format!("{fiemap:.0}"), format!("{:.3}", query / fiemap))
        }
    };
    report.row([format!("{query:.0}"), format!("{two:.0}"), shown, ratio]);
    report.note(format!(
        "Medians of {} runs. QUERY goes to a process in user space and back with {} bytes each way; FIEMAP is a call into the kernel.",
        plan.runs,
        size_of::<Map>()
    ));
    Ok(report)
}

fn rate(count: u64, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..count {
        call()?;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

fn in_two_threads(count: u64, file: &File) -> Result<f64> {
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| rate(count, || ask(file)))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic").map(drop))
    })?;
    Ok(2.0 * count as f64 / start.elapsed().as_secs_f64())
}

fn ask(file: &File) -> Result<()> {
    let mut argument = raw::request(file, 0, 0, MapFlags::QUERY);
    peerfs_sys::ioctl(file, QUERY, &mut *argument)?;
    ensure!(argument.segment_count > 0 && argument.segments[0].reason == 0, "the file would not map directly");
    Ok(())
}

fn ask_extents(file: &File) -> Result<()> {
    let mut argument = Fiemap::new_zeroed();
    argument.length = u64::MAX;
    peerfs_sys::ioctl(file.as_fd(), FIEMAP, &mut argument)?;
    ensure!(argument.mapped_extents > 0, "ext4 knows no extent of the file");
    Ok(())
}

/// An ext4 filesystem on a loop device, with one file like ours.
struct Ext4(PathBuf);

impl Ext4 {
    /// `None` where it cannot be made.
    fn mount(scratch: &ScratchMount) -> Result<Option<Ext4>> {
        let (image, target) = (scratch.directory().join("ext4.img"), scratch.directory().join("ext4"));
        File::create(&image)?.set_len(256 << 20)?;
        std::fs::create_dir(&target)?;
        let made = succeeds(Command::new("mkfs.ext4").arg("-qF").arg(&image))
            && succeeds(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&target));
        if !made {
            return Ok(None);
        }
        let mounted = Ext4(target);
        make_file(&mounted.file(), FILE_BYTES)?;
        Ok(Some(mounted))
    }

    fn file(&self) -> PathBuf {
        self.0.join("asked")
    }

    fn open(&self) -> Result<File> {
        let path: &Path = &self.file();
        File::open(path).with_context(|| path.display().to_string())
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if !succeeds(Command::new("umount").arg("-l").arg(&self.0)) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
