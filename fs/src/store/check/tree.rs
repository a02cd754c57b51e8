//! Inodes, names and what belongs to them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::key::{Key, RecordError};
use super::super::records::{
    Counter, DirentByCookie, DirentByName, Extent, FileKind, Inode, ROOT_INO, Record, counter, extent_flags,
};
use super::problem::{Problem, Report};

use peerfs_blockdev::BLOCK_BYTES;

#[derive(Default)]
pub(super) struct Tree {
    /// Records come in key order: all inodes before everything that refers to them.
    nodes: BTreeMap<u64, Node>,
    /// Directory and cookie -> name and inode, until its counterpart shows up.
    by_name: HashMap<(u64, u64), (Vec<u8>, u64, FileKind)>,
    orphans: BTreeSet<u64>,
    next_ino: u64,
    /// Last extent seen: inode and file block after it.
    last_extent: Option<(u64, u64)>,
}

struct Node {
    inode: Inode,
    names: u64,
    subdirectories: u64,
    /// Directories that name it.
    parents: Vec<u64>,
    blocks: u64,
    target_length: Option<u64>,
}

fn printable(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

impl Tree {
    pub(super) fn visit(&mut self, key: &Key<'_>, value: &[u8], report: &mut Report) -> Result<(), RecordError> {
        match *key {
            Key::Inode(ino) => self.inode(ino, Inode::decode(value)?, report)?,
            Key::DirentName(parent, name) => {
                self.name(parent, name, DirentByName::decode(value)?, report);
            }
            Key::DirentCookie(parent, cookie) => {
                self.cookie(parent, cookie, DirentByCookie::decode(value)?, report);
            }
            Key::Extent(ino, file_block) => {
                self.extent(ino, file_block, Extent::decode(value)?, report);
            }
            Key::Xattr(ino, _) => {
                if !self.nodes.contains_key(&ino) {
                    report.add(Problem::WrongOwner { what: "an attribute", ino });
                }
            }
            Key::Symlink(ino) => match self.nodes.get_mut(&ino) {
                Some(node) if node.inode.kind() == FileKind::Symlink => {
                    node.target_length = Some(value.len() as u64);
                }
                _ => report.add(Problem::WrongOwner { what: "a link's target", ino }),
            },
            Key::Orphan(ino) => {
                self.orphans.insert(ino);
            }
            Key::Counter(counter::NEXT_INO) => self.next_ino = Counter::decode(value)?.0,
            Key::Counter(_) | Key::Free(_) | Key::Shared(_) | Key::Quarantine(_) => {}
        }
        Ok(())
    }

    fn inode(&mut self, ino: u64, inode: Inode, report: &mut Report) -> Result<(), RecordError> {
        if inode.ino != ino {
            return Err(Inode::malformed("it bears another number than its key"));
        }
        report.inodes += 1;
        report.directories += u64::from(inode.kind() == FileKind::Directory);
        let node = Node { inode, names: 0, subdirectories: 0, parents: Vec::new(), blocks: 0, target_length: None };
        self.nodes.insert(ino, node);
        Ok(())
    }

    fn name(&mut self, parent: u64, name: &[u8], entry: DirentByName, report: &mut Report) {
        let kind = match self.nodes.get_mut(&entry.ino) {
            Some(node) => {
                node.names += 1;
                if node.inode.kind() == FileKind::Directory {
                    node.parents.push(parent);
                }
                node.inode.kind()
            }
            None => {
                let ino = entry.ino;
                report.add(Problem::DanglingName { parent, name: printable(name), ino });
                entry.kind
            }
        };
        if kind != entry.kind {
            report.add(Problem::EntryMismatch { parent, name: printable(name) });
        }
        match self.nodes.get_mut(&parent) {
            Some(node) if node.inode.kind() == FileKind::Directory => {
                node.subdirectories += u64::from(kind == FileKind::Directory);
                if entry.cookie >= node.inode.next_cookie {
                    report.add(Problem::CookieReused { parent, cookie: entry.cookie });
                }
            }
            _ => report.add(Problem::WrongOwner { what: "a name", ino: parent }),
        }
        let entry_by_name = (name.to_vec(), entry.ino, entry.kind);
        if self.by_name.insert((parent, entry.cookie), entry_by_name).is_some() {
            report.add(Problem::EntryMismatch { parent, name: printable(name) });
        }
    }

    fn cookie(&mut self, parent: u64, cookie: u64, entry: DirentByCookie, report: &mut Report) {
        let expected = self.by_name.remove(&(parent, cookie));
        let name = printable(&entry.name);
        if expected != Some((entry.name, entry.ino, entry.kind)) {
            report.add(Problem::EntryMismatch { parent, name });
        }
    }

    fn extent(&mut self, ino: u64, file_block: u64, extent: Extent, report: &mut Report) {
        let Some(node) = self.nodes.get_mut(&ino) else {
            report.add(Problem::WrongOwner { what: "an extent", ino });
            return;
        };
        if node.inode.kind() != FileKind::Regular {
            report.add(Problem::WrongOwner { what: "an extent", ino });
        }
        node.blocks = node.blocks.saturating_add(extent.len_blocks);
        let mut bad = |reason| report.add(Problem::BadExtent { ino, file_block, reason });
        let end = file_block.saturating_add(extent.len_blocks);
        if self.last_extent.is_some_and(|(last, after)| last == ino && file_block < after) {
            bad("overlaps the one before");
        }
        let written = extent.flags & extent_flags::UNWRITTEN == 0;
        if written && end > node.inode.size.div_ceil(BLOCK_BYTES) {
            bad("is written beyond the end of the file");
        }
        if extent.flags == extent_flags::UNWRITTEN | extent_flags::SHARED {
            bad("is shared without having been written");
        }
        self.last_extent = Some((ino, end));
    }

    pub(super) fn finish(self, report: &mut Report) {
        report.orphans = self.orphans.len() as u64;
        for ((parent, _), (name, _, _)) in &self.by_name {
            report.add(Problem::EntryMismatch { parent: *parent, name: printable(name) });
        }
        for ino in &self.orphans {
            if self.nodes.get(ino).is_none_or(|node| node.inode.nlink != 0) {
                report.add(Problem::BadOrphan { ino: *ino });
            }
        }
        if let Some((&largest, _)) = self.nodes.last_key_value()
            && largest >= self.next_ino
        {
            report.add(Problem::InodeCounter { largest, next: self.next_ino });
        }
        if self.nodes.get(&ROOT_INO).is_none_or(|root| root.inode.kind() != FileKind::Directory) {
            report.add(Problem::NoRoot);
        }
        let reachable = self.reachable_directories();
        for (&ino, node) in &self.nodes {
            self.check_node(ino, node, &reachable, report);
        }
    }

    fn check_node(&self, ino: u64, node: &Node, reachable: &BTreeSet<u64>, report: &mut Report) {
        let inode = &node.inode;
        let is_directory = inode.kind() == FileKind::Directory;
        let orphan = self.orphans.contains(&ino);
        let counted = match is_directory {
            true if orphan => 0,
            true => 2 + node.subdirectories,
            false => node.names,
        };
        if counted != u64::from(inode.nlink) {
            report.add(Problem::WrongLinkCount { ino, counted, recorded: inode.nlink });
        }
        let found = if is_directory { reachable.contains(&ino) } else { node.names > 0 };
        if !found && !orphan {
            report.add(Problem::Unreachable { ino });
        }
        if is_directory && !orphan && !has_one_parent(ino, node) {
            report.add(Problem::WrongParent { ino });
        }
        if node.blocks != inode.blocks {
            report.add(Problem::WrongBlockCount { ino, counted: node.blocks, recorded: inode.blocks });
        }
        if inode.kind() == FileKind::Symlink && node.target_length != Some(inode.size) {
            report.add(Problem::BadSymlink { ino });
        }
    }

    /// Directories from which following the parents leads to the root.
    fn reachable_directories(&self) -> BTreeSet<u64> {
        let mut children: HashMap<u64, Vec<u64>> = HashMap::new();
        for (&ino, node) in &self.nodes {
            for &parent in &node.parents {
                children.entry(parent).or_default().push(ino);
            }
        }
        let mut reachable = BTreeSet::new();
        let mut queue = vec![ROOT_INO];
        while let Some(ino) = queue.pop() {
            if reachable.insert(ino) {
                queue.extend(children.remove(&ino).unwrap_or_default());
            }
        }
        reachable
    }
}

fn has_one_parent(ino: u64, node: &Node) -> bool {
    if ino == ROOT_INO { node.parents.is_empty() && node.inode.parent == ROOT_INO } else { node.parents == [node.inode.parent] }
}
