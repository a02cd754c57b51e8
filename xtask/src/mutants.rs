//! Mutation proof: breaks one rule of coherence or revocation at a time in a copy of the tree, and shows that a named
//! conformance case notices. The product has no switch for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

use crate::mutants_list::{DRIVER, MUTANTS, Mutant};
use crate::root;

/// The copy that is broken on purpose, and what is built from it.
struct Laboratory {
    tree: PathBuf,
    target: PathBuf,
}

/// What came of one mutant.
enum Outcome {
    Caught { message: String },
    Missed,
}

/// Runs the mutants whose name contains `filter`; fails unless every one is caught.
pub fn prove(filter: &str) -> Result<()> {
    let laboratory = Laboratory::set_up()?;
    let chosen: Vec<&Mutant> = MUTANTS.iter().filter(|mutant| mutant.name.contains(filter)).collect();
    ensure!(!chosen.is_empty(), "no mutant's name contains `{filter}`");
    laboratory.build()?;
    for mutant in &chosen {
        laboratory.check_sound(mutant)?;
    }
    println!("| mutant | rule it breaks | case | result |\n|---|---|---|---|");
    let mut missed = 0;
    for mutant in &chosen {
        let result = match laboratory.try_mutant(mutant)? {
            Outcome::Caught { message } => format!("caught: {message}"),
            Outcome::Missed => {
                missed += 1;
                "MISSED".into()
            }
        };
        println!("| {} | {} | {} | {result} |", mutant.name, mutant.rule, mutant.case);
    }
    println!("{} mutants, {missed} missed", chosen.len());
    ensure!(missed == 0, "{missed} mutants were not noticed");
    Ok(())
}

impl Laboratory {
    /// Copies what git tracks. Files that did not change keep their times, so that little is built again.
    fn set_up() -> Result<Laboratory> {
        let home = root().join("target/mutants");
        let laboratory = Laboratory { tree: home.join("tree"), target: home.join("target") };
        let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().context("git ls-files")?;
        ensure!(listed.status.success(), "git ls-files failed: mutants are made from the files that git tracks");
        for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
            laboratory.copy(Path::new(name))?;
        }
        Ok(laboratory)
    }

    fn copy(&self, name: &Path) -> Result<()> {
        let (from, to) = (root().join(name), self.tree.join(name));
        if !from.is_file() {
            return Ok(());
        }
        let wanted = fs::read(&from)?;
        if fs::read(&to).ok().as_ref() == Some(&wanted) {
            return Ok(());
        }
        fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
        // With its permissions.
        fs::copy(&from, &to).map(drop).with_context(|| format!("{} cannot be copied", from.display()))
    }

    fn build(&self) -> Result<()> {
        let built = self.cargo(&["build", "--quiet", "--package", "peerfs"])?;
        ensure!(built.status.success(), "the build failed:\n{}", String::from_utf8_lossy(&built.stderr));
        Ok(())
    }

    fn cargo(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("cargo");
        command.args(arguments).current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.target);
        command.output().context("cargo cannot be started")
    }

    /// One conformance case, or test; its output when it failed.
    fn run_case(&self, mutant: &Mutant) -> Result<Option<String>> {
        if mutant.backend == DRIVER {
            return self.run_test(mutant.case);
        }
        let program = self.target.join("debug/peerfs");
        let arguments = ["conformance", "--backend", mutant.backend, "--case", mutant.case];
        let output = Command::new(&program).args(arguments).output().context("peerfs cannot be started")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => Ok(None),
            Some(1) => Ok(Some(text)),
            _ => bail!("{}: peerfs conformance ended with {}:\n{text}", mutant.name, output.status),
        }
    }

    fn run_test(&self, name: &str) -> Result<Option<String>> {
        let output = self.cargo(&["test", "--quiet", "-p", "peerfs-blockdev", "--test", "nvme_faults", "--", "--exact", name])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let ran = text.contains("1 passed") || text.contains("1 failed");
        ensure!(ran, "{name} was not run:\n{text}");
        Ok((!output.status.success()).then_some(text))
    }

    /// A case that fails without the mutant proves nothing.
    fn check_sound(&self, mutant: &Mutant) -> Result<()> {
        if let Some(text) = self.run_case(mutant)? {
            bail!("{}: case {} fails without the mutant:\n{text}", mutant.name, mutant.case);
        }
        Ok(())
    }

    fn try_mutant(&self, mutant: &Mutant) -> Result<Outcome> {
        let path = self.tree.join(mutant.file);
        let sound = fs::read_to_string(&path).with_context(|| format!("{}: {}", mutant.name, mutant.file))?;
        let places = sound.matches(mutant.find).count();
        ensure!(places == 1, "{}: its text occurs {places} times in {}: bring it up to date", mutant.name, mutant.file);
        fs::write(&path, sound.replace(mutant.find, mutant.replace))?;
        let result = self.build().with_context(|| mutant.name).and_then(|()| self.run_case(mutant));
        fs::write(&path, sound)?;
        Ok(match result? {
            Some(text) => Outcome::Caught { message: complaint(&text, mutant.case) },
            None => Outcome::Missed,
        })
    }
}

/// What the case said, on one line.
fn complaint(text: &str, case: &str) -> String {
    let line = text.lines().find(|line| line.contains(case)).or(text.lines().next()).unwrap_or("");
    line.trim().replace('|', "/")
}
