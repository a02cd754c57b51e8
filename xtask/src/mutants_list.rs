//! The mutants.

/// One rule, broken.
pub struct Mutant {
    /// For people.
    pub name: &'static str,
    /// The rule that no longer holds.
    pub rule: &'static str,
    /// Where, from the root of the tree.
    pub file: &'static str,
    /// Text that occurs exactly once in the file ...
    pub find: &'static str,
    /// ... and what it becomes.
    pub replace: &'static str,
    /// Backend of the conformance case that must fail, or [`DRIVER`].
    pub backend: &'static str,
    /// Name of the case, or of the test.
    pub case: &'static str,
}

/// In place of a backend: what must fail is a test of the NVMe driver, `nvme_faults`.
pub const DRIVER: &str = "driver";

/// Every mutant.
pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "cut-does-nothing",
        rule: "a cut ends every access at once",
        file: "blockdev/src/cmb/window.rs",
        find: "self.core.with_memory(Memory::cut)",
        replace: "self.core.with_memory(|_| Ok::<(), std::io::Error>(()))",
        backend: "image",
        case: "revoke-deadline-enforced",
    },
    Mutant {
        name: "mapping-revoked-by-anyone",
        rule: "one mapping is revoked by its number by the owner of the mount, and by nobody else",
        file: "fs/src/control/ioctl.rs",
        find: "        self.control.owner_only(self.caller)?;\n        if revoke.offset != 0",
        replace: "        if revoke.offset != 0",
        backend: "image",
        case: "trigger-revoke-mapping",
    },
    Mutant {
        name: "cut-without-waiting",
        rule: "an importer has until the deadline to acknowledge",
        file: "p2p/src/engine/revoke.rs",
        find: "while left > 0 && self.clock",
        replace: "while left > usize::MAX / 2 && self.clock",
        backend: "image",
        case: "revoke-order",
    },
    Mutant {
        name: "cut-after-the-deadline",
        rule: "who has not acknowledged is cut at the deadline",
        file: "p2p/src/engine/revoke.rs",
        find: "let deadline = start + self.config.deadline;",
        replace: "let deadline = start + 3 * self.config.deadline;",
        backend: "image",
        case: "revoke-deadline-enforced",
    },
    Mutant {
        name: "importer-never-told",
        rule: "an importer is told before it is cut",
        file: "p2p/src/engine/revoke.rs",
        find: "session.push_event(event, self.config.events_per_session)",
        replace: "session.push_event(event, 0)",
        backend: "image",
        case: "revoke-order",
    },
    Mutant {
        name: "sequence-not-bumped",
        rule: "the sequence number is stale before the importer is told",
        file: "p2p/src/engine/revoke.rs",
        find: "            session.page.bump(data.slot as usize);\n",
        replace: "",
        backend: "image",
        case: "revoke-sequence-first",
    },
    Mutant {
        name: "written-back-before-the-cut",
        rule: "write-back carries the last store before the cut",
        file: "blockdev/src/cmb/window.rs",
        find: "        if let Some(Err(error)) = self.core.with_memory(Memory::cut)",
        replace: "        let _ = self.flush();\n        self.core.must_copy.store(false, Ordering::Release);\n        if let Some(Err(error)) = self.core.with_memory(Memory::cut)",
        backend: "image",
        case: "revoke-last-store",
    },
    Mutant {
        name: "foreign-acknowledgement",
        rule: "only the holder acknowledges",
        file: "p2p/src/engine/revoke.rs",
        find: ".filter(|g| g.session().id == session)",
        replace: ".filter(|_| session.0 > 0)",
        backend: "image",
        case: "importer-foreign-acknowledgement",
    },
    Mutant {
        name: "pages-not-dropped-at-map",
        rule: "no page is cached while a device may write (I1)",
        file: "fs/src/mapping.rs",
        find: "        let lost = self.core.lost_write_backs(object.0);\n",
        replace: "        if probe.is_some() {\n            return Ok(());\n        }\n        let lost = self.core.lost_write_backs(object.0);\n",
        backend: "image",
        case: "pages-dropped-at-map",
    },
    Mutant {
        name: "cached-read-beside-a-writing-device",
        rule: "a cached read revokes a write mapping (I1)",
        file: "p2p/src/engine/coherence.rs",
        find: "ChunkState::Active(active) | ChunkState::Revoking(active) if shares_reads && !active.writable => {}",
        replace: "ChunkState::Active(_) | ChunkState::Revoking(_) if shares_reads => {}",
        backend: "image",
        case: "cached-read-beside-write",
    },
    Mutant {
        name: "writers-not-counted",
        rule: "beside a writable cached handle a cached read revokes (I2)",
        file: "p2p/src/engine/coherence.rs",
        find: "access == CpuAccess::CachedRead { cpu_writers: 0 }",
        replace: "access != CpuAccess::CachedWrite",
        backend: "image",
        case: "cached-read-beside-read-and-writer",
    },
    Mutant {
        name: "buffered-write-unheard",
        rule: "a buffered write revokes first",
        file: "p2p/src/engine/coherence.rs",
        find: "        let shares_reads = access",
        replace: "        if access == CpuAccess::CachedWrite {\n            return;\n        }\n        let shares_reads = access",
        backend: "image",
        case: "cached-write-beside-write",
    },
    Mutant {
        name: "writable-open-keeps-pages",
        rule: "a writable open drops the pages of read mappings (I2)",
        file: "p2p/src/engine/coherence.rs",
        find: "if !active.writable => readable.push(active.range)",
        replace: "if !active.writable => readable.push(Range::new(active.range.end, 0))",
        backend: "image",
        case: "writable-open-beside-read",
    },
    Mutant {
        name: "truncate-does-not-revoke",
        rule: "blocks are freed only after their mappings ended",
        file: "fs/src/mapping.rs",
        find: "Some(engine) => Box::new(engine.close_range(ObjectId(ino), range, trigger))",
        replace: "Some(_) if trigger == Trigger::Truncate => Box::new(()),\n            Some(engine) => Box::new(engine.close_range(ObjectId(ino), range, trigger))",
        backend: "image",
        case: "trigger-truncate",
    },
    Mutant {
        name: "exec-keeps-the-context",
        rule: "a context is valid for one address space",
        file: "p2p/src/engine/home.rs",
        find: "auxiliary_vector(tgid).is_ok_and(|now| now == self.auxiliary_vector)",
        replace: "auxiliary_vector(tgid).is_ok()",
        backend: "image",
        case: "context-exec-with-sibling",
    },
    Mutant {
        name: "anybody-may-use-a-context",
        rule: "a context is valid for one address space",
        file: "p2p/src/engine/home.rs",
        find: "peerfs_sys::same_address_space(self.tgid, tgid).unwrap_or(false)",
        replace: "peerfs_sys::same_address_space(self.tgid, tgid).is_ok()",
        backend: "image",
        case: "context-fork",
    },
    Mutant {
        name: "thrashing-goes-on",
        rule: "a contested range answers Busy for a while",
        file: "p2p/src/engine/thrash.rs",
        find: "        self.left(recent.get(&(object, chunk))?, now)",
        replace: "        self.left(recent.get(&(object, chunk))?, now).filter(|_| false)",
        backend: "image",
        case: "reason-busy-thrashing",
    },
    Mutant {
        name: "guardian-forgets",
        rule: "the server's death revokes",
        file: "p2p/src/guardian/keeper.rs",
        find: "window.set_len(0).is_err()",
        replace: "window.set_len(4096).is_err() && false",
        backend: "image",
        case: "death-revokes",
    },
    Mutant {
        name: "fsync-forgets-windows",
        rule: "fsync makes what a device stored durable",
        file: "fs/src/mapping.rs",
        find: "|engine| engine.flush_object(ObjectId(ino))",
        replace: "|_| Ok(())",
        backend: "image",
        case: "effects-fsync",
    },
    Mutant {
        name: "pinned-blocks-reused",
        rule: "blocks of a pin are not reused before it ends",
        file: "fs/src/mapping.rs",
        find: "|engine| engine.orphan_pinned(ObjectId(ino), freed)",
        replace: "|engine| {\n            let _ = engine.orphan_pinned(ObjectId(ino), freed);\n            Vec::new()\n        }",
        backend: "image",
        case: "pin-quarantine",
    },
    Mutant {
        name: "times-not-updated",
        rule: "a WRITE grant has the side effects of an mmap store",
        file: "fs/src/mapping.rs",
        find: "self.core.touch_written(object.0)",
        replace: "Ok::<(), crate::error::FsError>(())",
        backend: "image",
        case: "effects-times",
    },
    Mutant {
        name: "lease-without-draining",
        rule: "what is under way ends before the memory of a lease is unmapped",
        file: "blockdev/src/nvme/lease.rs",
        find: "        self.queue.delete();\n",
        replace: "",
        backend: DRIVER,
        case: "peers::the_cut_waits_for_transfers_under_way_and_for_nobody_else",
    },
    Mutant {
        name: "lease-unmapped-in-use",
        rule: "memory of a lease that is in use stays mapped until the deadline",
        file: "blockdev/src/nvme/lease.rs",
        find: "if self.outstanding == 0 {",
        replace: "if self.outstanding < usize::MAX {",
        backend: DRIVER,
        case: "peers::a_lease_that_is_given_up_in_time_keeps_its_queue",
    },
    Mutant {
        name: "lease-always-writable",
        rule: "an importer that may only read cannot write",
        file: "blockdev/src/nvme/lease.rs",
        find: "port.reach(&part.memory, writable)?",
        replace: "port.reach(&part.memory, writable || true)?",
        backend: DRIVER,
        case: "peers::a_read_lease_cannot_be_written",
    },
    Mutant {
        name: "lease-revoked-counts",
        rule: "what ends after its lease does not count, whatever the controller says",
        file: "blockdev/src/nvme/lease.rs",
        find: "match !ending && lease.window",
        replace: "match lease.window",
        backend: DRIVER,
        case: "peers::a_lease_that_is_given_up_in_time_keeps_its_queue",
    },
];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::root;

    /// Proving the mutants takes long; that each still applies, and names a case, is seen at once.
    #[test]
    fn every_mutant_applies_and_names_a_case() {
        let cases: String = fs::read_dir(root().join("tests/conformance/src/cases"))
            .expect("the cases")
            .map(|entry| fs::read_to_string(entry.expect("an entry").path()).expect("a source"))
            .collect();
        let peers = fs::read_to_string(root().join("blockdev/tests/nvme_faults/peers.rs")).expect("the driver's tests");
        for mutant in MUTANTS {
            let source = fs::read_to_string(root().join(mutant.file)).expect("the mutant's file");
            assert_eq!(source.matches(mutant.find).count(), 1, "{}: bring its text up to date", mutant.name);
            let named = match mutant.case.rsplit_once("::") {
                Some((_, test)) if mutant.backend == DRIVER => peers.contains(&format!("fn {test}()")),
                _ => cases.contains(&format!("\"{}\"", mutant.case)),
            };
            assert!(named, "{}: no case is named {}", mutant.name, mutant.case);
        }
    }
}
