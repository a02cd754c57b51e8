//! Who may ask: whoever was told the token.

use std::fmt;
use std::io;

/// 128 bits that nobody can guess.
pub struct Token(String);

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// What getrandom(2) answers.
    pub fn random() -> io::Result<Token> {
        Ok(Token(format!("{:016x}{:016x}", peerfs_sys::random_u64()?, peerfs_sys::random_u64()?)))
    }

    /// `given` is the token. How long the comparison takes does not tell how much of it is right.
    pub fn is(&self, given: &str) -> bool {
        let differences = self.0.bytes().zip(given.bytes()).fold(0, |all, (ours, theirs)| all | (ours ^ theirs));
        given.len() == self.0.len() && differences == 0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_of_it_is_it() {
        let token = Token::random().expect("random numbers");
        let text = token.to_string();
        assert!(token.is(&text) && text.len() == 32);
        assert!(!token.is(&text[..31]) && !token.is(&format!("{text}0")) && !token.is(""));
        assert!(!token.is(&Token::random().expect("random numbers").to_string()));
    }
}
