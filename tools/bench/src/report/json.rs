//! fio's JSON, key by key (fio 3.33).

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{Report, Row, text};
use crate::stats::{Depths, DirectionStats, Latency, MS_LABELS, PERCENTILES, SUB_MS_LABELS, Samples};

/// What stands where fio names its version.
pub const VERSION: &str = concat!("fio-3.33 (peerfs bench ", env!("CARGO_PKG_VERSION"), ")");

pub fn report(report: &Report) -> Value {
    let since = report.began.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "fio version": VERSION,
        "timestamp": since.as_secs(),
        "timestamp_ms": since.as_millis() as u64,
        "time": text::time(report.began),
        "global options": options(&report.global),
        "jobs": report.rows.iter().map(job).collect::<Vec<_>>(),
        "disk_util": [],
    })
}

fn options(written: &[(String, String)]) -> Value {
    written.iter().map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect::<Map<_, _>>().into()
}

fn job(row: &Row) -> Value {
    let stats = &row.stats;
    let transfers = stats.transfers();
    let runtime = stats.runtime.as_secs_f64().max(1e-9);
    let percent = |time: Duration| 100.0 * time.as_secs_f64() / runtime;
    let mut job = json!({
        "jobname": row.name,
        "groupid": row.group,
        "error": row.errno,
        "eta": 0,
        "elapsed": row.elapsed.as_secs() + 1,
        "job options": options(&row.written),
        "read": direction(&stats.directions.read),
        "write": direction(&stats.directions.write),
        "trim": direction(&DirectionStats::default()),
        "sync": { "total_ios": stats.full_syncs, "lat_ns": latency(&stats.sync, true) },
        "job_runtime": milliseconds(stats.runtime),
        "usr_cpu": percent(stats.usage.user),
        "sys_cpu": percent(stats.usage.system),
        "ctx": stats.usage.switches,
        "majf": stats.usage.major_faults,
        "minf": stats.usage.minor_faults,
        "latency_depth": row.settings.depth,
        "latency_target": 0,
        "latency_percentile": 100.0,
        "latency_window": 0,
        "peerfs": paths(row),
    });
    job["iodepth_level"] = shares(&Depths::LABELS.map(str::to_owned), &stats.depths.counts(), transfers);
    // Every transfer is handed over, and waited for, by itself.
    let batches = ["0", "4", "8", "16", "32", "64", ">=64"].map(str::to_owned);
    for key in ["iodepth_submit", "iodepth_complete"] {
        job[key] = shares(&batches, &[0, transfers, 0, 0, 0, 0, 0], transfers);
    }
    let mut ms_labels = MS_LABELS.map(|label| label.to_string()).to_vec();
    ms_labels.push(">=2000".to_owned());
    let sub_ms_labels = SUB_MS_LABELS.map(|label| label.to_string());
    job["latency_ns"] = shares(&sub_ms_labels, &stats.buckets.ns, transfers);
    job["latency_us"] = shares(&sub_ms_labels, &stats.buckets.us, transfers);
    job["latency_ms"] = shares(&ms_labels, &stats.buckets.ms, transfers);
    job
}

/// Percent of `whole`.
fn shares(labels: &[String], counts: &[u64], whole: u64) -> Value {
    let share = |count: u64| Value::from(100.0 * count as f64 / whole.max(1) as f64);
    labels.iter().zip(counts).map(|(label, count)| (label.clone(), share(*count))).collect::<Map<_, _>>().into()
}

fn direction(stats: &DirectionStats) -> Value {
    let runtime_ms = milliseconds(stats.runtime);
    let seconds = stats.runtime.as_secs_f64();
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let bandwidth = per_second(stats.bytes) as u64;
    let (samples, rates) = (&stats.samples.bandwidth, &stats.samples.rate);
    let mut json = json!({
        "io_bytes": stats.bytes,
        "io_kbytes": stats.bytes / 1024,
        "bw_bytes": bandwidth,
        "bw": bandwidth / 1024,
        "iops": per_second(stats.transfers),
        "runtime": runtime_ms,
        "total_ios": stats.transfers,
        "short_ios": stats.short,
        "drop_ios": 0,
        "slat_ns": latency(&stats.submission, false),
        "clat_ns": latency(&stats.completion, true),
        "lat_ns": latency(&stats.total, false),
        "bw_agg": if samples.count() > 0 { 100.0 } else { 0.0 },
    });
    json["bw_min"] = (samples.min() as u64).into();
    json["bw_max"] = (samples.max() as u64).into();
    json["iops_min"] = (rates.min() as u64).into();
    json["iops_max"] = (rates.max() as u64).into();
    let mut spread = |prefix: &str, deviation: &str, samples: &Samples| {
        json[format!("{prefix}_mean")] = samples.mean().into();
        json[format!("{prefix}_{deviation}")] = samples.deviation().into();
        json[format!("{prefix}_samples")] = samples.count().into();
    };
    spread("bw", "dev", samples);
    spread("iops", "stddev", rates);
    json
}

fn latency(latency: &Latency, percentiles: bool) -> Value {
    let mut json = json!({
        "min": latency.min(),
        "max": latency.max(),
        "mean": latency.mean(),
        "stddev": latency.deviation(),
        "N": latency.count(),
    });
    if percentiles && latency.count() > 0 {
        let of = |percent: f64| (format!("{percent:.6}"), Value::from(latency.percentile(percent)));
        json["percentile"] = PERCENTILES.map(of).into_iter().collect::<Map<_, _>>().into();
    }
    json
}

/// Which ways the bytes went; for engines that have one way only, the name alone.
fn paths(row: &Row) -> Value {
    let mut json = json!({ "engine": row.settings.engine.name(), "clones": row.clones });
    if let Some(paths) = &row.stats.paths {
        json["path"] = row.settings.path.name().into();
        json["importer"] = row.settings.importer.clone().into();
        json["bytes_direct"] = (paths.direct_window + paths.direct_bar).into();
        json["bytes_direct_window"] = paths.direct_window.into();
        json["bytes_direct_bar"] = paths.direct_bar.into();
        json["bytes_fallback"] = paths.fallback.into();
        json["fallback_reasons"] = json!(paths.reasons);
        json["remaps"] = paths.remaps.into();
    }
    json
}

fn milliseconds(time: Duration) -> u64 {
    time.as_millis() as u64
}
