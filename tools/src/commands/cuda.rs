//! `peerfs map --importer cuda:N`: a GPU reads, and with `--write` writes back, a file through its pinned windows, beside
//! the same bytes by read(2) and cuMemcpyHtoD.

use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peerfs_client::{File, ImporterSpec, MapFlags, Revocation, Session};
use peerfs_cuda::{CudaGpu, GpuBuffer, GpuMapping, Moved};
use serde_json::{Value, json};

use super::map;
use super::query::{refusal_lines, refused, segment_lines};
use crate::args::MapArgs;
use crate::failure::Usage;
use crate::ranges::FileRange;
use crate::{output, ranges};

/// Memory of the GPU that is used, at most, bytes.
const BUFFER_BYTES: u64 = 64 << 20;

pub fn run(args: &MapArgs, importer: &ImporterSpec, file: &File, range: FileRange) -> Result<ExitCode> {
    let request = &args.request;
    let what = || format!("map {}", request.file.display());
    refuse_options(args, importer)?;
    let ordinal = peerfs_cuda::ordinal(&importer.name).context("a GPU has a number")?;
    let gpu = Arc::new(CudaGpu::open(ordinal).with_context(|| format!("importer {}", importer.name))?);
    let session = Session::open(ranges::directory_of(&request.file)?, peerfs_cuda::spec(ordinal)).with_context(what)?;
    let mapping = GpuMapping::new(&gpu, &session, file, range, ranges::flags(request)).with_context(what)?;
    let revoked = map::listen(mapping.mapping());
    let mut trial = Trial::new(&gpu, file, &mapping).with_context(what)?;

    let pass = trial.pass(args.checksum, request.write).with_context(what)?;
    let rates = trial.compare(args.repeat.unwrap_or(1)).with_context(what)?;
    if !request.json {
        output::print(&text(&gpu, &mapping, &pass, rates.as_ref()))?;
    }
    let revocations = args.hold.map_or_else(Vec::new, |time| map::hold(&revoked, time, request.json));
    mapping.mapping().report().with_context(what)?;
    if request.json {
        output::print_json(&to_json(args, &gpu, &mapping, &pass, rates.as_ref(), &revocations))?;
    }
    mapping.end().with_context(what)?;
    Ok(ExitCode::SUCCESS)
}

fn refuse_options(args: &MapArgs, importer: &ImporterSpec) -> Result<()> {
    let refused = [
        ("--atomic", args.request.atomic, "it does no atomic operations"),
        ("--va-bits", args.va_bits.is_some(), "it has addresses of its own"),
        ("--hung", args.hung, "it acknowledges when its kernels have ended"),
        ("@ADDRESS", importer.pci_address.is_some(), "it reaches main memory, which needs no way to the storage device"),
    ];
    match refused.iter().find(|(_, given, _)| *given) {
        Some((option, _, why)) => Err(Usage(format!("{option}: importer {}: {why}", importer.name)).into()),
        None => Ok(()),
    }
}

/// The same bytes in both ways.
struct Trial<'a> {
    file: &'a File,
    mapping: &'a GpuMapping<CudaGpu>,
    buffer: GpuBuffer<CudaGpu>,
}

/// One pass over the mapping.
struct Pass {
    read: Moved,
    /// `None`: not mapped for writing.
    written: Option<Moved>,
    checksum: Option<u32>,
}

/// Medians of the time that the mapped range takes.
struct Rates {
    bytes: u64,
    runs: u32,
    mapped: Duration,
    copied: Duration,
}

impl Trial<'_> {
    fn new<'a>(gpu: &Arc<CudaGpu>, file: &'a File, mapping: &'a GpuMapping<CudaGpu>) -> Result<Trial<'a>> {
        let range = mapping.mapping().range();
        let capacity = usize::try_from((range.end - range.start).min(BUFFER_BYTES))?;
        Ok(Trial { file, mapping, buffer: GpuBuffer::new(gpu, capacity)? })
    }

    /// Calls for every piece of the range, with its offset and length.
    fn each_piece(&mut self, mut call: impl FnMut(&mut Self, u64, u64) -> Result<()>) -> Result<()> {
        let range = self.mapping.mapping().range();
        let mut at = range.start;
        while at < range.end {
            let length = (range.end - at).min(BUFFER_BYTES);
            call(self, at, length)?;
            at += length;
        }
        Ok(())
    }

    /// The GPU reads everything, and if wanted writes the same bytes back. What it had is compared with the file.
    fn pass(&mut self, checksum: bool, write: bool) -> Result<Pass> {
        let mut pass = Pass { read: Moved::default(), written: write.then(Moved::default), checksum: None };
        let mut sum = 0;
        self.each_piece(|trial, at, length| {
            let read = trial.mapping.read(at, length, &mut trial.buffer)?;
            pass.read += read;
            if checksum || write {
                trial.buffer.for_each_piece(read.total(), |bytes| sum = crc32c::crc32c_append(sum, bytes))?;
            }
            if let Some(written) = &mut pass.written {
                *written += trial.mapping.write(at, read.total(), &mut trial.buffer)?;
            }
            Ok(())
        })?;
        if checksum || write {
            let expected = self.checksum_of_file()?;
            ensure!(
                sum == expected,
                "the GPU has other bytes (crc32c {sum:08x}) than read(2) ({expected:08x}), unless the file was written meanwhile"
            );
            pass.checksum = Some(sum);
        }
        Ok(pass)
    }

    fn checksum_of_file(&mut self) -> Result<u32> {
        let (mut sum, mut bytes) = (0, vec![0; 1 << 20]);
        let range = self.mapping.mapping().range();
        let mut at = range.start;
        while at < range.end {
            let wanted = usize::try_from(range.end - at).unwrap_or(bytes.len()).min(bytes.len());
            let count = self.file.read_at(at, &mut bytes[..wanted])?;
            sum = crc32c::crc32c_append(sum, &bytes[..count]);
            if count < wanted {
                break;
            }
            at += count as u64;
        }
        Ok(sum)
    }

    /// The ways take turns, so that a noisy moment hits both. Nothing to compare in an empty range.
    fn compare(&mut self, runs: u32) -> Result<Option<Rates>> {
        let range = self.mapping.mapping().range();
        let (mut mapped, mut copied) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let start = Instant::now();
            self.each_piece(|trial, at, length| Ok(trial.mapping.read(at, length, &mut trial.buffer).map(drop)?))?;
            mapped.push(start.elapsed());
            let start = Instant::now();
            self.each_piece(|trial, at, length| Ok(trial.buffer.fill_from(trial.file, at, length).map(drop)?))?;
            copied.push(start.elapsed());
        }
        let bytes = range.end - range.start;
        Ok((bytes > 0).then(|| Rates { bytes, runs, mapped: map::median(mapped), copied: map::median(copied) }))
    }
}

impl Rates {
    /// Above 1 the mapping is faster.
    fn ratio(&self) -> f64 {
        self.copied.as_secs_f64() / self.mapped.as_secs_f64().max(1e-9)
    }

    /// Bytes per second.
    fn rate(&self, time: Duration) -> f64 {
        self.bytes as f64 / time.as_secs_f64().max(1e-9)
    }
}

fn text(gpu: &CudaGpu, mapping: &GpuMapping<CudaGpu>, pass: &Pass, rates: Option<&Rates>) -> String {
    let pin = mapping.mapping();
    let mut text = segment_lines(pin.segments(), false);
    text.push('\n');
    text.push_str(&refusal_lines(refused(pin.segments())));
    let info = gpu.info();
    let registered = output::bytes(mapping.registered_bytes());
    let _ = writeln!(text, "{} at {}: {registered} registered", info.name, info.pci_address);
    for (range, why) in mapping.unregistered() {
        let length = output::bytes(range.end - range.start);
        let _ = writeln!(text, "not registered: {length} from offset {}: {why}", range.start);
    }
    let _ = writeln!(text, "mapping {}: read {}", pin.id(), moved_text(pass.read));
    if let Some(written) = pass.written {
        let _ = writeln!(text, "written back: {}", moved_text(written));
    }
    if let Some(sum) = pass.checksum {
        let _ = writeln!(text, "crc32c {sum:08x}, as by read(2)");
    }
    if let Some(rates) = rates {
        let one = |time| format!("{:.2} GB/s ({} us)", rates.rate(time) / 1e9, time.as_micros());
        let (mapped, copied) = (one(rates.mapped), one(rates.copied));
        let _ = writeln!(
            text,
            "{:.2} times as fast as read(2) and cuMemcpyHtoD: mapped {mapped}, copied {copied}, {}",
            rates.ratio(),
            output::count(rates.runs.into(), "run")
        );
    }
    text
}

fn moved_text(moved: Moved) -> String {
    let by_processor = moved.by_processor;
    format!(
        "{} direct-window by the GPU; by the processor {} direct-window, {} direct-bar, {} fallback",
        output::bytes(moved.by_gpu),
        output::bytes(by_processor.direct_window),
        output::bytes(by_processor.direct_bar),
        output::bytes(by_processor.fallback)
    )
}

fn to_json(
    args: &MapArgs,
    gpu: &CudaGpu,
    mapping: &GpuMapping<CudaGpu>,
    pass: &Pass,
    rates: Option<&Rates>,
    revocations: &[Revocation],
) -> Value {
    let flags = ranges::flags(&args.request) | MapFlags::PIN;
    let mut json = map::mapping_json(&args.request, flags, mapping.mapping(), revocations);
    json["gpu"] = json!({ "name": gpu.info().name, "pci_address": gpu.info().pci_address });
    json["bytes_registered"] = mapping.registered_bytes().into();
    let unregistered = mapping.unregistered().iter();
    json["unregistered"] = unregistered
        .map(|(range, why)| json!({ "offset": range.start, "length": range.end - range.start, "why": why.to_string() }))
        .collect();
    json["bytes_read"] = pass.read.total().into();
    json["bytes_read_by_gpu"] = pass.read.by_gpu.into();
    json["bytes_written"] = pass.written.map(|written| written.total()).into();
    json["bytes_written_by_gpu"] = pass.written.map(|written| written.by_gpu).into();
    json["crc32c"] = pass.checksum.map(|sum| format!("{sum:08x}")).into();
    json["rates"] = rates.map_or(Value::Null, |rates| {
        json!({
            "ratio": rates.ratio(),
            "mapped": rates.rate(rates.mapped),
            "read_and_copy": rates.rate(rates.copied),
            "mapped_us": rates.mapped.as_micros() as u64,
            "read_and_copy_us": rates.copied.as_micros() as u64,
            "runs": rates.runs,
        })
    });
    json
}
