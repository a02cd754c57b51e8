//! What fio prints for people (fio 3.33), and a line about paths.

use std::fmt::Write;
use std::time::SystemTime;

use super::{Report, Row, numbers};
use crate::stats::{Depths, DirectionStats, Latency, MS_LABELS, PERCENTILES, SUB_MS_LABELS};
use crate::values::Direction;

pub fn report(report: &Report) -> String {
    let mut text = String::new();
    for row in &report.rows {
        header(&mut text, row);
    }
    text.push('\n');
    let time = time(report.began);
    for row in &report.rows {
        job(&mut text, row, &time);
    }
    let mut rest = &report.rows[..];
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|row| row.group == first.group).count();
        group(&mut text, &rest[..count]);
        rest = &rest[count..];
    }
    text
}

pub fn time(moment: SystemTime) -> String {
    numbers::time(moment)
}

/// `write!` to a string cannot fail.
macro_rules! line {
    ($text:expr, $($what:tt)*) => {{ let _ = writeln!($text, $($what)*); }};
}

fn header(text: &mut String, row: &Row) {
    let settings = &row.settings;
    let sizes = Direction::ALL.map(|direction| {
        let blocks = settings.blocks.get(direction);
        let letter = if direction == Direction::Read { 'R' } else { 'W' };
        format!("({letter}) {}-{}", block(blocks.smallest()), block(blocks.largest()))
    });
    line!(
        text,
        "{}: (g={}): rw={}, bs={}, ioengine={}, iodepth={}",
        row.name,
        row.group,
        settings.access.name(),
        sizes.join(", "),
        settings.engine.name(),
        settings.depth
    );
}

fn block(bytes: u64) -> String {
    if bytes < 10_240 { format!("{bytes}B") } else { numbers::bytes(bytes).0 }
}

fn job(text: &mut String, row: &Row, time: &str) {
    line!(text, "{}: (groupid={}, jobs={}): err={:2}: {time}", row.name, row.group, row.clones, row.errno);
    if let Some(description) = &row.settings.description {
        line!(text, "  Description  : [{description}]");
    }
    let stats = &row.stats;
    for direction in Direction::ALL {
        one_direction(text, direction, stats.directions.get(direction));
    }
    let whole = stats.transfers();
    shares(text, "lat (nsec)   ", &SUB_MS_LABELS.map(|label| label.to_string()), &stats.buckets.ns, whole);
    shares(text, "lat (usec)   ", &SUB_MS_LABELS.map(|label| label.to_string()), &stats.buckets.us, whole);
    let mut ms_labels = MS_LABELS.map(|label| label.to_string()).to_vec();
    ms_labels.push(">=2000".to_owned());
    shares(text, "lat (msec)   ", &ms_labels, &stats.buckets.ms, whole);
    if stats.sync.count() > 0 {
        line!(text, "  fsync/fdatasync/sync_file_range:");
        latency(text, "  sync", &stats.sync);
        percentiles(text, "sync", &stats.sync);
    }
    footer(text, row);
}

fn footer(text: &mut String, row: &Row) {
    let stats = &row.stats;
    let runtime = stats.runtime.as_secs_f64().max(1e-9);
    line!(
        text,
        "  cpu          : usr={:.2}%, sys={:.2}%, ctx={}, majf={}, minf={}",
        100.0 * stats.usage.user.as_secs_f64() / runtime,
        100.0 * stats.usage.system.as_secs_f64() / runtime,
        stats.usage.switches,
        stats.usage.major_faults,
        stats.usage.minor_faults
    );
    let whole = stats.transfers().max(1) as f64;
    let depth = |(label, count): (&str, u64)| format!("{label}={:.1}%", 100.0 * count as f64 / whole);
    let depths: Vec<_> = Depths::LABELS.into_iter().zip(stats.depths.counts()).map(depth).collect();
    line!(text, "  IO depths    : {}", depths.join(", "));
    let (read, write) = (&stats.directions.read, &stats.directions.write);
    line!(
        text,
        "     issued rwts: total={},{},0,{} short={},{},0,0 dropped=0,0,0,0",
        read.transfers,
        write.transfers,
        stats.full_syncs,
        read.short,
        write.short
    );
    line!(text, "     latency   : target=0, window=0, percentile=100.00%, depth={}", row.settings.depth);
    let Some(paths) = &stats.paths else { return };
    let size = |bytes: u64| numbers::bytes(bytes).0;
    line!(
        text,
        "  paths        : direct-window={}, direct-bar={}, fallback={}",
        size(paths.direct_window),
        size(paths.direct_bar),
        size(paths.fallback)
    );
    for (reason, bytes) in &paths.reasons {
        line!(text, "     fallback  : {reason}={}", size(*bytes));
    }
    if paths.remaps > 0 {
        line!(text, "     mapped again: {} times", paths.remaps);
    }
}

fn one_direction(text: &mut String, direction: Direction, stats: &DirectionStats) {
    if stats.transfers == 0 {
        return;
    }
    let seconds = stats.runtime.as_secs_f64().max(1e-9);
    let (binary, decimal) = numbers::bandwidth((stats.bytes as f64 / seconds) as u64);
    line!(
        text,
        "  {}: IOPS={}, BW={binary} ({decimal})({}/{}msec)",
        direction.name(),
        numbers::short((stats.transfers as f64 / seconds) as u64, 4, 1000, 0),
        numbers::bytes(stats.bytes).0,
        stats.runtime.as_millis()
    );
    if stats.submission.count() > 0 {
        latency(text, "  slat", &stats.submission);
    }
    latency(text, "  clat", &stats.completion);
    latency(text, "   lat", &stats.total);
    percentiles(text, "clat", &stats.completion);
    let (bandwidth, rate) = (&stats.samples.bandwidth, &stats.samples.rate);
    if bandwidth.count() > 0 {
        line!(
            text,
            "   bw (  KiB/s): min={:5}, max={:5}, per=100.00%, avg={:5.2}, stdev={:5.2}, samples={}",
            bandwidth.min() as u64,
            bandwidth.max() as u64,
            bandwidth.mean(),
            bandwidth.deviation(),
            bandwidth.count()
        );
        line!(
            text,
            "   iops        : min={:5}, max={:5}, avg={:5.2}, stdev={:5.2}, samples={}",
            rate.min() as u64,
            rate.max() as u64,
            rate.mean(),
            rate.deviation(),
            rate.count()
        );
    }
}

/// The unit in which times are printed: how many ns, and its name.
fn unit(least: u64, most: u64) -> (u64, &'static str) {
    match (least, most) {
        (2_000_001.., 100_000_000..) => (1_000_000, "msec"),
        (2001.., 100_000..) => (1000, "usec"),
        _ => (1, "nsec"),
    }
}

fn latency(text: &mut String, name: &str, latency: &Latency) {
    let (unit, unit_name) = unit(latency.min(), latency.max());
    let scaled = |ns: f64| ns / unit as f64;
    line!(
        text,
        "  {name} ({unit_name}): min={}, max={}, avg={:5.2}, stdev={:5.2}",
        numbers::short(latency.min() / unit, 6, 1000, 0),
        numbers::short(latency.max() / unit, 6, 1000, 0),
        scaled(latency.mean()),
        scaled(latency.deviation())
    );
}

fn percentiles(text: &mut String, name: &str, latency: &Latency) {
    let times = PERCENTILES.map(|percent| latency.percentile(percent));
    let (unit, unit_name) = unit(times[0], times[times.len() - 1]);
    line!(text, "    {name} percentiles ({unit_name}):");
    let cells: Vec<String> =
        PERCENTILES.iter().zip(times).map(|(percent, ns)| format!("{percent:5.2}th=[{:5}]", ns / unit)).collect();
    for (index, row) in cells.chunks(4).enumerate() {
        let end = if (index + 1) * 4 < cells.len() { "," } else { "" };
        line!(text, "     | {}{end}", row.join(", "));
    }
}

fn shares(text: &mut String, name: &str, labels: &[String], counts: &[u64], whole: u64) {
    let share = |(label, count): (&String, &u64)| match count {
        0 => None,
        count => Some(format!("{label}={:.2}%", (100.0 * *count as f64 / whole.max(1) as f64).max(0.01))),
    };
    let cells: Vec<String> = labels.iter().zip(counts).filter_map(share).collect();
    for row in cells.chunks(5) {
        line!(text, "  {name}: {}", row.join(", "));
    }
}

fn group(text: &mut String, rows: &[Row]) {
    line!(text, "\nRun status group {} (all jobs):", rows[0].group);
    for direction in Direction::ALL {
        let used: Vec<&DirectionStats> =
            rows.iter().map(|row| row.stats.directions.get(direction)).filter(|stats| stats.transfers > 0).collect();
        let rates = used.iter().map(|stats| (stats.bytes as f64 / stats.runtime.as_secs_f64().max(1e-9)) as u64);
        let times = used.iter().map(|stats| stats.runtime);
        let (Some(slowest), Some(fastest)) = (rates.clone().min(), rates.max()) else { continue };
        let (shortest, longest) = (times.clone().min().unwrap_or_default(), times.max().unwrap_or_default());
        let bytes: u64 = used.iter().map(|stats| stats.bytes).sum();
        let all = numbers::bandwidth((bytes as f64 / longest.as_secs_f64().max(1e-9)) as u64);
        let (least, most) = (numbers::bandwidth(slowest), numbers::bandwidth(fastest));
        let io = numbers::bytes(bytes);
        line!(
            text,
            "{:>7}: bw={} ({}), {}-{} ({}-{}), io={} ({}), run={}-{}msec",
            direction.name().to_uppercase(),
            all.0,
            all.1,
            least.0,
            most.0,
            least.1,
            most.1,
            io.0,
            io.1,
            shortest.as_millis(),
            longest.as_millis()
        );
    }
}
