//! A benchmark that reads fio job files as they are and knows both paths of peerfs.
//!
//! Data flows one way: words and files ([`command_line`], [`job_file`]) become options as typed
//! ([`settings`]), then checked [`Job`]s in a [`Plan`], before any work starts; [`run`] makes a
//! [`Report`] of them, which [`Report::json`] and [`Report::text`] show as fio would.

#![forbid(unsafe_code)]

mod claims;
pub mod command_line;
mod engine;
mod error;
mod files;
mod job;
pub mod job_file;
mod pattern;
mod plan;
mod random;
mod rate;
mod report;
mod runner;
pub mod settings;
mod stats;
mod values;
mod variables;
mod verify;

pub use error::{Error, Place};
pub use job::Job;
pub use plan::Plan;
pub use report::Report;
pub use runner::{Progress, run};
