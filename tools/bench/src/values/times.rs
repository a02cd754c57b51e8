//! Times.

use std::time::Duration;

/// A time; a bare number is in seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    time(text, 1_000_000)
}

/// A time; a bare number is in milliseconds.
pub fn milliseconds(text: &str) -> Result<Duration, String> {
    time(text, 1000)
}

/// One time, or `FIRST-LAST`, in seconds unless said otherwise.
pub fn time_range(text: &str) -> Result<(Duration, Duration), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = (seconds(first)?, seconds(last)?);
    match range.0 <= range.1 {
        true => Ok(range),
        false => Err(format!("{text:?}: expected the shorter time first")),
    }
}

fn time(text: &str, bare_us: u64) -> Result<Duration, String> {
    let expected = || format!("{text:?}: expected a time, for example 30, 500ms or 2m");
    let text = text.trim();
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_us = match unit.to_ascii_lowercase().as_str() {
        "" => bare_us,
        "us" | "usec" => 1,
        "ms" | "msec" => 1000,
        "s" | "sec" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    // A century: what is longer is a mistake, and ends beyond what clocks can tell.
    let longest_us = 100 * 365 * 86_400_000_000;
    let time_us = number.checked_mul(unit_us).filter(|time_us| *time_us <= longest_us).ok_or_else(expected)?;
    Ok(Duration::from_micros(time_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(seconds("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(milliseconds("5"), Ok(Duration::from_millis(5)));
        assert_eq!(time_range("1-2"), Ok((Duration::from_secs(1), Duration::from_secs(2))));
        assert!(time_range("2-1").is_err());
        for text in ["", "s", "5x", "-1", "99999999999999999999"] {
            assert!(seconds(text).is_err_and(|said| said.contains("expected a time")), "{text}");
        }
        assert!(seconds("99999999999d").is_err());
    }
}
