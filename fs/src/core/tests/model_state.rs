//! The oracle of the model test: a tree in memory.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::types::{Ino, ROOT_INO};

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Directory(BTreeMap<String, Ino>),
    File { data: Rc<Vec<u8>>, xattrs: BTreeMap<String, Vec<u8>> },
    Symlink(Vec<u8>),
    Whiteout,
}

/// What can be seen of an inode, but for a file's data: that may be newer than its metadata after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Directory(BTreeMap<String, Ino>),
    File { size: u64, nlink: u32, xattrs: BTreeMap<String, Vec<u8>> },
    Symlink(Vec<u8>),
    Whiteout,
}

/// A whole tree.
#[derive(Debug, Clone)]
pub struct Model {
    pub nodes: BTreeMap<Ino, Node>,
}

impl Model {
    pub fn new() -> Self {
        Model { nodes: BTreeMap::from([(ROOT_INO, Node::Directory(BTreeMap::new()))]) }
    }

    pub fn entries(&self, ino: Ino) -> &BTreeMap<String, Ino> {
        match &self.nodes[&ino] {
            Node::Directory(entries) => entries,
            other => panic!("{ino} is {other:?}"),
        }
    }

    pub fn entries_mut(&mut self, ino: Ino) -> &mut BTreeMap<String, Ino> {
        match self.nodes.get_mut(&ino) {
            Some(Node::Directory(entries)) => entries,
            other => panic!("{ino} is {other:?}"),
        }
    }

    pub fn data_mut(&mut self, ino: Ino) -> &mut Vec<u8> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File { data, .. }) => Rc::make_mut(data),
            other => panic!("{ino} is {other:?}"),
        }
    }

    pub fn xattrs_mut(&mut self, ino: Ino) -> &mut BTreeMap<String, Vec<u8>> {
        match self.nodes.get_mut(&ino) {
            Some(Node::File { xattrs, .. }) => xattrs,
            other => panic!("{ino} is {other:?}"),
        }
    }

    pub fn data(&self, ino: Ino) -> Option<&Rc<Vec<u8>>> {
        match self.nodes.get(&ino) {
            Some(Node::File { data, .. }) => Some(data),
            _ => None,
        }
    }

    pub fn is_directory(&self, ino: Ino) -> bool {
        matches!(self.nodes[&ino], Node::Directory(_))
    }

    pub fn links(&self, ino: Ino) -> u32 {
        let named = |node: &Node| match node {
            Node::Directory(entries) => entries.values().filter(|named| **named == ino).count(),
            _ => 0,
        };
        self.nodes.values().map(named).sum::<usize>() as u32
    }

    /// `ino` is `below` or above it.
    pub fn is_ancestor(&self, ino: Ino, below: Ino) -> bool {
        ino == below
            || match &self.nodes[&ino] {
                Node::Directory(entries) => entries.values().any(|child| self.is_ancestor(*child, below)),
                _ => false,
            }
    }

    /// After a name was removed.
    pub fn collect(&mut self, ino: Ino) {
        if self.links(ino) == 0 {
            self.nodes.remove(&ino);
        }
    }

    pub fn directories(&self) -> Vec<Ino> {
        let inos = self.nodes.keys().copied();
        inos.filter(|ino| self.is_directory(*ino)).collect()
    }

    pub fn files(&self) -> Vec<Ino> {
        let inos = self.nodes.keys().copied();
        inos.filter(|ino| self.data(*ino).is_some()).collect()
    }

    /// The tree without data.
    pub fn seen(&self) -> BTreeMap<Ino, Seen> {
        self.nodes.iter().map(|(ino, node)| (*ino, self.see(*ino, node))).collect()
    }

    fn see(&self, ino: Ino, node: &Node) -> Seen {
        match node {
            Node::Directory(entries) => Seen::Directory(entries.clone()),
            Node::Symlink(target) => Seen::Symlink(target.clone()),
            Node::Whiteout => Seen::Whiteout,
            Node::File { data, xattrs } => Seen::File { size: data.len() as u64, nlink: self.links(ino), xattrs: xattrs.clone() },
        }
    }
}
