//! What stands for something else in the value of an option.

use nix::unistd::{SysconfVar, sysconf};

/// Puts `${NAME}` (environment) and `$pagesize`, `$mb_memory` and `$ncpus` (this machine) in place. `$jobname`,
/// `$jobnum` and `$filenum` stay until a job's files are named.
///
/// # Errors
/// A message for a variable that is not set, and for `${` without `}`.
pub fn substitute(value: &str) -> Result<String, String> {
    let mut done = String::new();
    let mut rest = value;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) = after.split_once('}').ok_or_else(|| format!("{value}: expected a }} behind ${{"))?;
        let set = std::env::var(name).map_err(|_| format!("{value}: the environment variable {name} is not set"))?;
        done.push_str(before);
        done.push_str(&set);
        rest = behind;
    }
    done.push_str(rest);
    let machine = [
        ("$pagesize", SysconfVar::PAGE_SIZE, 1),
        ("$mb_memory", SysconfVar::_PHYS_PAGES, page_bytes()),
        ("$ncpus", SysconfVar::_NPROCESSORS_ONLN, 1),
    ];
    for (name, variable, unit) in machine {
        if done.contains(name) {
            let mut number = system(variable)? * unit;
            if name == "$mb_memory" {
                number >>= 20;
            }
            done = done.replace(name, &number.to_string());
        }
    }
    Ok(done)
}

fn page_bytes() -> u64 {
    system(SysconfVar::PAGE_SIZE).unwrap_or(4096)
}

fn system(variable: SysconfVar) -> Result<u64, String> {
    let answer = sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok());
    answer.ok_or_else(|| "the system does not tell this number: write it out".to_owned())
}

/// Puts a job's name and the number of its clone in place.
pub fn for_clone(text: &str, job: &str, clone: u32) -> String {
    text.replace("$jobname", job).replace("$jobnum", &clone.to_string()).replace("$filenum", "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_and_environment() {
        let home = std::env::var("PATH").expect("set");
        assert_eq!(substitute("a${PATH}b").as_deref(), Ok(format!("a{home}b").as_str()));
        assert_eq!(substitute("$pagesize"), Ok(page_bytes().to_string()));
        assert!(substitute("4*$mb_memory").is_ok_and(|text| text.starts_with("4*") && !text.contains('$')));
        assert!(substitute("${NO_SUCH_VARIABLE}").is_err_and(|text| text.contains("NO_SUCH_VARIABLE")));
        assert!(substitute("${X").is_err());
        assert_eq!(substitute("$jobname.x").as_deref(), Ok("$jobname.x"));
        assert_eq!(for_clone("$jobname.$jobnum.$filenum", "a", 3), "a.3.0");
    }
}
