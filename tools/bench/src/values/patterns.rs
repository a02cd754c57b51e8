//! `verify_pattern`: bytes that fill blocks, and where the offset stands among them.

/// Longest pattern, bytes, as in fio.
const LONGEST: usize = 512;

/// A piece of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PatternPiece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The block's offset in the file, 8 bytes, little endian (`%o`).
    Offset,
}

impl PatternPiece {
    /// Length, bytes.
    pub fn length(&self) -> usize {
        match self {
            PatternPiece::Bytes(bytes) => bytes.len(),
            PatternPiece::Offset => size_of::<u64>(),
        }
    }
}

/// Pieces without anything between them: `0xABCD` (bytes in the order written), `"text"`, `-12` or `12` (a decimal number,
/// little endian, in as few bytes as it needs), `%o`.
pub fn pattern(text: &str) -> Result<Vec<PatternPiece>, String> {
    let expected = || format!("{text:?}: expected 0x and hexadecimal digits, \"text\", a number, %o, or several of these");
    let mut pieces = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (piece, behind) = next(rest).ok_or_else(expected)?;
        pieces.push(piece);
        rest = behind;
    }
    match pieces.iter().map(PatternPiece::length).sum() {
        1..=LONGEST => Ok(pieces),
        _ => Err(format!("{text:?}: expected 1 to {LONGEST} bytes")),
    }
}

fn next(text: &str) -> Option<(PatternPiece, &str)> {
    if let Some(rest) = text.strip_prefix("%o") {
        return Some((PatternPiece::Offset, rest));
    }
    if let Some(rest) = text.strip_prefix('"') {
        let (inside, behind) = rest.split_once('"')?;
        return Some((PatternPiece::Bytes(inside.as_bytes().to_vec()), behind));
    }
    if let Some(rest) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let (digits, behind) = rest.split_at(rest.find(|digit: char| !digit.is_ascii_hexdigit()).unwrap_or(rest.len()));
        return Some((PatternPiece::Bytes(hexadecimal(digits)?), behind));
    }
    let sign = text.strip_prefix('-').map_or(0, |_| 1);
    let end = text[sign..].find(|digit: char| !digit.is_ascii_digit()).map_or(text.len(), |end| end + sign);
    let number: i32 = text[..end].parse().ok()?;
    let bytes = number.to_le_bytes();
    let used = if number < 0 { 4 } else { bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1) };
    Some((PatternPiece::Bytes(bytes[..used].to_vec()), &text[end..]))
}

fn hexadecimal(digits: &str) -> Option<Vec<u8>> {
    let padded = format!("{}{digits}", if digits.len() % 2 == 1 { "0" } else { "" });
    let bytes: Option<Vec<u8>> =
        (0..padded.len() / 2).map(|at| u8::from_str_radix(&padded[2 * at..2 * at + 2], 16).ok()).collect();
    bytes.filter(|bytes| !bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other() {
        let bytes = |bytes: &[u8]| PatternPiece::Bytes(bytes.to_vec());
        assert_eq!(pattern("0xdeadbeef"), Ok(vec![bytes(&[0xde, 0xad, 0xbe, 0xef])]));
        assert_eq!(pattern("\"abc\"-1%o"), Ok(vec![bytes(b"abc"), bytes(&[255; 4]), PatternPiece::Offset]));
        assert_eq!(pattern("0xabc"), Ok(vec![bytes(&[0x0a, 0xbc])]));
        assert_eq!(pattern("300"), Ok(vec![bytes(&[44, 1])]));
        for text in ["", "0x", "\"abc", "ü", "xyz", "-", "99999999999"] {
            assert!(pattern(text).is_err(), "{text}");
        }
    }
}
