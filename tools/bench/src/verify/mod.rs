//! Blocks that prove where and when they were written.

mod header;
mod history;

use header::Header;
pub use header::SMALLEST_BLOCK;
pub use history::{History, Written};

use crate::random::{Random, mix};
use crate::settings::{Settings, VerifyKind};
use crate::values::PatternPiece;

/// Fills blocks before they are written, and looks at them after they were read.
#[derive(Debug, Clone)]
pub struct Verifier {
    kind: VerifyKind,
    pattern: Option<Vec<PatternPiece>>,
    seed: u64,
}

impl Verifier {
    /// What a job asks for, if it verifies. The seed is that of its clone.
    pub fn new(settings: &Settings, seed: u64) -> Option<Verifier> {
        let kind = settings.verify?;
        Some(Verifier { kind, pattern: settings.verify_pattern.clone(), seed })
    }

    /// Fills a block that is to be written at `offset`, as the clone's write with this number.
    pub fn fill(&self, offset: u64, number: u64, block: &mut [u8]) {
        match self.kind {
            VerifyKind::Pattern => self.fill_payload(offset, number, block),
            VerifyKind::Crc32c => {
                let Some((head, payload)) = block.split_at_mut_checked(SMALLEST_BLOCK as usize) else { return };
                self.fill_payload(offset, number, payload);
                Header::new(offset, self.content_seed(offset, number), payload).store(head);
            }
        }
    }

    /// Looks at a block that was read from `offset`; `number` is that of the write, where it is known.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, offset: u64, number: Option<u64>, block: &[u8]) -> Result<(), String> {
        match self.kind {
            VerifyKind::Crc32c => Header::check(offset, number.map(|number| self.content_seed(offset, number)), block),
            VerifyKind::Pattern => {
                let mut expected = vec![0; block.len()];
                self.fill_payload(offset, 0, &mut expected);
                match block.iter().zip(&expected).position(|(found, expected)| found != expected) {
                    None => Ok(()),
                    Some(at) => Err(format!("byte {at} is {:#04x} instead of {:#04x}", block[at], expected[at])),
                }
            }
        }
    }

    fn content_seed(&self, offset: u64, number: u64) -> u64 {
        mix(self.seed ^ mix(offset) ^ number)
    }

    fn fill_payload(&self, offset: u64, number: u64, payload: &mut [u8]) {
        let Some(pieces) = &self.pattern else {
            return Random::new(self.content_seed(offset, number), 0).fill(payload);
        };
        let mut turn = Vec::new();
        for piece in pieces {
            match piece {
                PatternPiece::Bytes(bytes) => turn.extend_from_slice(bytes),
                PatternPiece::Offset => turn.extend_from_slice(&offset.to_le_bytes()),
            }
        }
        for chunk in payload.chunks_mut(turn.len()) {
            chunk.copy_from_slice(&turn[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifier(kind: VerifyKind, pattern: Option<&str>) -> Verifier {
        let pattern = pattern.map(|text| crate::values::pattern(text).expect("good"));
        Verifier { kind, pattern, seed: 9 }
    }

    #[test]
    fn every_flipped_byte_is_found() {
        for (kind, pattern) in
            [(VerifyKind::Crc32c, None), (VerifyKind::Crc32c, Some("0xab")), (VerifyKind::Pattern, Some("\"ab\"%o"))]
        {
            let verifier = verifier(kind, pattern);
            let mut block = vec![0; 512];
            verifier.fill(4096, 3, &mut block);
            assert_eq!(verifier.check(4096, Some(3), &block), Ok(()));
            for at in 0..block.len() {
                block[at] ^= 1;
                assert!(verifier.check(4096, Some(3), &block).is_err(), "{kind:?}: byte {at}");
                block[at] ^= 1;
            }
        }
    }

    #[test]
    fn blocks_of_other_places_writes_and_lengths_are_found() {
        let verifier = verifier(VerifyKind::Crc32c, None);
        let mut block = vec![0; 4096];
        verifier.fill(4096, 3, &mut block);
        assert!(verifier.check(8192, Some(3), &block).is_err());
        assert!(verifier.check(4096, Some(2), &block).is_err_and(|said| said.contains("another write")));
        assert_eq!(verifier.check(4096, None, &block), Ok(()));
        assert!(verifier.check(4096, Some(3), &block[..2048]).is_err());
        assert!(verifier.check(4096, Some(3), &block[..8]).is_err());
    }
}
