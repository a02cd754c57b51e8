//! What every file must contain, now and after a crash.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use anyhow::{Context, Result, anyhow, ensure};

use super::content::{HOLE, Stamp};

/// A file, also after its name was changed or removed: a crash may bring it back.
#[derive(Debug, Clone, Default)]
pub struct AgedFile {
    /// Stamps of its sectors.
    now: Vec<Stamp>,
    /// What else a sector may hold after a crash: what it held since the last fsync.
    before: HashMap<usize, Vec<Stamp>>,
    /// Lengths since the last fsync, in sectors: a write of several parts makes it longer part by part.
    lengths: Vec<RangeInclusive<usize>>,
    /// A crash must not lose it.
    synced: bool,
}

impl AgedFile {
    /// Its sectors.
    pub fn sectors(&self) -> &[Stamp] {
        &self.now
    }

    /// Sets sectors; those that are skipped beyond the end are holes.
    pub fn set(&mut self, at: usize, stamps: &[Stamp]) {
        let (length, end) = (self.now.len(), at + stamps.len());
        if end > length {
            self.lengths.push(length..=end);
            self.now.resize(end, HOLE);
        }
        for (sector, stamp) in (at..).zip(stamps) {
            let old = std::mem::replace(&mut self.now[sector], *stamp);
            self.before.entry(sector).or_default().push(old);
        }
    }

    /// Cuts it, or makes it longer by a hole.
    pub fn resize(&mut self, sectors: usize) {
        self.lengths.push(self.now.len()..=self.now.len());
        for sector in sectors..self.now.len() {
            self.before.entry(sector).or_default().push(self.now[sector]);
        }
        self.now.resize(sectors, HOLE);
    }

    fn settle(&mut self) {
        self.before.clear();
        self.lengths.clear();
        self.synced = true;
    }

    /// Whether these sectors are what a crash may leave of it.
    fn explains(&self, actual: &[Stamp]) -> Result<()> {
        let known = actual.len() == self.now.len() || self.lengths.iter().any(|lengths| lengths.contains(&actual.len()));
        ensure!(known, "its length is {} sectors instead of {} or {:?}", actual.len(), self.now.len(), self.lengths);
        for (sector, stamp) in actual.iter().enumerate() {
            let now = self.now.get(sector).copied().unwrap_or(HOLE);
            let before = self.before.get(&sector).map_or(&[][..], Vec::as_slice);
            ensure!(
                *stamp == now || before.contains(stamp),
                "sector {sector} has stamp {stamp:#x} instead of {now:#x} or, before that, {before:x?}"
            );
        }
        Ok(())
    }
}

/// Number of a file, never used again.
pub type FileId = usize;

/// All files of a volume.
#[derive(Debug, Default)]
pub struct Model {
    files: Vec<AgedFile>,
    names: BTreeMap<String, FileId>,
    /// What a name may be after a crash, beside what it is.
    former: BTreeMap<String, BTreeSet<FileId>>,
}

impl Model {
    /// Names, in order.
    pub fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// The name that is `number`th, counted around.
    pub fn name(&self, number: u64) -> Option<String> {
        let count = self.names.len() as u64;
        (count > 0).then(|| self.names.keys().nth((number % count) as usize).cloned()).flatten()
    }

    /// The file of a name.
    ///
    /// # Errors
    /// There is none.
    pub fn file(&self, name: &str) -> Result<&AgedFile> {
        let id = self.names.get(name).with_context(|| format!("the model has no {name}"))?;
        Ok(&self.files[*id])
    }

    /// As [`Model::file`], to be changed.
    ///
    /// # Errors
    /// There is none.
    pub fn file_mut(&mut self, name: &str) -> Result<&mut AgedFile> {
        let id = self.names.get(name).with_context(|| format!("the model has no {name}"))?;
        Ok(&mut self.files[*id])
    }

    /// Makes an empty file.
    pub fn create(&mut self, name: &str) {
        self.files.push(AgedFile::default());
        self.names.insert(name.to_owned(), self.files.len() - 1);
    }

    /// Removes a file.
    pub fn remove(&mut self, name: &str) {
        if let Some(id) = self.names.remove(name) {
            self.former.entry(name.to_owned()).or_default().insert(id);
        }
    }

    /// Gives a file another name, whose file is removed if there is one.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(&id) = self.names.get(from) {
            self.remove(from);
            self.remove(to);
            self.names.insert(to.to_owned(), id);
        }
    }

    /// A file was synced, and its name with it.
    pub fn synced(&mut self, name: &str) {
        if let Some(&id) = self.names.get(name) {
            self.files[id].settle();
            for former in self.former.values_mut() {
                former.remove(&id);
            }
            self.former.remove(name);
        }
    }

    /// All is durable.
    pub fn settle(&mut self) {
        self.former.clear();
        self.files = std::mem::take(&mut self.names)
            .into_iter()
            .enumerate()
            .map(|(id, (name, old))| {
                let mut file = std::mem::take(&mut self.files[old]);
                file.settle();
                self.names.insert(name, id);
                file
            })
            .collect();
    }

    /// Goes on from what a crash has left.
    ///
    /// # Errors
    /// It is not what a crash may leave.
    pub fn adopt(&mut self, left: Vec<(String, Vec<Stamp>)>) -> Result<()> {
        let mut choices = Vec::new();
        for (name, actual) in &left {
            let former = self.former.get(name).into_iter().flatten();
            let candidates = self.names.get(name).into_iter().chain(former).copied();
            let (mut owners, mut wrong) = (Vec::new(), Vec::new());
            for id in candidates {
                match self.files[id].explains(actual) {
                    Ok(()) => owners.push(id),
                    Err(error) => wrong.push(format!("{error}")),
                }
            }
            ensure!(!owners.is_empty(), "after the crash {name} is no file that had this name: {}", wrong.join("; "));
            choices.push(owners);
        }
        let owners =
            matching(&choices).map_err(|at| anyhow!("after the crash {} is a file that has another name", left[at].0))?;
        let found: BTreeMap<FileId, (String, Vec<Stamp>)> = owners.into_iter().zip(left).collect();
        for (name, id) in &self.names {
            ensure!(found.contains_key(id) || !self.files[*id].synced, "{name} was synced and is lost");
        }
        self.names.clear();
        for (id, (name, actual)) in found {
            self.files[id].now = actual;
            self.names.insert(name, id);
        }
        self.settle();
        Ok(())
    }
}

/// An owner for each, all different; several may look alike. The error is one for which none is left.
fn matching(choices: &[Vec<FileId>]) -> Result<Vec<FileId>, usize> {
    let mut taken = HashMap::new();
    for at in 0..choices.len() {
        if !place(at, choices, &mut taken, &mut BTreeSet::new()) {
            return Err(at);
        }
    }
    let mut owners = vec![0; choices.len()];
    taken.into_iter().for_each(|(id, at)| owners[at] = id);
    Ok(owners)
}

/// Gives `at` one of its choices; whoever has it takes another.
fn place(at: usize, choices: &[Vec<FileId>], taken: &mut HashMap<FileId, usize>, tried: &mut BTreeSet<FileId>) -> bool {
    for &id in &choices[at] {
        let other = taken.get(&id).copied();
        if tried.insert(id) && other.is_none_or(|other| place(other, choices, taken, tried)) {
            taken.insert(id, at);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_alike_is_told_apart_by_what_else_there_is() {
        assert_eq!(matching(&[vec![1, 2], vec![1]]), Ok(vec![2, 1]));
        assert_eq!(matching(&[vec![1, 2], vec![1, 3], vec![1]]), Ok(vec![2, 3, 1]));
        assert_eq!(matching(&[vec![1], vec![1]]), Err(1));
    }
}
