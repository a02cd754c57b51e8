//! Values that may differ by direction: `READ,WRITE`.

use super::PerDirection;

/// Reads `BOTH`, `READ,WRITE`, `READ,` or `,WRITE`; a third part, for trims, is not looked at, since nothing is trimmed. An
/// empty part leaves what `target` has.
pub fn per_direction<T: Clone>(
    text: &str,
    target: &mut PerDirection<T>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<(), String> {
    let mut parts = text.split(',').map(str::trim);
    let read = parts.next().unwrap_or_default();
    let Some(write) = parts.next() else {
        let both = parse(read)?;
        *target = PerDirection { read: both.clone(), write: both };
        return Ok(());
    };
    if read.is_empty() && write.is_empty() || parts.count() > 1 {
        return Err(format!("{text:?}: expected one value, or READ,WRITE"));
    }
    if !read.is_empty() {
        target.read = parse(read)?;
    }
    if !write.is_empty() {
        target.write = parse(write)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_are_left_out_stay() {
        let apply = |text: &str| {
            let mut target = PerDirection { read: 1_u64, write: 2 };
            per_direction(text, &mut target, super::super::integer).map(|()| (target.read, target.write))
        };
        assert_eq!(apply("7"), Ok((7, 7)));
        assert_eq!(apply("7,8"), Ok((7, 8)));
        assert_eq!(apply(",8"), Ok((1, 8)));
        assert_eq!(apply("7,"), Ok((7, 2)));
        assert_eq!(apply("7,8,9"), Ok((7, 8)));
        assert!(apply(",").is_err() && apply("7,8,9,10").is_err() && apply("x").is_err());
    }
}
