//! `peerfs map`: takes a mapping, reads through it and says which way the bytes went.

use std::fmt::Write;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peerfs_abi::names::{CUDA_PREFIX, SERVER_IMPORTER};
use peerfs_client::{Attestation, File, MapFlags, Mapping, REVOKED, Reason, Revocation, Session, SessionOptions, Trigger};
use peerfs_sys::PlainMemory;
use serde_json::{Value, json};

use super::cuda;
use super::query::{refusal_lines, refusals_json, refused, segment_json, segment_lines};
use super::same_address::{self, SameAddress};
use super::server_reading;
use crate::args::{MapArgs, RequestArgs};
use crate::{output, ranges};

/// Bytes moved by one call.
const PIECE_BYTES: usize = 1 << 20;

pub fn run(args: MapArgs) -> Result<ExitCode> {
    let request = &args.request;
    let what = || format!("map {}", request.file.display());
    let wanted = ranges::range(request.offset, request.length)?;
    let importer = ranges::importer(&request.importer)?;
    let file = ranges::open(&request.file, ranges::flags(request).writes()).with_context(what)?;
    if importer.name == SERVER_IMPORTER {
        return server_reading::run(&args, &file, wanted);
    }
    if importer.name.starts_with(CUDA_PREFIX) {
        return cuda::run(&args, &importer, &file, wanted);
    }
    let options = SessionOptions { acknowledge: !args.hung };
    let directory = ranges::directory_of(&request.file)?;
    let session = Session::open_with(&directory, importer, options).with_context(what)?;
    let mapping = session.map(&file, wanted, ranges::flags(request)).with_context(what)?;
    let revoked = listen(&mapping);
    let read = read_all(&mapping, args.checksum).with_context(what)?;
    let rates = args.repeat.map(|repeat| compare(&file, &mapping, repeat)).transpose().with_context(what)?;
    let shared = args.va_bits.map(|bits| same_address::compare(&args, &session, &mapping, bits)).transpose()?;
    if args.hold.is_some() {
        // For the ledger, which is looked at while it is held.
        mapping.report().with_context(what)?;
    }
    if !request.json {
        output::print(&text(&mapping, &read, rates.as_ref(), shared.as_ref()))?;
    }
    let revocations = args.hold.map_or_else(Vec::new, |time| hold(&revoked, time, request.json));
    mapping.report().with_context(what)?;
    if request.json {
        output::print_json(&to_json(&args, &mapping, &read, rates.as_ref(), shared.as_ref(), &revocations))?;
    }
    mapping.unmap().with_context(what)?;
    Ok(ExitCode::SUCCESS)
}

/// Hears of revocations.
pub fn listen(mapping: &Mapping) -> Receiver<Revocation> {
    let (tell, revoked) = mpsc::channel();
    mapping.on_revoke(move |revocation| {
        // Nobody listens any more when the command is about to end.
        let _ = tell.send(*revocation);
    });
    revoked
}

/// One pass over the mapping.
struct Pass {
    moved: Attestation,
    checksum: Option<u32>,
}

fn read_all(mapping: &Mapping, checksum: bool) -> Result<Pass> {
    let mut pass = Pass { moved: Attestation::default(), checksum: checksum.then_some(0) };
    each_piece(mapping, |offset, piece| {
        let moved = mapping.read_at(offset, piece)?;
        if let Some(sum) = &mut pass.checksum {
            // Less than asked for when the file became shorter meanwhile.
            let count = usize::try_from(moved.total()).unwrap_or(piece.len()).min(piece.len());
            *sum = crc32c::crc32c_append(*sum, &piece[..count]);
        }
        pass.moved += moved;
        Ok(())
    })?;
    Ok(pass)
}

/// Calls for every piece of the mapped range, with a buffer of its length.
fn each_piece(mapping: &Mapping, mut call: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let range = mapping.range();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = range.start;
    while at < range.end {
        let length = usize::try_from(range.end - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        call(at, &mut buffer[..length])?;
        at += length as u64;
    }
    Ok(())
}

/// Medians of the same bytes moved in three ways, bytes per second.
struct Rates {
    memcpy: f64,
    mapped: f64,
    read: f64,
}

/// The ways take turns, so that a noisy moment hits all of them.
fn compare(file: &File, mapping: &Mapping, repeat: u32) -> Result<Rates> {
    let range = mapping.range();
    let length = usize::try_from(range.end - range.start).context("the range does not fit in memory")?;
    let memory = PlainMemory::filled(length.max(1), 0x5a).context("memory to compare with")?;
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..repeat {
        times[0].push(timed(mapping, |offset, piece| {
            let copied = memory.copy_to(usize::try_from(offset - range.start)?, piece);
            // Nobody looks at the bytes, so the compiler would leave the copy out.
            black_box(piece);
            copied.context("outside the memory to compare with")
        })?);
        times[1].push(timed(mapping, |offset, piece| Ok(mapping.read_at(offset, piece).map(drop)?))?);
        times[2].push(timed(mapping, |offset, piece| Ok(file.read_at(offset, piece).map(drop)?))?);
    }
    let [memcpy, mapped, read] = times.map(|times| length as f64 / median(times).as_secs_f64().max(1e-9));
    Ok(Rates { memcpy, mapped, read })
}

fn timed(mapping: &Mapping, call: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    each_piece(mapping, call)?;
    Ok(start.elapsed())
}

pub fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Holds the mapping, and tells of revocations as they come.
pub fn hold(revoked: &Receiver<Revocation>, time: Duration, quiet: bool) -> Vec<Revocation> {
    let end = Instant::now() + time;
    let mut seen = Vec::new();
    while let Ok(revocation) = revoked.recv_timeout(end.saturating_duration_since(Instant::now())) {
        if !quiet {
            // Who reads this may have gone; the mapping is held all the same.
            let _reader = output::print(&format!(
                "revoked: {} at offset {}: {}\n",
                output::bytes(revocation.length),
                revocation.file_offset,
                revocation.trigger.map_or("for a reason newer than this program", Trigger::text)
            ));
        }
        seen.push(revocation);
    }
    seen
}

fn text(mapping: &Mapping, read: &Pass, rates: Option<&Rates>, shared: Option<&SameAddress>) -> String {
    let mut text = segment_lines(mapping.segments(), false);
    text.push('\n');
    text.push_str(&refusal_lines(refused(mapping.segments())));
    let moved = read.moved;
    let _ = writeln!(
        text,
        "mapping {}: read {} direct-window, {} direct-bar, {} fallback",
        mapping.id(),
        output::bytes(moved.direct_window),
        output::bytes(moved.direct_bar),
        output::bytes(moved.fallback)
    );
    for pin in mapping.pins() {
        let length = output::bytes(pin.length);
        let _ = writeln!(text, "pin of {length} from offset {}: {}", pin.file_offset, pin.kind.name());
    }
    if let Some(sum) = read.checksum {
        let _ = writeln!(text, "crc32c {sum:08x}");
    }
    text.extend(shared.map(SameAddress::text));
    if let Some(rates) = rates {
        let gigabytes = |rate: f64| format!("{:.2} GB/s ({:.2} of memcpy)", rate / 1e9, rate / rates.memcpy);
        let _ = writeln!(
            text,
            "memcpy {:.2} GB/s, mapped {}, read(2) {}",
            rates.memcpy / 1e9,
            gigabytes(rates.mapped),
            gigabytes(rates.read)
        );
    }
    text
}

fn to_json(
    args: &MapArgs,
    mapping: &Mapping,
    read: &Pass,
    rates: Option<&Rates>,
    shared: Option<&SameAddress>,
    revocations: &[Revocation],
) -> Value {
    let mut json = mapping_json(&args.request, ranges::flags(&args.request), mapping, revocations);
    json["bytes_read"] = read.moved.total().into();
    json["crc32c"] = read.checksum.map(|sum| format!("{sum:08x}")).into();
    json["rates"] =
        rates.map_or(Value::Null, |rates| json!({ "memcpy": rates.memcpy, "mapped": rates.mapped, "read": rates.read }));
    json["same_address"] = shared.map_or(Value::Null, SameAddress::json);
    json
}

/// What every kind of importer reports.
pub fn mapping_json(request: &RequestArgs, flags: MapFlags, mapping: &Mapping, revocations: &[Revocation]) -> Value {
    let moved = mapping.moved();
    json!({
        "file": request.file.display().to_string(),
        "importer": request.importer,
        "flags": flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>(),
        "mapping": mapping.id(),
        "offset": mapping.range().start,
        "end": mapping.range().end,
        "segments": mapping.segments().iter().map(|segment| segment_json(segment, false)).collect::<Vec<_>>(),
        "refusals": refusals_json(refused(mapping.segments())),
        "pins": mapping.pins().iter().map(|pin| json!({
            "offset": pin.file_offset, "length": pin.length, "kind": pin.kind.name(),
        })).collect::<Vec<_>>(),
        "bytes_direct": moved.direct(),
        "bytes_direct_window": moved.direct_window,
        "bytes_direct_bar": moved.direct_bar,
        "bytes_fallback": moved.fallback,
        "fallback_reasons": mapping.fallback_reasons().into_iter()
            .map(|(reason, bytes)| (reason.map_or(REVOKED, Reason::name).to_owned(), bytes.into()))
            .collect::<serde_json::Map<_, _>>(),
        "revocations": revocations.iter().map(|revocation| json!({
            "offset": revocation.file_offset,
            "length": revocation.length,
            "trigger": revocation.trigger.map(Trigger::name),
        })).collect::<Vec<_>>(),
    })
}
