use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use peerfs_client::{DecisionTable, Path, Reason, ReasonSet, Segment, TriggerSet};
use serde_json::json;

use super::*;

fn request() -> RequestArgs {
    RequestArgs {
        file: PathBuf::from("/mnt/peer/it's mine"),
        offset: 100,
        length: Some(8000),
        importer: "readonly@0000:01:00.0".to_owned(),
        write: true,
        pin: false,
        atomic: true,
        json: false,
    }
}

fn refused(reason: Reason) -> DecisionTable {
    let segment = |file_offset| Segment {
        file_offset,
        length: 4096,
        path: Path::Fallback,
        reason: Some(reason),
        device_offset: None,
        pin: None,
        refusals: ReasonSet::EMPTY.with(reason),
        triggers: TriggerSet::EMPTY,
    };
    DecisionTable { segments: vec![segment(4096), segment(12288)], end: 16384, retry_after: None }
}

fn facts() -> Facts {
    Facts {
        info: json!({
            "mountpoint": "/mnt/peer",
            "device": { "name": "image:/srv/vol.img", "backend": "image" },
            "direct": "prefer",
            "read_only": false,
            "aperture": { "name": "software CMB", "used_bytes": 4096, "capacity_bytes": 8192, "windows": 1 },
            "pinned_bytes": 4096,
            "pin_quota_bytes": 8192,
            "pin_quota_user_bytes": 8192,
        }),
        pair: json!({ "refusals": [{ "reason": "NoPeerPath", "hop": "0000:00:01.0", "why": "it redirects", "remedy": "turn ACS off" }] }),
        inode: 7,
        size: 20_000,
        kind: "a directory",
        mode: 0o444,
        owner: 12,
        ..Facts::default()
    }
}

fn explained(reason: Reason, facts: &Facts) -> Explanation {
    explain(&request(), &refused(reason), facts).remove(0)
}

#[test]
fn every_reason_is_explained_also_when_nothing_else_is_known() {
    for facts in [facts(), Facts::default()] {
        let mut objects = BTreeSet::new();
        for &reason in Reason::ALL {
            let said = explained(reason, &facts);
            assert_eq!((said.reason, said.bytes, said.rule), (reason, 8192, reason.rule()));
            for text in [&said.object, &said.remedy] {
                assert!(text.len() > 3 && !text.contains('\n'), "{reason}: {text}");
            }
            assert!(said.command.is_none_or(|command| !command.contains('\n') && command.contains(' ')), "{reason}");
            objects.insert(said.object);
        }
        assert!(objects.len() > 15, "each names its own: {objects:#?}");
    }
}

#[test]
fn commands_are_for_this_file() {
    let command = |reason| explained(reason, &facts()).command.expect("a command");
    let file = r"'/mnt/peer/it'\''s mine'";
    assert_eq!(command(Reason::Hole), format!("dd if=/dev/zero of={file} bs=4096 seek=1 count=1 conv=notrunc"));
    assert_eq!(
        command(Reason::Misaligned),
        format!("peerfs query {file} --length 8192 --importer readonly@0000:01:00.0 --write --atomic")
    );
    assert!(command(Reason::WriteForbidden).ends_with("readonly@0000:01:00.0 --atomic"));
    assert_eq!(command(Reason::NoAperture), "peerfs umount /mnt/peer && peerfs mount image:/srv/vol.img /mnt/peer --cmb 256M");
    assert_eq!(command(Reason::CpuWriter), format!("fuser -v {file}"));
    assert!(
        command(Reason::SharedExtent).starts_with(&format!("cp -n --reflink=never {file} ")),
        "a copy of that name is left alone"
    );
}

#[test]
fn a_volume_in_memory_is_not_offered_an_unmount() {
    let mut facts = facts();
    facts.info["direct"] = "never".into();
    facts.info["read_only"] = true.into();
    for reason in [Reason::Policy, Reason::ReadOnly, Reason::NoAperture] {
        facts.info["device"] = json!({ "name": "image:/srv/vol.img", "backend": "image" });
        let said = explained(reason, &facts);
        assert!(said.command.is_some_and(|command| command.starts_with("peerfs umount ")), "{reason}");
        assert!(said.remedy.contains("other options again"), "{reason}: {}", said.remedy);
        facts.info["device"] = json!({ "name": "mem:64M", "backend": "mem" });
        let said = explained(reason, &facts);
        assert_eq!(said.command, None, "{reason}: it would erase the volume");
        assert!(said.remedy.contains("an unmount ends"), "{reason}: {}", said.remedy);
    }
}

#[test]
fn where_too_little_memory_may_be_locked_no_larger_cmb_is_recommended() {
    let mut facts = facts();
    assert!(explained(Reason::ApertureFull, &facts).remedy.contains("larger --cmb"));
    facts.info["limits"] = json!([{ "name": "locked-memory", "what": "w", "why": "so little", "remedy": "raise it" }]);
    assert_eq!(explained(Reason::ApertureFull, &facts).remedy, "unmap other ranges; so little: raise it");
    assert_eq!(explained(Reason::Hole, &facts).remedy, Reason::Hole.remedy());
}

#[test]
fn a_file_that_ends_inside_a_block_is_not_made_longer() {
    let mut table = refused(Reason::Hole);
    table.segments[0].length = 100;
    let said = explain(&request(), &table, &facts()).remove(0);
    assert!(said.command.expect("a command").contains("iflag=count_bytes seek=4096 count=100 "));
}

#[test]
fn hops_quotas_and_processes_are_named() {
    let mut facts = facts();
    let no_path = explained(Reason::NoPeerPath, &facts);
    assert_eq!((no_path.object.as_str(), no_path.remedy.as_str()), ("0000:00:01.0: it redirects", "turn ACS off"));
    assert!(explained(Reason::PinQuota, &facts).object.starts_with("4.0 KiB of 8.0 KiB pinned"));
    assert!(explained(Reason::ReadOnly, &facts).object.contains("mode 0444, of user 12"));
    assert_eq!(explained(Reason::WriteForbidden, &facts).object, "importer readonly");
    let by_cpu = RequestArgs { importer: "cpu".to_owned(), ..request() };
    assert_eq!(explain(&by_cpu, &refused(Reason::WriteForbidden), &facts)[0].object, "the aperture software CMB");
    facts.writers = vec![openers::Opener { pid: 9, name: "python3".to_owned() }];
    assert!(explained(Reason::CpuWriter, &facts).object.starts_with("process 9 (python3) has "));
    facts.ledger = json!({ "pins": [{ "pin": 3, "object": 7, "pid": 44 }, { "pin": 4, "object": 8, "pid": 45 }] });
    assert_eq!(explained(Reason::Busy, &facts).object, "bytes 4096 to 8192, 12288 to 16384: pin 3 of process 44");
    let contested = DecisionTable { retry_after: Some(Duration::from_millis(30)), ..refused(Reason::Busy) };
    assert!(explain(&request(), &contested, &facts)[0].object.ends_with("another try in 30 ms"));
}

#[test]
fn the_policy_of_the_mount_is_the_last_word() {
    let mut facts = Facts { policy: Some("never".to_owned()), ..facts() };
    assert!(explained(Reason::Policy, &facts).object.starts_with("user.peerfs.direct=never of "));
    facts.info["direct"] = "never".into();
    let said = explained(Reason::Policy, &facts);
    assert_eq!(said.object, "-o direct=never of /mnt/peer");
    assert!(said.command.is_some_and(|command| command.ends_with("-o direct=prefer")));
}
