//! What to do about a refusal, and the command for it.

use peerfs_client::{DecisionTable, Reason, Segment};

use super::Facts;
use super::subject::refusal_of;
use crate::args::RequestArgs;

const BLOCK_BYTES: u64 = 4096;
/// What a mount without an aperture is offered, bytes.
const CMB_BYTES: u64 = 256 << 20;

/// The remedy in one line: the topology's own for a hop, else the reason's.
pub fn remedy(reason: Reason, facts: &Facts) -> String {
    let of_hop = refusal_of(reason, facts).and_then(|refusal| refusal["remedy"].as_str());
    let of_mount = of_limit(reason, facts);
    let remedy = of_hop.filter(|remedy| !remedy.is_empty()).or(of_mount.as_deref()).unwrap_or_else(|| reason.remedy());
    match mount_option(reason, facts) {
        Some(_) if facts.ends_with_its_mount() => {
            format!("{remedy}; an unmount ends a mem: volume: copy what is to stay, and give the mount's other options again")
        }
        Some(_) => format!("{remedy}; give the mount's other options again"),
        None => remedy.to_owned(),
    }
}

/// Where the mount has a smaller aperture than was asked for, a larger `--cmb` helps nobody.
fn of_limit(reason: Reason, facts: &Facts) -> Option<String> {
    if reason != Reason::ApertureFull {
        return None;
    }
    let limit = facts.info["limits"].as_array()?.iter().find(|limit| limit["name"] == "locked-memory")?;
    let said = |key: &str| limit[key].as_str().unwrap_or("?").to_owned();
    Some(format!("unmap other ranges; {}: {}", said("why"), said("remedy")))
}

/// The command that does it for this file, or shows what has to be ended.
pub fn command(reason: Reason, request: &RequestArgs, table: &DecisionTable, facts: &Facts) -> Option<String> {
    let file = quoted(&request.file.display().to_string());
    let mount = quoted(facts.mountpoint());
    if let Some(option) = mount_option(reason, facts) {
        return (!facts.ends_with_its_mount()).then(|| mount_again(facts, &option));
    }
    let command = match reason {
        Reason::Hole | Reason::Unwritten => zeros(&file, first(reason, table)?),
        Reason::Misaligned => query(&aligned(request), &file),
        Reason::PageCacheDirty => format!("sync {file}"),
        Reason::PageCached => format!("setfattr -n user.peerfs.direct -v prefer {file}"),
        Reason::Policy => format!("setfattr -n user.peerfs.direct -v prefer {file}"),
        Reason::CpuWriter => format!("fuser -v {file}"),
        Reason::SharedExtent => format!("cp -n --reflink=never {file} {}", quoted(&format!("{}.own", request.file.display()))),
        Reason::ReadOnly => format!("chmod u+w {file}"),
        Reason::ApertureFull | Reason::Busy | Reason::PinQuota | Reason::ImporterQuota => format!("peerfs mappings {mount}"),
        Reason::NoGrantObject => query(&RequestArgs { importer: "server".to_owned(), ..request.clone() }, &file),
        Reason::WriteForbidden => query(&RequestArgs { write: false, ..request.clone() }, &file),
        Reason::AtomicUnsupported => query(&RequestArgs { atomic: false, ..request.clone() }, &file),
        Reason::NoPeerPath | Reason::DmaMaskExceeded => format!("peerfs topology {mount}"),
        Reason::IommuRejected => "dmesg --facility kern | grep -i -e iommu -e dmar -e amd-vi".to_owned(),
        Reason::NotifierRequired => query(&RequestArgs { pin: true, ..request.clone() }, &file),
        Reason::BeyondEof if facts.size > request.offset => {
            query(&RequestArgs { length: Some(facts.size - request.offset), ..request.clone() }, &file)
        }
        Reason::NoAperture
        | Reason::BeyondEof
        | Reason::NotRegularFile
        | Reason::DeviceResetting
        | Reason::MediaError
        | Reason::StaleContext => return None,
    };
    Some(command)
}

fn first(reason: Reason, table: &DecisionTable) -> Option<&Segment> {
    table.segments.iter().find(|segment| segment.refusals.contains(reason))
}

/// Writes zeros over a stretch that reads as zeros.
fn zeros(file: &str, segment: &Segment) -> String {
    let first = segment.file_offset / BLOCK_BYTES;
    // The last block of a file may be a part of one; more than it has is not written.
    let bytes = segment.end() - first * BLOCK_BYTES;
    match bytes % BLOCK_BYTES {
        0 => format!("dd if=/dev/zero of={file} bs=4096 seek={first} count={} conv=notrunc", bytes / BLOCK_BYTES),
        _ => format!(
            "dd if=/dev/zero of={file} bs=4096 oflag=seek_bytes iflag=count_bytes seek={} count={bytes} conv=notrunc",
            first * BLOCK_BYTES
        ),
    }
}

/// The smallest request of whole blocks that has this one in it.
fn aligned(request: &RequestArgs) -> RequestArgs {
    let offset = request.offset - request.offset % BLOCK_BYTES;
    let end = request.length.map(|length| request.offset.saturating_add(length));
    let length = end.and_then(|end| Some(end.checked_next_multiple_of(BLOCK_BYTES)? - offset));
    RequestArgs { offset, length, ..request.clone() }
}

/// The command line of a query.
fn query(request: &RequestArgs, file: &str) -> String {
    let mut line = format!("peerfs query {file}");
    if request.offset > 0 {
        line.push_str(&format!(" --offset {}", request.offset));
    }
    if let Some(length) = request.length {
        line.push_str(&format!(" --length {length}"));
    }
    if request.importer != "cpu" {
        line.push_str(&format!(" --importer {}", quoted(&request.importer)));
    }
    for (flag, given) in [("--write", request.write), ("--pin", request.pin), ("--atomic", request.atomic)] {
        if given {
            line.push(' ');
            line.push_str(flag);
        }
    }
    line
}

/// What has to be different about the mount, where only another mount helps; empty: an option has to go.
fn mount_option(reason: Reason, facts: &Facts) -> Option<String> {
    match reason {
        Reason::Policy if facts.info["direct"] == "never" => Some("-o direct=prefer".to_owned()),
        Reason::ReadOnly if facts.info["read_only"] == true => Some(String::new()),
        Reason::NoAperture => Some(format!("--cmb {}", size(CMB_BYTES))),
        _ => None,
    }
}

fn mount_again(facts: &Facts, option: &str) -> String {
    let (mount, device) = (quoted(facts.mountpoint()), quoted(facts.device()));
    format!("peerfs umount {mount} && peerfs mount {device} {mount} {option}").trim_end().to_owned()
}

/// A size as `--cmb` takes it.
fn size(bytes: u64) -> String {
    format!("{}M", bytes >> 20)
}

/// As a shell reads it as one word.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:,@+=%".contains(&byte);
    match !word.is_empty() && word.bytes().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
