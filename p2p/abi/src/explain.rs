//! What people are told of reasons and triggers: the one place for these texts. Each match is exhaustive, so none is forgotten.

use crate::{Reason, Trigger};

/// Where the rule that refuses is stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Section of SEMANTICS.md.
    pub section: &'static str,
    /// The case of the conformance suite that tries it.
    pub case: &'static str,
}

impl Reason {
    /// What is the case, for people.
    pub fn text(self) -> &'static str {
        match self {
            Reason::NotRegularFile => "only regular files have blocks to map",
            Reason::Hole => "no blocks are allocated here",
            Reason::Unwritten => "the blocks are preallocated but were never written",
            Reason::BeyondEof => "the range lies beyond the end of the file",
            Reason::Misaligned => "direct mappings start and end on 4096-byte boundaries (or at the end of the file)",
            Reason::PageCacheDirty => "dirty pages of the range are in the page cache and could not be written back",
            Reason::PageCached => "pages of the range are in the page cache and the policy is respect-cache",
            Reason::CpuWriter => "a cached handle of the file is open for writing and may write behind the importer's back",
            Reason::SharedExtent => "the blocks are shared with another file, which must not be written in place, nor pinned",
            Reason::Policy => "direct mapping is switched off for this file or mount",
            Reason::ReadOnly => "the file handle or the mount is read-only",
            Reason::Busy => "the range is being revoked, or pinned, or was used by the CPU each time the map was tried",
            Reason::NoAperture => "the storage device has no aperture",
            Reason::ApertureFull => "no room is left in the aperture",
            Reason::NoGrantObject => "the kernel has no object that could hand this memory to a process and take it back",
            Reason::WriteForbidden => "the aperture or the importer does not allow peer writes",
            Reason::AtomicUnsupported => "not every part of the path can do atomic operations",
            Reason::PinQuota => "the quota for pinned mappings is used up",
            Reason::DeviceResetting => "the storage device is being reset",
            Reason::MediaError => "the storage device cannot read or write these blocks",
            Reason::NoPeerPath => "no peer-to-peer path leads from the importer to the storage device",
            Reason::DmaMaskExceeded => "the importer cannot address this memory",
            Reason::IommuRejected => "the IOMMU refused the mapping",
            Reason::NotifierRequired => "the importer cannot honour revocation, so it may hold only pinned mappings",
            Reason::ImporterQuota => "the importer holds as many mappings as it may",
            Reason::StaleContext => "the context belongs to another address space, or has ended",
        }
    }

    /// What a person can do about it, in one line.
    pub fn remedy(self) -> &'static str {
        match self {
            Reason::NotRegularFile => "ask for a regular file",
            Reason::Hole => "write the range first (blocks that are only allocated are Unwritten)",
            Reason::Unwritten => "write the range first; zeros will do",
            Reason::BeyondEof => "extend the file first",
            Reason::Misaligned => "align the range to 4096 bytes",
            Reason::PageCacheDirty => "call fsync on the file, or close its shared mappings",
            Reason::PageCached => "drop them (POSIX_FADV_DONTNEED) or set the policy to prefer",
            Reason::CpuWriter => "close the other handles of the file",
            Reason::SharedExtent => {
                "copy the range first (rewrite it), or map read-only, without PIN, while the other file is not mapped"
            }
            Reason::Policy => "setfattr -n user.peerfs.direct -v prefer FILE, or mount with -o direct=prefer",
            Reason::ReadOnly => "open the file for writing on a writable mount",
            Reason::Busy => "try again later; keep CPU and device access to the range apart; `peerfs mappings` shows pins",
            Reason::NoAperture => "mount with --cmb SIZE (software CMB), or use a device with CMB or PMR",
            Reason::ApertureFull => "unmap other ranges, or mount with a larger --cmb and enough locked memory (ulimit -l)",
            Reason::NoGrantObject => {
                "use an importer inside the server, or the software CMB (mount with --cmb SIZE); in a container see peerfs info, limits"
            }
            Reason::WriteForbidden => "map read-only",
            Reason::AtomicUnsupported => "map without ATOMIC",
            Reason::PinQuota => "end other pins, or map without PIN",
            Reason::DeviceResetting => "try again later",
            Reason::MediaError => "see the server's log; restore the file from a copy",
            Reason::NoPeerPath => "see peerfs topology for the hop that refuses, and what to do about it",
            Reason::DmaMaskExceeded => "use an importer with a wider DMA mask",
            Reason::IommuRejected => "see the kernel log for the IOMMU's reason",
            Reason::NotifierRequired => "map with PIN",
            Reason::ImporterQuota => "unmap other ranges",
            Reason::StaleContext => "make a new context after exec or fork",
        }
    }

    /// The rule that it follows from.
    pub fn rule(self) -> Rule {
        let (section, case) = match self {
            Reason::NotRegularFile => ("Mapping", "reason-not-regular-file"),
            Reason::Hole => ("Mapping", "reason-hole"),
            Reason::Unwritten => ("Mapping", "reason-unwritten"),
            Reason::BeyondEof => ("Mapping", "reason-beyond-eof"),
            Reason::Misaligned => ("Mapping", "reason-misaligned"),
            Reason::PageCacheDirty => ("Coherence with the CPU", "reason-page-cache-dirty"),
            Reason::PageCached => ("Coherence with the CPU", "reason-page-cached"),
            Reason::CpuWriter => ("Pins", "reason-cpu-writer"),
            Reason::SharedExtent => ("Mapping", "reason-shared-extent"),
            Reason::Policy => ("Coherence with the CPU", "reason-policy"),
            Reason::ReadOnly => ("Mapping", "reason-read-only-handle"),
            Reason::Busy => ("Revocation", "reason-busy-closed"),
            Reason::NoAperture => ("Mapping", "reason-no-aperture"),
            Reason::ApertureFull => ("Mapping", "reason-aperture-full"),
            Reason::NoGrantObject => ("Where no process can be given the memory", "reason-no-grant-object"),
            Reason::WriteForbidden => ("Mapping", "reason-write-forbidden"),
            Reason::AtomicUnsupported => ("Mapping", "reason-atomic-unsupported"),
            Reason::PinQuota => ("Pins", "reason-pin-quota"),
            Reason::DeviceResetting => ("Mapping", "reason-device-resetting"),
            Reason::MediaError => ("Mapping", "reason-media-error"),
            Reason::NoPeerPath => ("Mapping", "reason-no-peer-path"),
            Reason::DmaMaskExceeded => ("Mapping", "reason-dma-mask-exceeded"),
            Reason::IommuRejected => ("Mapping", "reason-iommu-rejected"),
            Reason::NotifierRequired => ("Mapping", "reason-notifier-required"),
            Reason::ImporterQuota => ("Mapping", "reason-importer-quota"),
            Reason::StaleContext => ("Contexts", "reason-stale-context"),
        };
        Rule { section, case }
    }
}

impl Trigger {
    /// What happened, for people.
    pub fn text(self) -> &'static str {
        match self {
            Trigger::Truncate => "the file was shortened",
            Trigger::Punch => "blocks of the range were freed or zeroed",
            Trigger::Unlink => "the last link and handle of the file went away",
            Trigger::CpuAccess => "a program used the range through the page cache",
            Trigger::AperturePressure => "another request needed the aperture space",
            Trigger::Relocation => "the blocks of the range changed place",
            Trigger::Administrator => "an administrator revoked it",
            Trigger::ClientGone => "the client that held it ended",
            Trigger::Unmount => "the filesystem is being unmounted",
            Trigger::DeviceEvent => "the storage device was reset, removed or reported a media error, or the way to it changed",
            Trigger::PolicyChange => "the policy of the file or mount changed",
            Trigger::Unmap => "the client gave it back",
            Trigger::Reflink => "the blocks of the range became shared with another file",
        }
    }

    /// What would do it, for people.
    pub fn cause(self) -> &'static str {
        match self {
            Trigger::Truncate => "a program shortens the file (truncate(2), open(2) with O_TRUNC)",
            Trigger::Punch => "a program frees or zeroes blocks of the range (fallocate(2) with PUNCH_HOLE or ZERO_RANGE)",
            Trigger::Unlink => "the last name of the file is removed and its last handle closed",
            Trigger::CpuAccess => {
                "a program reads or writes the range through the page cache (read(2), write(2), mmap(2)) where the two cannot be kept alike"
            }
            Trigger::AperturePressure => "another map needs the room in the aperture; what was used longest ago goes first",
            Trigger::Relocation => {
                "the blocks of the range change place (more of the same chunk is mapped, or a shared block is written)"
            }
            Trigger::Administrator => {
                "somebody who may write the file, or the owner of the mount, runs `peerfs revoke` (or presses R in `peerfs top`)"
            }
            Trigger::ClientGone => "the process that holds it ends",
            Trigger::Unmount => "the filesystem is unmounted",
            Trigger::DeviceEvent => "the storage device is reset, removed or reports a media error, or the way to it changes",
            Trigger::PolicyChange => "the policy of the file changes (setfattr -n user.peerfs.direct)",
            Trigger::Unmap => "the client gives it back",
            Trigger::Reflink => "the range is cloned (`peerfs reflink`): its blocks are shared from then on",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEMANTICS: &str = include_str!("../../../SEMANTICS.md");

    #[test]
    fn no_reason_is_unexplained() {
        for &reason in Reason::ALL {
            for text in [reason.text(), reason.remedy()] {
                assert!(text.len() > 5 && !text.contains('\n') && !text.ends_with('.'), "{reason}: {text}");
            }
        }
    }

    #[test]
    fn every_rule_is_stated_where_it_says_and_is_the_reasons_own() {
        for &reason in Reason::ALL {
            let rule = reason.rule();
            assert!(SEMANTICS.contains(&format!("\n## {}\n", rule.section)), "{reason}: no section {}", rule.section);
            let mut rows = SEMANTICS.lines().filter(|line| line.starts_with(&format!("| {reason} |")));
            let row = rows.next().unwrap_or_else(|| panic!("{reason} has no row"));
            assert!(row.contains(&format!("[`{}`]", rule.case)), "{reason}: {row}");
        }
    }

    #[test]
    fn every_trigger_has_a_cause() {
        for &trigger in Trigger::ALL {
            assert!(trigger.cause().len() > 5 && trigger.cause() != trigger.text(), "{trigger}");
        }
    }
}
