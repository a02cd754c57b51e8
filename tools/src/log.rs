//! Diagnostics, on stderr: out of the way of results.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::args::{LogArgs, LogFormat};

/// What is logged where nobody says.
const DEFAULT_LEVEL: &str = "warn";

/// Checks a level, or levels by module.
///
/// # Errors
/// It is none: the filter itself would take a mistyped level for the name of a module, and log everything of that.
pub fn parse_level(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let level = part.rsplit_once('=').map_or(part, |(_module, level)| level);
        if level.is_empty() || level.parse::<LevelFilter>().is_err() {
            return Err(format!("`{level}` is no level"));
        }
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Writes what `RUST_LOG` or the arguments ask for to stderr. A server in the background has another stderr: its `--log`.
pub fn to_stderr(args: &LogArgs) {
    let asked = args.log_level.as_ref().and_then(|level| EnvFilter::try_new(level).ok());
    let filter = asked.or_else(|| EnvFilter::try_from_default_env().ok()).unwrap_or_else(|| EnvFilter::new(DEFAULT_LEVEL));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match args.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}
