//! `mount.fuse.peerfs`: what mount(8) and fstab(5) start for a filesystem of the type `fuse.peerfs`.
//!
//! `mount.fuse.peerfs DEVICE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, as mount(8) states it.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::args::{self, Parsed};
use crate::failure::{self, Codes, Usage};
use crate::{log, output};

/// What mount(8) wants to hear from a helper.
const CODES: Codes = Codes { failure: 32, usage: 1 };

/// Whether a command line, program name first, is one of mount(8).
pub fn is_called(arguments: &[OsString]) -> bool {
    let name = arguments.first().and_then(|name| Path::new(name).file_name());
    name.is_some_and(|name| name.to_string_lossy().starts_with("mount."))
}

/// Mounts as the command line says.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let parsed = match as_mount_command(arguments) {
        Ok(line) => args::parse(line.into_iter()),
        Err(Usage(line)) => Parsed::Usage(line),
    };
    match parsed {
        Parsed::Run(cli) => {
            log::to_stderr(&cli.log);
            failure::exit_code(crate::run(*cli), CODES)
        }
        Parsed::Print(text) => failure::exit_code(output::print(&text).map(|()| ExitCode::SUCCESS), CODES),
        Parsed::Usage(line) => failure::usage(&line, CODES),
    }
}

/// The same as a `peerfs mount` command line.
fn as_mount_command(arguments: Vec<OsString>) -> Result<Vec<OsString>, Usage> {
    let mut rewritten = vec![OsString::from("peerfs"), OsString::from("mount")];
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-t") => drop(rest.next()),
            Some("-N") => {
                return Err(Usage("mount -N: this helper changes no namespace; use nsenter --mount=NAMESPACE mount ...".into()));
            }
            Some("-o") => rewritten.extend([argument].into_iter().chain(rest.next())),
            Some(flags) if is_flags(flags) => rewritten.extend(flags.contains('f').then(|| OsString::from("--fake"))),
            _ => rewritten.push(argument),
        }
    }
    Ok(rewritten)
}

/// Sloppy, fake, no mtab, verbose: only the second changes what is done.
fn is_flags(argument: &str) -> bool {
    argument.strip_prefix('-').is_some_and(|flags| !flags.is_empty() && flags.chars().all(|flag| "sfnv".contains(flag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Command;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn it_is_told_by_its_name() {
        assert!(is_called(&words("/sbin/mount.fuse.peerfs x /mnt")));
        assert!(!is_called(&words("/usr/bin/peerfs mount x /mnt")));
        assert!(!is_called(&[]));
    }

    #[test]
    fn what_mount_8_passes_is_a_mount() {
        let lines = [
            ("mount.fuse.peerfs image:/v /mnt -n -s -v -o rw,cmb=1M -t fuse.peerfs", false),
            ("mount.fuse.peerfs image:/v /mnt -o rw,cmb=1M", false),
            ("mount.fuse.peerfs -sfnv -o rw,cmb=1M image:/v /mnt", true),
        ];
        for (line, fake) in lines {
            let command = as_mount_command(words(line)).expect(line);
            let Parsed::Run(cli) = args::parse(command.into_iter()) else { panic!("{line} is refused") };
            let Command::Mount(args) = cli.command else { panic!("{line} is another command") };
            let options = vec!["rw,cmb=1M".to_owned()];
            assert_eq!((args.device.as_str(), args.options, args.fake), ("image:/v", options, fake), "{line}");
        }
    }

    #[test]
    fn another_namespace_is_refused() {
        let Err(Usage(line)) = as_mount_command(words("mount.fuse.peerfs -N 7 image:/v /mnt")) else { panic!("accepted") };
        assert!(line.contains("nsenter"), "{line}");
    }
}
