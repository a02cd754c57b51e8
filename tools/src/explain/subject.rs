//! What a refusal is about: the stretch, device, hop, process, quota or value that refuses.

use peerfs_abi::names::importer_flags;
use peerfs_client::{DecisionTable, ImporterFlags, Reason};
use serde_json::Value;

use super::Facts;
use crate::args::RequestArgs;
use crate::output;

/// Stretches and processes that are named one by one.
const NAMED_MAX: usize = 3;

/// The object of a refusal, in one line.
pub fn object(reason: Reason, request: &RequestArgs, table: &DecisionTable, facts: &Facts) -> String {
    let file = request.file.display();
    match reason {
        Reason::NotRegularFile => format!("{file} is {}", facts.kind),
        Reason::Hole | Reason::Unwritten | Reason::PageCacheDirty => format!("{} of {file}", stretches(reason, table)),
        Reason::BeyondEof => format!("{file} ends at byte {}", facts.size),
        Reason::Misaligned => format!("{} of {file}: parts of 4096-byte blocks", stretches(reason, table)),
        Reason::PageCached | Reason::Policy => policy(request, facts),
        Reason::CpuWriter => writers(request, facts),
        Reason::SharedExtent => format!("{} of {file}: a clone has the same blocks", stretches(reason, table)),
        Reason::ReadOnly => read_only(request, facts),
        Reason::Busy => busy(reason, table, facts),
        Reason::NoAperture => format!("{} has none", facts.device()),
        Reason::ApertureFull => aperture(facts),
        Reason::NoGrantObject => format!("the aperture {}", text(&facts.info["aperture"]["name"])),
        Reason::WriteForbidden => unable(request, facts, ImporterFlags::WRITE),
        Reason::AtomicUnsupported => unable(request, facts, ImporterFlags::ATOMIC),
        Reason::PinQuota => pin_quota(facts),
        Reason::DeviceResetting => facts.device().to_owned(),
        Reason::MediaError => format!("{} of {file}, on {}", stretches(reason, table), facts.device()),
        Reason::NoPeerPath | Reason::DmaMaskExceeded | Reason::IommuRejected => hop(reason, request, facts),
        Reason::NotifierRequired => format!("importer {}", request.importer),
        Reason::ImporterQuota => format!("importer {}: -o importer_grants=N of the mount", request.importer),
        Reason::StaleContext => format!("the context of importer {}", request.importer),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "?".to_owned(), output::bytes)
}

/// Where in the file, `bytes 0 to 4096, 8192 to 12288 and 3 more`.
fn stretches(reason: Reason, table: &DecisionTable) -> String {
    let refused = table.segments.iter().filter(|segment| segment.refusals.contains(reason));
    let all: Vec<String> = refused.map(|segment| format!("{} to {}", segment.file_offset, segment.end())).collect();
    format!("bytes {}", some(&all))
}

/// The first few, and how many more there are.
fn some(all: &[String]) -> String {
    let named = all[..all.len().min(NAMED_MAX)].join(", ");
    match all.len() - all.len().min(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn policy(request: &RequestArgs, facts: &Facts) -> String {
    let mount = text(&facts.info["direct"]);
    match &facts.policy {
        // The mount's `never` is the last word.
        Some(policy) if mount != "never" => format!("user.peerfs.direct={policy} of {}", request.file.display()),
        _ => format!("-o direct={mount} of {}", facts.mountpoint()),
    }
}

fn writers(request: &RequestArgs, facts: &Facts) -> String {
    let file = request.file.display();
    let all: Vec<String> = facts.writers.iter().map(|opener| format!("{} ({})", opener.pid, opener.name)).collect();
    match all.len() {
        0 => format!("a process that you may not see has {file} open, or it is mapped"),
        1 => format!("process {} has {file} open for writing", all[0]),
        _ => format!("processes {} have {file} open for writing", some(&all)),
    }
}

fn read_only(request: &RequestArgs, facts: &Facts) -> String {
    if facts.info["read_only"] == true {
        return format!("the mount {}", facts.mountpoint());
    }
    format!("{}: mode {:04o}, of user {}", request.file.display(), facts.mode, facts.owner)
}

fn busy(reason: Reason, table: &DecisionTable, facts: &Facts) -> String {
    let pins = list(&facts.ledger, "pins").iter().filter(|pin| pin["object"] == facts.inode);
    let pins: Vec<String> = pins.map(|pin| format!("pin {} of process {}", pin["pin"], pin["pid"])).collect();
    let contested = table.retry_after.map(|wait| format!("contested, worth another try in {} ms", wait.as_millis()));
    let why = match (contested, pins.is_empty()) {
        (Some(contested), _) => contested,
        (None, false) => some(&pins),
        (None, true) => "being revoked".to_owned(),
    };
    format!("{}: {why}", stretches(reason, table))
}

fn aperture(facts: &Facts) -> String {
    let aperture = &facts.info["aperture"];
    format!(
        "{}: {} of {} used in {} windows, {} of it by pins",
        text(&aperture["name"]),
        bytes(&aperture["used_bytes"]),
        bytes(&aperture["capacity_bytes"]),
        aperture["windows"],
        bytes(&facts.info["pinned_bytes"])
    )
}

/// The importer, where it is one whose abilities are known and lacks this one; else the aperture.
fn unable(request: &RequestArgs, facts: &Facts, wanted: ImporterFlags) -> String {
    let name = request.importer.split('@').next().unwrap_or_default();
    match importer_flags(name) {
        Some(flags) if !flags.contains(wanted) => format!("importer {name}"),
        _ => format!("the aperture {}", text(&facts.info["aperture"]["name"])),
    }
}

fn pin_quota(facts: &Facts) -> String {
    let quota = |name: &str| bytes(&facts.info[name]);
    format!(
        "{} of {} pinned on the mount, {} for each user (-o pin_quota=, pin_quota_user=)",
        quota("pinned_bytes"),
        quota("pin_quota_bytes"),
        quota("pin_quota_user_bytes")
    )
}

/// The hop of the topology that refuses.
fn hop(reason: Reason, request: &RequestArgs, facts: &Facts) -> String {
    match refusal_of(reason, facts) {
        Some(refusal) => format!("{}: {}", text(&refusal["hop"]), text(&refusal["why"])),
        None => format!("importer {}, storage {}: in no PCI tree that leads to it", request.importer, facts.device()),
    }
}

/// What the topology says of this reason, for the importer's way to the storage device.
pub fn refusal_of(reason: Reason, facts: &Facts) -> Option<&Value> {
    list(&facts.pair, "refusals").iter().find(|refusal| refusal["reason"] == reason.name())
}

fn list<'a>(record: &'a Value, name: &str) -> &'a [Value] {
    record[name].as_array().map_or(&[], Vec::as_slice)
}
