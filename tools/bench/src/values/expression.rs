//! Arithmetic in numbers: `(2+3)*4k`.

use std::iter::Peekable;
use std::str::Chars;

/// Deepest nesting of brackets.
const DEEPEST: u32 = 32;

/// Evaluates `text`, in which `operand` reads each number with its unit.
///
/// # Errors
/// What was expected.
pub fn evaluate(text: &str, operand: &dyn Fn(&str) -> Result<u64, String>) -> Result<u64, String> {
    let mut reader = Reader { rest: text.chars().peekable(), operand, depth: 0 };
    let value = reader.sum()?;
    match reader.token() {
        None => Ok(value),
        Some(character) => Err(format!("{text}: unexpected {character}")),
    }
}

struct Reader<'t> {
    rest: Peekable<Chars<'t>>,
    operand: &'t dyn Fn(&str) -> Result<u64, String>,
    depth: u32,
}

impl Reader<'_> {
    /// The next character that is not blank, which stays.
    fn token(&mut self) -> Option<char> {
        while self.rest.next_if(|character| character.is_whitespace()).is_some() {}
        self.rest.peek().copied()
    }

    fn sum(&mut self) -> Result<u64, String> {
        let mut value = self.product()?;
        while let Some(operator) = self.token().filter(|token| "+-".contains(*token)) {
            self.rest.next();
            let right = self.product()?;
            let result = if operator == '+' { value.checked_add(right) } else { value.checked_sub(right) };
            value = result.ok_or("the result is negative or too large")?;
        }
        Ok(value)
    }

    fn product(&mut self) -> Result<u64, String> {
        let mut value = self.factor()?;
        while let Some(operator) = self.token().filter(|token| "*/".contains(*token)) {
            self.rest.next();
            let right = self.factor()?;
            let result = if operator == '*' { value.checked_mul(right) } else { value.checked_div(right) };
            value = result.ok_or("the result is too large, or a division by 0")?;
        }
        Ok(value)
    }

    fn factor(&mut self) -> Result<u64, String> {
        if self.token() == Some('(') {
            self.rest.next();
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err(format!("more than {DEEPEST} brackets in each other"));
            }
            let value = self.sum()?;
            self.depth -= 1;
            return match self.token() {
                Some(')') => self.rest.next().map(|_| value).ok_or_else(String::new),
                _ => Err("expected )".to_owned()),
            };
        }
        let mut word = String::new();
        while let Some(character) = self.rest.next_if(|character| character.is_ascii_alphanumeric()) {
            word.push(character);
        }
        (self.operand)(&word)
    }
}

#[cfg(test)]
mod tests {
    fn evaluate(text: &str) -> Result<u64, String> {
        super::evaluate(text, &|word| word.parse().map_err(|_| format!("{word:?} is no number")))
    }

    #[test]
    fn products_bind_closer_and_brackets_closest() {
        assert_eq!(evaluate("2+3*4"), Ok(14));
        assert_eq!(evaluate("( 2 + 3 ) * 4"), Ok(20));
        assert_eq!(evaluate("20-8/2-1"), Ok(15));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "1+", "(1", "1)", "1/0", "1-2", "18446744073709551615+1", "1 2", "4!"] {
            assert!(evaluate(text).is_err(), "{text}");
        }
        assert!(evaluate(&"(".repeat(100_000)).is_err());
    }
}
