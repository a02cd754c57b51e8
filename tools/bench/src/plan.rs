//! Sections become jobs.

use crate::job_file::{GLOBAL, Section};
use crate::settings::{Settings, apply};
use crate::{Error, Job, Place};

/// Jobs in the order they were written.
#[derive(Debug)]
pub struct Plan {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Options of the global sections, as written.
    pub global: Vec<(String, String)>,
}

impl Plan {
    /// Checks every option of every section before anything runs.
    ///
    /// # Errors
    /// The first mistake: [`Error::Input`] or [`Error::Job`].
    pub fn new(sections: &[Section], ignore_unknown: bool) -> Result<Plan, Error> {
        let mut plan = Plan { jobs: Vec::new(), global: Vec::new() };
        let mut shared = Settings::default();
        for section in sections {
            if section.name == GLOBAL {
                add(&mut shared, &mut plan.global, section, ignore_unknown)?;
                continue;
            }
            let (mut settings, mut written) = (shared.clone(), Vec::new());
            add(&mut settings, &mut written, section, ignore_unknown)?;
            let renamed = section.entries.iter().rev().find(|entry| entry.key == "name").and_then(|entry| entry.value.as_ref());
            let name = renamed.unwrap_or(&section.name);
            plan.jobs.push(Job::new(name, &section.place, plan.jobs.len() as u64, written, settings)?);
        }
        if plan.jobs.is_empty() {
            let place = sections.first().map_or(Place::CommandLine, |section| section.place.clone());
            return Err(Error::input(&place, "no job is defined: name a job file with a section, or give --name=NAME"));
        }
        plan.number_groups();
        Ok(plan)
    }

    /// What runs otherwise than written: a line for each.
    pub fn notes(&self) -> Vec<String> {
        let aliases = self.jobs.iter().filter(|job| job.settings.asked_for_libaio);
        aliases.map(|job| format!("job {}: ioengine=libaio: io_uring is used instead", job.name)).collect()
    }

    fn number_groups(&mut self) {
        let mut group = 0;
        for (index, job) in self.jobs.iter_mut().enumerate() {
            if index > 0 && (job.settings.stonewall || job.settings.new_group) {
                group += 1;
            }
            job.group = group;
        }
    }

    /// Jobs that run at the same time, one stage after the other.
    pub(crate) fn stages(&self) -> Vec<&[Job]> {
        self.jobs.chunk_by(|_, next| !next.settings.stonewall).collect()
    }
}

fn add(
    settings: &mut Settings,
    written: &mut Vec<(String, String)>,
    section: &Section,
    ignore_unknown: bool,
) -> Result<(), Error> {
    for entry in &section.entries {
        apply(settings, entry, ignore_unknown)?;
        // As fio shows switches.
        written.push((entry.key.clone(), entry.value.clone().unwrap_or_else(|| "1".to_owned())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::job_file::sections;

    fn plan(text: &str) -> Result<Plan, String> {
        let sections = sections(Path::new("a.fio"), text).expect("lexes");
        Plan::new(&sections, false).map_err(|error| error.to_string())
    }

    #[test]
    fn global_options_reach_later_jobs_only() {
        let plan = plan("[a]\n[global]\nbs=8k\n[b]\n[c]\nbs=16k").expect("good");
        let blocks: Vec<u64> = plan.jobs.iter().map(Job::largest_block).collect();
        assert_eq!(blocks, [4096, 8192, 16384]);
        assert_eq!(plan.global, [("bs".to_owned(), "8k".to_owned())]);
    }

    #[test]
    fn stonewalls_divide_stages_and_groups() {
        let plan = plan("[a]\nstonewall\n[b]\n[c]\nstonewall\n[d]\nnew_group").expect("good");
        assert_eq!(plan.stages().iter().map(|stage| stage.len()).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(plan.jobs.iter().map(|job| job.group).collect::<Vec<_>>(), [0, 0, 1, 2]);
    }

    #[test]
    fn contradictions_are_found_before_anything_runs() {
        let cases = [
            ("time_based", "needs a runtime"),
            ("direct=1\nioengine=mmap", "exclude each other"),
            ("direct=1\nbs=100", "whole sectors"),
            ("verify=pattern", "verify_pattern"),
            ("verify=crc32c\nbs=16", "at least"),
            ("iodepth=100000", "at most"),
            ("iodepth=4096\nbs=1g", "4g"),
        ];
        for (options, said) in cases {
            let error = plan(&format!("[x]\n{options}")).expect_err(options);
            assert!(error.starts_with("a.fio:1: job x: ") && error.contains(said), "{error}");
        }
        assert!(plan("[global]\nbs=4k").is_err_and(|said| said.contains("no job")));
    }

    #[test]
    fn files_are_named_as_fio_names_them() {
        let plan = plan("[a]\ndirectory=/d\n[b]\nfilename=$jobname.$jobnum").expect("good");
        assert_eq!(plan.jobs[0].file(2), Path::new("/d/a.2.0"));
        assert_eq!(plan.jobs[1].file(2), Path::new("b.2"));
        let plan =
            self::plan("[global]\ndirectory=/d\n[/e]\n[a]\nfilename=//f/g\n[a]\ndirectory=d\nfilename=/$jobnum").expect("good");
        let files: Vec<_> = plan.jobs.iter().map(|job| job.file(1)).collect();
        assert_eq!(files, ["/d/e.1.0", "/d/f/g", "d/1"].map(Path::new));
        assert_eq!(self::plan("[a]\nfilename=/f").expect("good").jobs[0].file(0), Path::new("/f"));
        assert_eq!(self::plan("[a]\nname=c").expect("good").jobs[0].file(0), Path::new("c.0.0"));
    }
}
