//! Counts, sizes and switches.

use super::expression::evaluate;

/// A size that may be a share of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Bytes.
    Bytes(u64),
    /// Percent of the file.
    Percent(u8),
}

impl Extent {
    /// Bytes, of a file with `whole` bytes.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Extent::Bytes(bytes) => bytes,
            Extent::Percent(percent) => (u128::from(whole) * u128::from(percent) / 100) as u64,
        }
    }
}

/// A whole number, decimal or with `0x`, or arithmetic with such.
pub fn integer(text: &str) -> Result<u64, String> {
    evaluate(text, &plain).map_err(|_| format!("{text:?}: expected a whole number"))
}

/// Bytes. `k`, `m`, `g`, `t` and `p` are powers of 1024, and `ki` ... powers of 1000, as in fio with its default
/// kb_base=1024; a `b` behind them changes nothing.
pub fn size(text: &str) -> Result<u64, String> {
    evaluate(text, &sized).map_err(|_| format!("{text:?}: expected a size, for example 4k, 16m or 1g"))
}

/// [`size`] or a percentage.
pub fn extent(text: &str) -> Result<Extent, String> {
    match text.strip_suffix('%').map(|number| number.trim().parse()) {
        None => size(text).map(Extent::Bytes),
        Some(Ok(percent @ 0..=100)) => Ok(Extent::Percent(percent)),
        Some(_) => Err(format!("{text:?}: expected a size, or 0% to 100%")),
    }
}

/// As [`extent`].
pub fn offset(text: &str) -> Result<Extent, String> {
    extent(text)
}

/// 1 or 0; an option without a value means 1.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("{text:?}: expected 0 or 1")),
    }
}

fn plain(word: &str) -> Result<u64, String> {
    let parsed = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.map_err(|_| format!("{word:?}: expected a number"))
}

fn sized(word: &str) -> Result<u64, String> {
    if word.starts_with("0x") || word.starts_with("0X") {
        return plain(word);
    }
    let digits = word.find(|character: char| !character.is_ascii_digit()).unwrap_or(word.len());
    let (number, unit) = word.split_at(digits);
    let unit = unit.to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let (letter, base) = match unit.strip_suffix('i') {
        Some(letter) => (letter, 1000_u64),
        None => (unit, 1024),
    };
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == letter);
    let power = power.filter(|power| *power > 0 || base == 1024).ok_or_else(|| format!("{word:?}: an unknown unit"))?;
    plain(number)?.checked_mul(base.pow(power as u32)).ok_or_else(|| format!("{word:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_fios_units() {
        let cases = [
            ("512", 512),
            ("512b", 512),
            ("4k", 4096),
            ("4K", 4096),
            ("4kb", 4096),
            ("4ki", 4000),
            ("4KiB", 4000),
            ("1m", 1 << 20),
            ("2G", 2 << 30),
            ("0x10", 16),
            ("(1+1)*2k", 4096),
        ];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "4q", "4kk", "-1", "99999999p", "1.5g", "4 k", "1i"] {
            assert!(size(text).is_err_and(|said| said.contains("expected a size")), "{text}");
        }
    }

    #[test]
    fn shares_and_switches() {
        assert_eq!(extent("50%").map(|half| half.of(9)), Ok(4));
        assert!(extent("101%").is_err() && extent("x%").is_err());
        assert_eq!((boolean(""), boolean("0")), (Ok(true), Ok(false)));
        assert!(boolean("maybe").is_err());
    }
}
