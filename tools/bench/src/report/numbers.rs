//! Numbers and times as fio prints them.

use std::time::{SystemTime, UNIX_EPOCH};

const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];

/// A number in at most `places` characters, with the unit that this takes; `base` is 1000 or 1024, and `from` how many units
/// it has already.
pub fn short(value: u64, places: usize, base: u64, from: usize) -> String {
    let mut whole = value;
    let mut rest = 0;
    let mut unit = from;
    while whole.to_string().len() > places && unit + 1 < UNITS.len() {
        rest = whole % base;
        whole /= base;
        unit += 1;
    }
    let infix = if base == 1024 && unit > 0 { "i" } else { "" };
    let name = if base == 1024 && unit == 1 { "K" } else { UNITS[unit] };
    let decimals = places.saturating_sub(whole.to_string().len() + 1);
    if unit == from || decimals == 0 {
        return format!("{}{name}{infix}", whole + u64::from(2 * rest >= base));
    }
    let text = format!("{:.decimals$}", whole as f64 + rest as f64 / base as f64);
    format!("{text}{name}{infix}")
}

/// Bytes per second, in both kinds of unit: `58.0MiB/s (60.8MB/s)`.
pub fn bandwidth(bytes: u64) -> (String, String) {
    let binary = if bytes < 1024 { format!("{bytes}B/s") } else { format!("{}B/s", short(rounded(bytes, 1024), 4, 1024, 1)) };
    let decimal = if bytes < 1000 { format!("{bytes}B/s") } else { format!("{}B/s", short(rounded(bytes, 1000), 4, 1000, 1)) };
    (binary, decimal)
}

fn rounded(bytes: u64, unit: u64) -> u64 {
    bytes / unit + u64::from(2 * (bytes % unit) >= unit)
}

/// Bytes, in both kinds of unit.
pub fn bytes(bytes: u64) -> (String, String) {
    let (binary, decimal) = bandwidth(bytes);
    (binary.replace("/s", ""), decimal.replace("/s", ""))
}

/// A moment in UTC, as asctime(3) prints it.
pub fn time(moment: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = moment.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{} {} {day:2} {:02}:{:02}:{:02} {year}",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// Year, month from 0 and day of the month, of a day counted from 1970-01-01 (Hinnant, "chrono-compatible low-level date
/// algorithms").
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = (month + 2) % 12;
    (era * 400 + year + u64::from(month < 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_look_as_fios() {
        assert_eq!(short(14_900, 4, 1000, 0), "14.9k");
        assert_eq!(short(6479, 4, 1000, 0), "6479");
        assert_eq!(short(5_253_300, 6, 1000, 0), "5253.3k");
        assert_eq!(bandwidth(60_800_000), ("58.0MiB/s".to_owned(), "60.8MB/s".to_owned()));
        assert_eq!(bandwidth(279_969_792), ("267MiB/s".to_owned(), "280MB/s".to_owned()));
        assert_eq!(bytes(5704 << 10), ("5704KiB".to_owned(), "5841kB".to_owned()));
        assert_eq!(bytes(10), ("10B".to_owned(), "10B".to_owned()));
        assert_eq!(bandwidth(u64::MAX).0, "16384PiB/s");
    }

    #[test]
    fn moments_have_their_date() {
        let at = |seconds| time(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "Thu Jan  1 00:00:00 1970");
        assert_eq!(at(951_782_400 + 86_399), "Tue Feb 29 23:59:59 2000");
        assert_eq!(at(1_795_864_756), "Sat Nov 28 11:19:16 2026");
    }
}
