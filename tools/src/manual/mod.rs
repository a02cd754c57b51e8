//! The manual pages. Names, synopses and options come from the definition of the command line; what that does
//! not know, examples above all, is in the files beside this one, in the language of man(7).

use std::io;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;

/// Sections that are added to the page of a command.
const SECTIONS: &[(&str, &str)] = &[
    ("peerfs", include_str!("peerfs.man")),
    ("peerfs-copy", include_str!("peerfs-copy.man")),
    ("peerfs-fsck", include_str!("peerfs-fsck.man")),
    ("peerfs-map", include_str!("peerfs-map.man")),
    ("peerfs-mkfs", include_str!("peerfs-mkfs.man")),
    ("peerfs-mount", include_str!("peerfs-mount.man")),
    ("peerfs-nvme", include_str!("peerfs-nvme.man")),
    ("peerfs-query", include_str!("peerfs-query.man")),
    ("peerfs-revoke", include_str!("peerfs-revoke.man")),
    ("peerfs-topology", include_str!("peerfs-topology.man")),
    ("peerfs-umount", include_str!("peerfs-umount.man")),
];

/// The helper has no definition: mount(8) says how it is called.
const MOUNT_HELPER: &str = include_str!("mount.fuse.peerfs.8");

/// What the program is, for who knows nothing of it.
const DESCRIPTION: &str = "\
A program opens a file; a peer device (the importer: a GPU, a NIC, another NVMe drive) wants its blocks. peerfs decides, \
range by range, whether the importer may reach them directly, through memory of the storage device (the aperture), or falls \
back to main memory filled by the filesystem. It can take a direct mapping back at any moment, whatever the importer does.

A direct mapping is semantically invisible: the same bytes, errors and durability as through read(2) and write(2). What \
cannot be made so falls back, and query says why.";

/// A page, ready to be written.
pub struct Page {
    /// Name and section: `peerfs-mkfs.1`.
    pub file_name: String,
    /// In the language of man(7).
    pub text: String,
}

/// All pages.
pub fn pages() -> io::Result<Vec<Page>> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut pages = vec![Page { file_name: "mount.fuse.peerfs.8".into(), text: MOUNT_HELPER.into() }];
    add_pages(&program, &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &Command, pages: &mut Vec<Page>) -> io::Result<()> {
    pages.push(page(command)?);
    shown(command).try_for_each(|command| add_pages(command, pages))
}

/// The subcommands that are for people.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

fn page(command: &Command) -> io::Result<Page> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(for_reading(command));
    let mut rest = Vec::new();
    man.render_description_section(&mut rest)?;
    man.render_options_section(&mut rest)?;
    if shown(command).next().is_some() {
        man.render_subcommands_section(&mut rest)?;
    }
    let mut text = head(&name, &for_reading(command));
    text.push_str(&String::from_utf8_lossy(&rest));
    text.extend(SECTIONS.iter().filter(|(of, _)| *of == name).map(|(_, sections)| *sections));
    if name != "peerfs" {
        text.push_str(".SH \"SEE ALSO\"\n.BR peerfs (1)\n");
    }
    Ok(Page { file_name: format!("{name}.1"), text })
}

/// Title, name and synopsis, the last as the program's help has it.
fn head(name: &str, command: &Command) -> String {
    let (title, version) = (name.to_uppercase(), env!("CARGO_PKG_VERSION"));
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").lines().map(str::trim).collect::<Vec<_>>().join("\n.br\n");
    let escape = |text: &str| text.replace('\\', "\\e").replace('-', "\\-");
    // As clap_mangen begins its pages: apostrophes that every formatter shows.
    let mut text = String::from(".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n");
    text += &format!(".TH {} 1 \"\" \"peerfs {version}\" \"peerfs manual\"\n", escape(&title));
    text += &format!(".SH NAME\n{} \\- {}\n", escape(name), escape(&about));
    text + &format!(".SH SYNOPSIS\n{}\n", escape(&usage))
}

/// A page has room for more than a line of help.
fn for_reading(command: &Command) -> Command {
    let command = command.clone();
    match command.get_name() {
        "peerfs" => command.about("a filesystem whose files devices can map").long_about(DESCRIPTION),
        "mount" => command.mut_arg("options", |option| option.help("Options, separated by commas: see MOUNT OPTIONS")),
        _ => command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount_options;

    fn names() -> Vec<String> {
        pages().expect("written to memory").into_iter().map(|page| page.file_name).collect()
    }

    #[test]
    fn every_command_has_a_page() {
        let names = names();
        for name in ["peerfs.1", "peerfs-mkfs.1", "peerfs-nvme-bind.1", "mount.fuse.peerfs.8"] {
            assert!(names.iter().any(|page| page == name), "{name}: {names:?}");
        }
        assert!(!names.iter().any(|page| page.contains("guardian") || page.contains("help")), "{names:?}");
    }

    #[test]
    fn every_addition_has_its_page() {
        let names = names();
        for (name, _) in SECTIONS {
            assert!(names.contains(&format!("{name}.1")), "{name} is no command");
        }
    }

    #[test]
    fn what_the_page_of_mount_lists_is_accepted() {
        let page = include_str!("peerfs-mount.man");
        let (_, list) = page.split_once(".SH \"MOUNT OPTIONS\"").expect("the section");
        let tags = list.split(".TP\n").skip(1).filter_map(|entry| entry.lines().next());
        let options: Vec<&str> = tags.filter_map(|line| line.strip_prefix(".B ").or(line.strip_prefix(".BI "))).collect();
        assert!(options.len() > 20, "{options:?}");
        for option in options {
            let word = option.split([' ', '\\']).next().unwrap_or_default();
            let answer = mount_options::parse(&[word.to_owned()]).map_err(|error| error.to_string());
            assert!(!answer.is_err_and(|why| why.contains("is not known")), "{option} is not known");
        }
    }
}
