//! What host and guest say to each other over a serial line: one JSON object a line.

use serde::{Deserialize, Serialize};

/// From the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// The runner is up.
    Hello,
    /// A case begins.
    Begin {
        /// Its name.
        case: String,
    },
    /// A case ended.
    End {
        /// Its name.
        case: String,
        /// What failed, if something did.
        failure: Option<String>,
        /// How long it took by the guest's clock.
        milliseconds: u64,
    },
    /// A version of a file is on the device for good.
    Synced {
        /// Which writer, from 0.
        writer: usize,
        /// Which version, from 1.
        version: u64,
    },
    /// A namespace has the bytes of a seed ([`crate::lab::guest::contents`]) for good. The host looks.
    Holds {
        /// Whose.
        namespace: Namespace,
        /// Where, bytes.
        offset: u64,
        /// How many, bytes.
        length: u64,
        /// What they are derived from.
        seed: u64,
    },
    /// Something worth reading.
    Note {
        /// What.
        text: String,
    },
    /// Pull a controller out: device_del.
    Unplug {
        /// Its namespace says which.
        namespace: Namespace,
    },
    /// All is done.
    Bye,
}

/// The namespaces of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Namespace {
    /// Of the controller with the PMR.
    A,
    /// Of the one with the CMB.
    B,
    /// Of the one whose medium is slow.
    Slow,
}

impl Namespace {
    /// Name of the controller in the machine's description.
    pub fn device(self) -> &'static str {
        match self {
            Namespace::A => "controller-a",
            Namespace::B => "controller-b",
            Namespace::Slow => "controller-slow",
        }
    }
}

/// To the guest: what to do in this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Number of the boot over the same disks, from 0.
    pub boot: usize,
    /// Names of cases.
    pub cases: Vec<String>,
    /// What contents are derived from.
    pub seed: u64,
    /// Cases that have a short form run in full.
    pub full: bool,
}

/// A message as a line without its end.
pub fn line(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("messages have only text and numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_says() {
        let report = Report::End { case: "a".into(), failure: Some("two\nlines".into()), milliseconds: 7 };
        let text = line(&report);
        assert!(!text.contains('\n'));
        assert_eq!(serde_json::from_str::<Report>(&text).expect("JSON"), report);
    }
}
