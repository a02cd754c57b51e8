//! `peerfs query`: the decision table of a file. It changes nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use peerfs_client::{DecisionTable, Reason, Segment, Trigger};
use serde_json::{Value, json};

use crate::args::{QueryArgs, RequestArgs};
use crate::explain::{Bar, Explanation, Facts, Look, explain, stage_name};
use crate::{output, ranges};

pub fn run(args: QueryArgs) -> Result<ExitCode> {
    let request = &args.request;
    let table = ranges::query(request).with_context(|| format!("query {}", request.file.display()))?;
    let facts = Facts::of(request, &table);
    if request.json {
        output::print_json(&to_json(request, &table, &facts))?;
    } else {
        let look = Look { width: output::width(), colours: output::colours() };
        output::print(&text(request, &table, &facts, look))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Bytes of each reason, in pipeline order.
pub fn refused(segments: &[Segment]) -> BTreeMap<Reason, u64> {
    let mut refused = BTreeMap::new();
    for segment in segments {
        if let Some(reason) = segment.reason {
            *refused.entry(reason).or_default() += segment.length;
        }
    }
    refused
}

/// Segments as lines of a table. Only a query is told where they lie on the device.
pub fn segment_lines(segments: &[Segment], queried: bool) -> String {
    let titles = ["offset", "length", "path", "reason", "on the device", "also refused for"];
    let mut table = output::table(&titles[..if queried { 6 } else { 4 }], &[0, 1, 4]);
    for segment in segments {
        let mut row = vec![
            segment.file_offset.to_string(),
            segment.length.to_string(),
            segment.path.name().to_owned(),
            segment.reason.map_or("-", Reason::name).to_owned(),
        ];
        if queried {
            row.push(segment.device_offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string()));
            let others: Vec<&str> = segment.refusals.iter().skip(1).map(Reason::name).collect();
            row.push(if others.is_empty() { "-".to_owned() } else { others.join(" ") });
        }
        table.add_row(row);
    }
    output::render(&table)
}

/// Every distinct refusal with what it means and what helps.
pub fn refusal_lines(refused: impl IntoIterator<Item = (Reason, u64)>) -> String {
    refused.into_iter().fold(String::new(), |mut text, (reason, bytes)| {
        let _infallible = writeln!(text, "{} ({}): {}; {}", reason.name(), output::bytes(bytes), reason.text(), reason.remedy());
        text
    })
}

fn fallback_bytes(table: &DecisionTable) -> u64 {
    refused(&table.segments).values().sum()
}

fn text(request: &RequestArgs, table: &DecisionTable, facts: &Facts, look: Look) -> String {
    let mut text = format!(
        "{}: {} directly, {} by fallback, importer {}\n",
        request.file.display(),
        output::bytes(table.direct_bytes()),
        output::bytes(fallback_bytes(table)),
        request.importer
    );
    text.push_str(&Bar::new(table, look.width.saturating_sub(2)).render(look.colours));
    text.push('\n');
    text.push_str(&segment_lines(&table.segments, true));
    let explained = explain(request, table, facts);
    if !explained.is_empty() {
        text.push_str("\nwhy not directly\n");
        explained.iter().for_each(|refusal| text.push_str(&refusal_text(refusal)));
    }
    if let Some(wait) = table.retry_after {
        let _ = writeln!(text, "Busy: worth another try in {} ms", wait.as_millis());
    }
    if table.direct_bytes() > 0 {
        text.push_str(&revocable_by(table, facts));
    }
    text
}

fn refusal_text(refusal: &Explanation) -> String {
    let reason = refusal.reason;
    let mut text = format!("{} ({}): {}\n", reason.name(), output::bytes(refusal.bytes), reason.text());
    let _ = writeln!(text, "  what    {}", refusal.object);
    let _ = writeln!(text, "  rule    SEMANTICS.md, {:?}; peerfs conformance --case {}", refusal.rule.section, refusal.rule.case);
    let _ = writeln!(text, "  remedy  {}", refusal.remedy);
    if let Some(command) = &refusal.command {
        let _ = writeln!(text, "          {command}");
    }
    text
}

fn revocable_by(table: &DecisionTable, facts: &Facts) -> String {
    let mut text = String::from("\nthe direct part could be revoked when");
    if let Some(deadline_ms) = facts.info["deadline_ms"].as_u64() {
        let _ = write!(text, " (the importer has {deadline_ms} ms then)");
    }
    text.push('\n');
    for trigger in table.triggers().iter() {
        let _ = writeln!(text, "  {:<16} {}", trigger.name(), trigger.cause());
    }
    text
}

/// A segment as the commands report it. Only a query is told where it lies on the device.
pub fn segment_json(segment: &Segment, queried: bool) -> Value {
    let mut json = json!({
        "offset": segment.file_offset,
        "length": segment.length,
        "path": segment.path.name(),
        "reason": segment.reason.map(Reason::name),
    });
    if queried {
        json["device_offset"] = segment.device_offset.into();
        json["refusals"] = segment.refusals.iter().map(Reason::name).collect();
        json["triggers"] = segment.triggers.iter().map(Trigger::name).collect();
    }
    json
}

/// Refusals as the commands report them.
pub fn refusals_json(refused: impl IntoIterator<Item = (Reason, u64)>) -> Value {
    let refusals = refused.into_iter().map(|(reason, bytes)| {
        json!({
            "reason": reason.name(),
            "stage": stage_name(reason.stage()),
            "bytes": bytes,
            "text": reason.text(),
            "remedy": reason.remedy(),
        })
    });
    refusals.collect()
}

/// The document that docs/query-json.md describes.
fn to_json(request: &RequestArgs, table: &DecisionTable, facts: &Facts) -> Value {
    let flags = ranges::flags(request);
    let revocable_by = table
        .triggers()
        .iter()
        .map(|trigger| json!({ "trigger": trigger.name(), "text": trigger.text(), "cause": trigger.cause() }));
    json!({
        "file": request.file.display().to_string(),
        "importer": request.importer,
        "flags": flags.iter_names().map(|(name, _)| name).collect::<Vec<_>>(),
        "offset": request.offset,
        "end": table.end,
        "segments": table.segments.iter().map(|segment| segment_json(segment, true)).collect::<Vec<_>>(),
        "refusals": explained_json(request, table, facts),
        "bytes_direct": table.direct_bytes(),
        "bytes_fallback": fallback_bytes(table),
        "retry_after_ms": table.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        "revocable_by": revocable_by.collect::<Vec<_>>(),
    })
}

/// Refusals with all that explains them.
pub fn explained_json(request: &RequestArgs, table: &DecisionTable, facts: &Facts) -> Value {
    let explained = explain(request, table, facts).into_iter().map(|refusal| {
        json!({
            "reason": refusal.reason.name(),
            "stage": stage_name(refusal.reason.stage()),
            "bytes": refusal.bytes,
            "text": refusal.reason.text(),
            "object": refusal.object,
            "rule": { "section": refusal.rule.section, "case": refusal.rule.case },
            "remedy": refusal.remedy,
            "command": refusal.command,
        })
    });
    explained.collect()
}
