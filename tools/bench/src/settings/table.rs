//! The options by name.

use super::nearest::nearest;
use super::{Access, Distribution, EngineKind, PathChoice, Settings, VerifyKind};
use crate::job_file::Entry;
use crate::values::{
    block_range, block_size, block_split, boolean, extent, integer, milliseconds, offset, pattern, per_direction, seconds, size,
    time_range,
};
use crate::{Error, variables};

/// Takes a value in; an option without a value has an empty one.
type Setter = fn(&mut Settings, &str) -> Result<(), String>;

/// Names (the first is the usual one) and what they set.
const TABLE: &[(&[&str], Setter)] = &[
    // The plan looks for it.
    (&["name"], |_, value| one_name(value).map(drop)),
    (&["description"], |to, value| store(&mut to.description, Ok(Some(value.to_owned())))),
    (&["directory"], |to, value| store(&mut to.directory, one_name(value).map(|name| Some(name.into())))),
    (&["filename"], |to, value| store(&mut to.filename, one_name(value).map(Some))),
    (&["filename_format"], |to, value| store(&mut to.filename_format, one_name(value))),
    (&["rw", "readwrite"], |to, value| store(&mut to.access, Access::parse(value))),
    (&["rwmixread"], |to, value| store(&mut to.mix_read, percent(value))),
    (&["rwmixwrite"], |to, value| store(&mut to.mix_read, percent(value).map(|writes| 100 - writes))),
    (&["bs", "blocksize"], |to, value| per_direction(value, &mut to.blocks, block_size)),
    (&["bsrange", "blocksize_range"], |to, value| per_direction(value, &mut to.blocks, block_range)),
    (&["bssplit"], |to, value| per_direction(value, &mut to.blocks, block_split)),
    (&["size"], |to, value| store(&mut to.size, extent(value).map(Some))),
    (&["filesize"], |to, value| store(&mut to.file_size, size(value).map(Some))),
    (&["io_size", "io_limit"], |to, value| store(&mut to.io_size, extent(value).map(Some))),
    (&["offset", "fileoffset"], |to, value| store(&mut to.offset, offset(value))),
    (&["runtime", "timeout"], |to, value| store(&mut to.runtime, seconds(value).map(|time| Some(time).filter(|t| !t.is_zero())))),
    (&["time_based"], |to, value| store(&mut to.time_based, boolean(value))),
    (&["ramp_time"], |to, value| store(&mut to.ramp_time, seconds(value))),
    (&["startdelay", "start_delay"], |to, value| store(&mut to.start_delay, time_range(value))),
    (&["loops"], |to, value| store(&mut to.loops, at_least_one(value))),
    (&["iodepth"], |to, value| store(&mut to.depth, at_least_one(value))),
    (&["numjobs"], |to, value| store(&mut to.clones, at_least_one(value))),
    (&["direct"], |to, value| store(&mut to.direct, boolean(value))),
    (&["buffered"], |to, value| store(&mut to.direct, boolean(value).map(|buffered| !buffered))),
    (&["invalidate"], |to, value| store(&mut to.invalidate, boolean(value))),
    (&["create_on_open"], |to, value| store(&mut to.create_on_open, boolean(value))),
    (&["unlink"], |to, value| store(&mut to.unlink, boolean(value))),
    (&["fsync", "sync_interval"], |to, value| store(&mut to.fsync, integer(value))),
    (&["fdatasync"], |to, value| store(&mut to.fdatasync, integer(value))),
    (&["end_fsync"], |to, value| store(&mut to.end_fsync, boolean(value))),
    (&["verify"], |to, value| store(&mut to.verify, VerifyKind::parse(value).map(Some))),
    (&["verify_pattern"], |to, value| store(&mut to.verify_pattern, pattern(value).map(Some))),
    (&["do_verify"], |to, value| store(&mut to.do_verify, boolean(value))),
    (&["verify_fatal"], |to, value| store(&mut to.verify_fatal, boolean(value))),
    (&["rate"], |to, value| per_direction(value, &mut to.rate, size)),
    (&["rate_iops"], |to, value| per_direction(value, &mut to.rate_iops, integer)),
    (&["random_distribution"], |to, value| store(&mut to.distribution, Distribution::parse(value))),
    (&["norandommap"], |to, value| store(&mut to.random_map, boolean(value).map(|without| !without))),
    (&["randseed"], |to, value| store(&mut to.seed, integer(value))),
    (&["randrepeat", "allrandrepeat"], |to, value| store(&mut to.repeatable, boolean(value))),
    (&["group_reporting"], |to, value| store(&mut to.group_reporting, boolean(value))),
    (&["new_group"], |to, value| store(&mut to.new_group, boolean(value))),
    (&["stonewall", "wait_for_previous"], |to, value| store(&mut to.stonewall, boolean(value))),
    (&["ioengine", "engine"], |to, value| {
        to.asked_for_libaio = value == "libaio";
        store(&mut to.engine, EngineKind::parse(value))
    }),
    (&["path"], |to, value| store(&mut to.path, PathChoice::parse(value))),
    (&["importer"], |to, value| store(&mut to.importer, Ok(value.to_owned()))),
    // What is so anyway, or changes nothing that is measured here; the values are checked all the same.
    (&["thread"], |_, value| boolean(value).map(drop)),
    (&["nrfiles"], |_, value| only(value, "1", "a job has one file")),
    (&["overwrite"], |_, value| boolean(value).map(drop)),
    (&["refill_buffers"], |_, value| boolean(value).map(drop)),
    (&["scramble_buffers"], |_, value| boolean(value).map(drop)),
    (&["create_serialize"], |_, value| boolean(value).map(drop)),
    (&["fallocate"], |_, _| Ok(())),
    (&["verify_state_save"], |_, value| only(value, "0", "no state is saved")),
    (&["gtod_reduce"], |_, value| only(value, "0", "latencies are always measured")),
    (&["log_avg_msec"], |_, value| milliseconds(value).map(drop)),
];

/// Options that may be written without a value.
const SWITCHES: &[&str] = &[
    "time_based",
    "direct",
    "buffered",
    "invalidate",
    "create_on_open",
    "unlink",
    "end_fsync",
    "do_verify",
    "verify_fatal",
    "norandommap",
    "randrepeat",
    "allrandrepeat",
    "group_reporting",
    "new_group",
    "stonewall",
    "wait_for_previous",
    "thread",
    "overwrite",
    "refill_buffers",
    "scramble_buffers",
    "create_serialize",
];

/// Takes an option in.
///
/// # Errors
/// [`Error::Input`] with the place, for a wrong value, and for a name that nobody knows, unless `ignore_unknown`.
pub fn apply(settings: &mut Settings, entry: &Entry, ignore_unknown: bool) -> Result<(), Error> {
    let fail = |what: String| Error::input(&entry.place, what);
    let Some((_, set)) = TABLE.iter().find(|(names, _)| names.contains(&entry.key.as_str())) else {
        return match ignore_unknown {
            true => Ok(()),
            false => Err(fail(unknown(&entry.key))),
        };
    };
    if entry.value.is_none() && !is_switch(&entry.key) {
        return Err(fail(format!("{}: expected a value, {}=...", entry.key, entry.key)));
    }
    let value = variables::substitute(entry.value.as_deref().unwrap_or_default()).map_err(fail)?;
    set(settings, &value).map_err(|what| fail(format!("{}: {what}", entry.key)))
}

/// Every name, the usual ones and the others.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|(names, _)| names.iter().copied())
}

/// May it be written without a value?
pub fn is_switch(name: &str) -> bool {
    SWITCHES.contains(&name)
}

fn unknown(name: &str) -> String {
    let hint = match nearest(name, names()) {
        Some(near) => format!("did you mean {near}? "),
        None => String::new(),
    };
    format!("unknown option {name}: {hint}--ignore-unknown goes on without it")
}

fn store<T>(target: &mut T, value: Result<T, String>) -> Result<(), String> {
    *target = value?;
    Ok(())
}

fn at_least_one(text: &str) -> Result<u64, String> {
    match integer(text)? {
        0 => Err(format!("{text:?}: expected 1 or more")),
        number => Ok(number),
    }
}

fn percent(text: &str) -> Result<u8, String> {
    match integer(text)? {
        number @ 0..=100 => Ok(number as u8),
        _ => Err(format!("{text:?}: expected 0 to 100")),
    }
}

/// A name; fio would take `:` for a list of several.
fn one_name(text: &str) -> Result<String, String> {
    let plain = text.replace("\\:", "");
    match plain.contains(':') || text.is_empty() {
        true => Err(format!("{text:?}: expected one name (write \\: for a colon); several files are not supported")),
        false => Ok(text.replace("\\:", ":")),
    }
}

fn only(text: &str, accepted: &str, why: &str) -> Result<(), String> {
    match text == accepted {
        true => Ok(()),
        false => Err(format!("{text:?}: expected {accepted}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;
    use crate::job_file::entry;

    fn set(text: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        let entry = entry(text, Place::CommandLine);
        apply(&mut settings, &entry, false).map(|()| settings).map_err(|error| error.to_string())
    }

    #[test]
    fn switches_are_options_and_names_are_unique() {
        let mut all: Vec<_> = names().collect();
        assert!(SWITCHES.iter().all(|name| all.contains(name)));
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("iodeph=4", "unknown option iodeph: did you mean iodepth?"),
            ("bs", "bs: expected a value"),
            ("bs=4q", "bs: \"4q\": expected a size"),
            ("rw=trim", "rw: \"trim\": expected one of read,"),
            ("numjobs=0", "numjobs: \"0\": expected 1 or more"),
            ("rwmixread=101", "rwmixread: \"101\": expected 0 to 100"),
            ("filename=a:b", "filename: \"a:b\": expected one name"),
            ("nrfiles=2", "nrfiles: \"2\": expected 1"),
        ];
        for (text, said) in cases {
            let error = set(text).expect_err(text);
            assert!(error.starts_with(&format!("command line: {said}")), "{error}");
        }
    }

    #[test]
    fn switches_negate_and_aliases_hold() {
        assert!(!set("norandommap").expect("known").random_map);
        assert!(set("buffered=0").expect("known").direct);
        assert_eq!(set("rwmixwrite=30").expect("known").mix_read, 70);
        assert_eq!(set("filename=a\\:b").expect("known").filename.as_deref(), Some("a:b"));
        assert!(set("wait_for_previous").expect("known").stonewall);
    }
}
