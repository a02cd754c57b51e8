//! Expected output, in which `...` stands for what differs from run to run.

const ANYTHING: &str = "...";

/// Whether text is what a line says; `...` in the line stands for any text, also none.
pub fn line_matches(line: &str, text: &str) -> bool {
    let mut parts = line.split(ANYTHING);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether lines are those expected; an expected line `...` stands for any number of lines, also none.
pub fn lines_match(expected: &[String], lines: &[String]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((line, rest)) if line == ANYTHING => (0..=lines.len()).any(|skipped| lines_match(rest, &lines[skipped..])),
        Some((line, rest)) => lines.first().is_some_and(|text| line_matches(line, text)) && lines_match(rest, &lines[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_stand_for_any_text() {
        for (line, text) in [("a", "a"), ("a...", "abc"), ("...c", "abc"), ("a...c", "ac"), ("...", ""), ("a...b...", "axxbyy")] {
            assert!(line_matches(line, text), "{line} {text}");
        }
        for (line, text) in [("a", "ab"), ("a...", "ba"), ("a...ba", "aba a"), ("ab...b", "ab"), ("a...b...c", "a-c-b")] {
            assert!(!line_matches(line, text), "{line} {text}");
        }
    }

    #[test]
    fn a_line_of_dots_stands_for_any_lines() {
        let lines = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (expected, text) in
            [("", ""), ("...", ""), ("...", "a b"), ("a ... d", "a b c d"), ("... d", "d"), ("... b ...", "a b c")]
        {
            assert!(lines_match(&lines(expected), &lines(text)), "{expected} / {text}");
        }
        for (expected, text) in [("", "a"), ("a", ""), ("a ... d", "a b c"), ("... d", "d e")] {
            assert!(!lines_match(&lines(expected), &lines(text)), "{expected} / {text}");
        }
    }
}
