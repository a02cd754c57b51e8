//! Byte ranges as callers write them and as the ioctls take them.

use std::ops::{Bound, RangeBounds};

use crate::Error;

/// Offset and length, where length 0 means to the end of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl Span {
    /// Resolves `..`, `a..`, `a..b` and their kin; an empty range is refused because length 0 has a meaning.
    pub(crate) fn new(range: impl RangeBounds<u64>) -> Result<Span, Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => {
                return Ok(Span { offset: start, length: 0 });
            }
        };
        if end <= start {
            return Err(Error::Range { start, end, limit_start: 0, limit_end: u64::MAX });
        }
        Ok(Span { offset: start, length: end - start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_resolve() {
        let span = |offset, length| Span { offset, length };
        assert_eq!(Span::new(..).ok(), Some(span(0, 0)));
        assert_eq!(Span::new(5..).ok(), Some(span(5, 0)));
        assert_eq!(Span::new(5..=6).ok(), Some(span(5, 2)));
        assert_eq!(Span::new(..u64::MAX).ok(), Some(span(0, u64::MAX)));
        assert!(Span::new(5..5).is_err());
    }
}
