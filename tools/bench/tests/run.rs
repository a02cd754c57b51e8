//! What jobs do, on plain files.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{bench, plan};
use peerfs_bench::{Plan, Progress, Report, command_line, run};
use serde_json::Value;
use tempfile::TempDir;

fn scratch() -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let option = format!("--directory={}", directory.path().display());
    (directory, option)
}

/// Runs the words of a line behind the directory.
fn in_directory(directory: &str, line: &str) -> Report {
    let words: Vec<&str> = std::iter::once(directory).chain(line.split_whitespace()).collect();
    bench(&words)
}

fn only_error(report: &Report) -> String {
    let errors: Vec<String> = report.errors().map(|(job, error)| format!("{job}: {error}")).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors[0].clone()
}

fn figure(report: &Report, job: usize, path: &str) -> Value {
    let json = report.json();
    json["jobs"][job].pointer(path).unwrap_or_else(|| panic!("{path}: {json:#}")).clone()
}

#[test]
fn every_engine_moves_every_byte_and_verifies_it() {
    for engine in ["psync", "io_uring --iodepth=8", "mmap", "psync --direct=1", "io_uring --iodepth=32 --direct=1"] {
        for order in ["--rw=write", "--rw=randwrite", "--rw=randwrite --norandommap", "--rw=randwrite --bsrange=4k-64k --loops=2"]
        {
            let (_directory, option) = scratch();
            let line = format!("--name=a --size=1m --verify=crc32c --end_fsync=1 --ioengine={engine} {order}");
            let report = in_directory(&option, &line);
            assert_eq!(report.errors().count(), 0, "{line}: {report:?}");
            let written = figure(&report, 0, "/write/io_bytes").as_u64().expect("bytes");
            assert!(written >= 1 << 20, "{line}: {written}");
        }
    }
}

#[test]
fn a_damaged_block_is_found_wherever_it_is() {
    let (directory, option) = scratch();
    assert_eq!(in_directory(&option, "--name=a --rw=write --size=256k --verify=crc32c").errors().count(), 0);
    let read = "--name=b --filename=a.0.0 --rw=randread --size=256k --verify=crc32c";
    assert_eq!(in_directory(&option, read).errors().count(), 0);
    let file = OpenOptions::new().read(true).write(true).open(directory.path().join("a.0.0")).expect("laid out");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 40_000).expect("there");
    file.write_all_at(&[byte[0] ^ 1], 40_000).expect("room");
    let report = in_directory(&option, read);
    assert!(only_error(&report).contains("4096 bytes at offset 36864: its CRC-32C"), "{report:?}");
    assert_eq!(figure(&report, 0, "/error"), nix_eilseq());
    assert_eq!(figure(&report, 0, "/read/total_ios"), 64, "all blocks are looked at");
    let report = in_directory(&option, &format!("{read} --verify_fatal=1 --rw=read"));
    assert_eq!(figure(&report, 0, "/read/total_ios"), 10, "the first ends it");
}

#[test]
fn an_error_names_the_file_of_its_clone() {
    let (directory, option) = scratch();
    let write = "--name=a --rw=write --size=16k --numjobs=2 --verify=crc32c";
    assert_eq!(in_directory(&option, write).errors().count(), 0);
    fs::write(directory.path().join("a.1.0"), vec![0; 16 << 10]).expect("room");
    let report = in_directory(&option, &write.replace("=write", "=read"));
    assert!(only_error(&report).contains("a.1.0: the block"), "{report:?}");
}

/// EILSEQ, as fio reports it.
fn nix_eilseq() -> i32 {
    nix::errno::Errno::EILSEQ as i32
}

#[test]
fn patterns_are_written_as_they_are() {
    let (directory, option) = scratch();
    let line = "--name=a --rw=write --bs=512 --size=1k --verify=pattern --verify_pattern=\"ab\"%o";
    assert_eq!(in_directory(&option, line).errors().count(), 0);
    let bytes = fs::read(directory.path().join("a.0.0")).expect("written");
    assert_eq!(&bytes[..12], b"ab\0\0\0\0\0\0\0\0ab");
    assert_eq!(&bytes[512..522], b"ab\0\x02\0\0\0\0\0\0");
}

#[test]
fn stages_follow_each_other_and_clones_are_reported_as_asked() {
    let (directory, option) = scratch();
    let report =
        in_directory(&option, "--size=64k --name=a --rw=write --numjobs=3 --name=b --stonewall --rw=read --filename=a.2.0");
    let json = report.json();
    let rows: Vec<_> = json["jobs"].as_array().expect("jobs").iter().map(|job| (&job["jobname"], &job["groupid"])).collect();
    assert_eq!(rows.iter().map(|row| row.0.as_str().unwrap_or_default()).collect::<Vec<_>>(), ["a", "a", "a", "b"]);
    assert_eq!(rows[3].1, 1);
    assert!(directory.path().join("a.2.0").exists());
    let report = in_directory(&option, "--name=a --rw=write --size=64k --numjobs=3 --group_reporting --unlink=1");
    assert_eq!(figure(&report, 0, "/write/io_bytes"), 3 * (64 << 10));
    assert_eq!(figure(&report, 0, "/peerfs/clones"), 3);
    assert!(!directory.path().join("a.0.0").exists());
}

#[test]
fn only_files_that_were_used_are_removed() {
    let (directory, option) = scratch();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("refused"), vec![0; 64 << 10]).expect("room");
    fs::write(path("kept"), vec![0; 64 << 10]).expect("room");
    symlink(path("kept"), path("link")).expect("room");
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("room");
    let line = "--rw=read --size=64k --unlink=1 --name=a --filename=refused --ioengine=peerfs --name=b --filename=fifo \
                --name=c --filename=link --name=d --filename=used";
    let report = in_directory(&option, line);
    assert_eq!(report.errors().count(), 2, "{report:?}");
    let left = ["refused", "fifo", "link", "kept", "used"].map(|name| path(name).symlink_metadata().is_ok());
    assert_eq!(left, [true, true, true, true, false]);
}

#[test]
fn time_ends_what_work_does_not_and_ramps_are_not_measured() {
    let (_directory, option) = scratch();
    let began = Instant::now();
    let line = "--name=a --rw=randrw --size=64k --time_based --runtime=300ms --ramp_time=200ms";
    let report = in_directory(&option, line);
    assert!(began.elapsed() >= Duration::from_millis(500));
    let runtime = figure(&report, 0, "/job_runtime").as_u64().expect("ms");
    assert!((300..500).contains(&runtime) || began.elapsed() > Duration::from_secs(2), "{runtime} ms");
    assert!(figure(&report, 0, "/read/io_bytes").as_u64() > Some(64 << 10), "{:#}", report.json());
    // Without time_based, work ends it first.
    let report = in_directory(&option, "--name=a --rw=read --size=64k --runtime=1000 --loops=3");
    assert_eq!(figure(&report, 0, "/read/io_bytes"), 3 * (64 << 10));
}

#[test]
fn what_the_runtime_cut_short_is_verified() {
    let (_directory, option) = scratch();
    for line in ["--size=4m --rate_iops=100", "--size=64k --time_based"] {
        let report = in_directory(&option, &format!("--name=a --rw=write --verify=crc32c --runtime=300ms {line}"));
        assert_eq!(report.errors().count(), 0, "{report:?}");
        let [written, verified] = ["/write/total_ios", "/read/total_ios"].map(|path| figure(&report, 0, path));
        assert_eq!(written, verified, "{line}");
        assert!(written.as_u64() > Some(0) && written != 1024, "{line}: {written}");
    }
}

#[test]
fn rates_are_kept() {
    let (_directory, option) = scratch();
    let began = Instant::now();
    let report =
        in_directory(&option, "--name=a --rw=write --bs=4k --size=40k --rate_iops=50 --name=b --rw=read --size=40k --rate=200k");
    assert_eq!(report.errors().count(), 0);
    // Nine waits of 20 ms.
    assert!(began.elapsed() >= Duration::from_millis(180), "{:?}", began.elapsed());
}

#[test]
fn a_share_of_a_file_ends_with_the_file() {
    let (directory, option) = scratch();
    let path = directory.path().join("f");
    fs::write(&path, vec![0; 256 << 10]).expect("room");
    let moved = |sizes: &str| {
        let report = in_directory(&option, &format!("--name=a --filename=f --rw=read {sizes}"));
        assert_eq!(report.errors().count(), 0, "{report:?}");
        assert_eq!(fs::metadata(&path).expect("there").len(), 256 << 10, "{sizes}");
        figure(&report, 0, "/read/io_bytes")
    };
    for (sizes, bytes) in [
        ("--size=100% --offset=64k", 192 << 10),
        ("--size=50% --offset=75%", 64 << 10),
        ("--size=50% --offset=64k", 128 << 10),
        ("--size=100% --offset=64k --filesize=256k", 192 << 10),
        ("--size=100% --offset=192k --io_size=128k", 128 << 10),
    ] {
        assert_eq!(moved(sizes), bytes, "{sizes}");
    }
}

#[test]
fn what_fails_is_named_and_the_others_go_on() {
    let (_directory, option) = scratch();
    let report = in_directory(&option, "--size=64k --name=a --rw=read --directory=/no/such --name=b --rw=write");
    assert!(only_error(&report).starts_with("a: cannot lay out /no/such/a.0.0: "), "{report:?}");
    assert_eq!(figure(&report, 0, "/error"), 2);
    assert_eq!(figure(&report, 1, "/write/io_bytes"), 64 << 10);
    let report = in_directory(&option, "--name=c --rw=read");
    assert!(only_error(&report).contains("there is no size to go by"), "{report:?}");
    let report = in_directory(&option, "--name=d --rw=read --size=64k --ioengine=peerfs");
    assert!(only_error(&report).contains("is not on a peerfs mount"), "{report:?}");
}

#[test]
fn mistakes_in_files_are_named_with_file_line_and_what_was_meant() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("x.fio");
    let said = |text: &str| {
        fs::write(&file, text).expect("room");
        plan(&[file.to_str().expect("plain")]).err().map(|error| error.to_string().replace(&file.display().to_string(), "x.fio"))
    };
    assert_eq!(
        said("[a]\nbs=4k\niodeph=4").as_deref(),
        Some("x.fio:3: unknown option iodeph: did you mean iodepth? --ignore-unknown goes on without it")
    );
    assert_eq!(
        said("[a]\nverify=md5").as_deref(),
        Some("x.fio:2: verify: \"md5\": expected one of crc32c, pattern, crc32c-intel")
    );
    assert_eq!(
        said("; nothing").as_deref(),
        Some("command line: no job is defined: name a job file with a section, or give --name=NAME")
    );
    assert!(said("bs=4k").is_some_and(|said| said.starts_with("x.fio:1: ")));
    fs::write(&file, "[a]\niodeph=4\nsize=4k").expect("room");
    assert!(plan(&["--ignore-unknown", file.to_str().expect("plain")]).is_ok());
}

#[test]
fn the_same_seed_reads_the_same_blocks() {
    let (directory, option) = scratch();
    let trace = |seed: u64| {
        let line = format!(
            "--name=a --rw=randwrite --size=16k --bs=512 --io_size=8k --randseed={seed} --verify=pattern --verify_pattern=0xff"
        );
        fs::write(directory.path().join("a.0.0"), vec![0; 16 << 10]).expect("room");
        assert_eq!(in_directory(&option, &line).errors().count(), 0);
        fs::read(directory.path().join("a.0.0")).expect("there")
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

#[test]
fn the_report_for_people_has_fios_lines() {
    let (_directory, option) = scratch();
    let report = in_directory(&option, "--name=a --rw=randrw --size=1m --ioengine=io_uring --iodepth=4 --fsync=8");
    let text = report.text();
    for line in [
        "a: (g=0): rw=randrw, bs=(R) 4096B-4096B, (W) 4096B-4096B, ioengine=io_uring, iodepth=4\n",
        "a: (groupid=0, jobs=1): err= 0: ",
        "  read: IOPS=",
        "    slat (",
        "    clat percentiles (",
        "  fsync/fdatasync/sync_file_range:\n",
        "     issued rwts: total=",
        "Run status group 0 (all jobs):\n",
        "   READ: bw=",
        "  WRITE: bw=",
    ] {
        assert!(text.contains(line), "{line:?} is missing:\n{text}");
    }
}

#[test]
fn progress_reaches_its_end() {
    let (_directory, option) = scratch();
    let words: Vec<String> = [option.as_str(), "--name=a", "--rw=write", "--size=1m"].map(str::to_owned).to_vec();
    let request = command_line::parse(&words).expect("good");
    let plan = Plan::new(&request.sections, false).expect("good");
    let progress = Progress::new();
    assert!(!progress.has_ended());
    let report = run(&plan, &progress);
    let end = progress.snapshot();
    assert!(progress.has_ended() && report.errors().count() == 0);
    assert_eq!((end.moved, end.transfers, end.share, end.names), (1 << 20, 256, 1.0, vec!["a".to_owned()]));
}

#[test]
fn damaged_job_files_are_refused_or_taken_but_never_break_anything() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("x.fio");
    let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let texts: Vec<Vec<u8>> =
        fs::read_dir(jobs).expect("jobs").map(|entry| fs::read(entry.expect("one").path()).expect("text")).collect();
    let alphabet = b"[]=%/:,.()*+-$ {}0129kKmMgGiB\n;#zx";
    // A fixed sequence: what fails once fails again.
    let mut state = 1_u64;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % limit
    };
    let mut taken = 0;
    for round in 0..2000 {
        let mut text = texts[round % texts.len()].clone();
        for _ in 0..=below(4) {
            let at = below(text.len());
            text[at] = alphabet[below(alphabet.len())];
        }
        fs::write(&file, &text).expect("room");
        match plan(&[file.to_str().expect("plain")]) {
            Ok(_) => taken += 1,
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    assert!((100..1900).contains(&taken), "{taken} of 2000 were taken");
}
