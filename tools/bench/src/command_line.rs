//! Words of the command line: job files, options of jobs, and what is printed where.

use std::fs;
use std::path::{Path, PathBuf};

use crate::job_file::{self, Entry, GLOBAL, Section};
use crate::settings::{is_switch, names};
use crate::{Error, Place};

/// What the words ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Sections of the job files and of the words, in order.
    pub sections: Vec<Section>,
    /// Print as fio does for people.
    pub normal: bool,
    /// Print fio's JSON.
    pub json: bool,
    /// Print into this file instead of to stdout.
    pub output: Option<PathBuf>,
    /// Options that nobody knows are left out instead of refused.
    pub ignore_unknown: bool,
    /// Show progress: `None`, on a terminal.
    pub eta: Option<bool>,
}

/// Reads the words, and the job files that they name.
///
/// # Errors
/// [`Error::Input`] for a wrong word or file, [`Error::System`] for one that cannot be read.
pub fn parse(words: &[String]) -> Result<Request, Error> {
    let mut request = Request { normal: true, ..Request::default() };
    let mut job: Option<Section> = None;
    let mut global = section(GLOBAL);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let Some(option) = word.strip_prefix("--") else {
            if word.starts_with('-') {
                return Err(wrong(format!("{word}: expected a job file, or an option that begins with --")));
            }
            request.sections.extend(read(Path::new(word))?);
            continue;
        };
        let mut entry = job_file::entry(option, Place::CommandLine);
        if entry.value.is_none() && takes_value(&entry.key) {
            entry.value = rest.next().cloned();
        }
        match (entry.key.as_str(), entry.value.as_deref()) {
            ("name", Some(name)) if !name.is_empty() => {
                request.sections.extend(job.replace(section(name)));
            }
            ("name", _) => return Err(wrong("--name: expected the name of a job".to_owned())),
            _ if request.take(&entry)? => {}
            _ => job.as_mut().unwrap_or(&mut global).entries.push(entry),
        }
    }
    request.sections.extend(job);
    request.sections.insert(0, global);
    Ok(request)
}

impl Request {
    /// Takes in what is no option of a job; false: it is one.
    fn take(&mut self, entry: &Entry) -> Result<bool, Error> {
        match (entry.key.as_str(), entry.value.as_deref()) {
            ("output-format", Some(formats)) => {
                (self.normal, self.json) = (false, false);
                for format in formats.split(',') {
                    match format {
                        "normal" => self.normal = true,
                        "json" => self.json = true,
                        _ => return Err(wrong(format!("--output-format={formats}: expected normal, json or json,normal"))),
                    }
                }
            }
            ("output", Some(file)) if !file.is_empty() => self.output = Some(file.into()),
            ("ignore-unknown", None) => self.ignore_unknown = true,
            ("eta", Some("auto")) => self.eta = None,
            ("eta", Some("always")) => self.eta = Some(true),
            ("eta", Some("never")) => self.eta = Some(false),
            ("eta", _) => return Err(wrong("--eta: expected auto, always or never".to_owned())),
            ("output-format" | "output" | "ignore-unknown", _) => {
                return Err(wrong(format!("--{}: a value is missing, or one too many", entry.key)));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Is the next word the value, when there is no `=`?
fn takes_value(key: &str) -> bool {
    let ours = ["name", "output-format", "output", "eta"].contains(&key);
    ours || names().any(|name| name == key) && !is_switch(key)
}

fn section(name: &str) -> Section {
    Section { name: name.to_owned(), place: Place::CommandLine, entries: Vec::new() }
}

fn read(file: &Path) -> Result<Vec<Section>, Error> {
    let text = fs::read_to_string(file).map_err(|source| Error::system("read the job file", file.display(), source))?;
    job_file::sections(file, &text)
}

fn wrong(what: String) -> Error {
    Error::input(&Place::CommandLine, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Request, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn options_before_the_first_name_are_global() {
        let request = words("--bs=8k --name=a --rw read --direct --name b --size=1m").expect("good");
        let shape: Vec<_> = request.sections.iter().map(|section| (section.name.as_str(), section.entries.len())).collect();
        assert_eq!(shape, [("global", 1), ("a", 2), ("b", 1)]);
        assert_eq!(request.sections[1].entries[0].value.as_deref(), Some("read"));
        assert_eq!(request.sections[1].entries[1].value, None);
    }

    #[test]
    fn output_is_no_option_of_a_job() {
        let request = words("--name=a --output-format=json,normal --output x.json --ignore-unknown --eta=never").expect("good");
        assert!(request.json && request.normal && request.ignore_unknown && request.eta == Some(false));
        assert_eq!(request.output.as_deref(), Some(Path::new("x.json")));
        assert!(!words("--output-format=json --name=a").expect("good").normal);
    }

    #[test]
    fn mistakes_are_named() {
        for line in ["-x", "--name", "--output-format=terse", "--eta=often", "--output=", "--ignore-unknown=1", "/no/such.fio"] {
            assert!(words(line).is_err(), "{line}");
        }
    }
}
