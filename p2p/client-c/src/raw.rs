//! From what C passes to what Rust can use.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

use crate::failure::Failure;

/// A string.
///
/// # Safety
/// `text` is NULL, or ends with NUL and does not change while the answer lives.
pub(crate) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::argument(what));
    }
    // SAFETY: not NULL, and the rest is the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::argument(what))
}

/// Bytes to read from.
///
/// # Safety
/// `start` is NULL, or `length` bytes are there that do not change while the answer lives.
pub(crate) unsafe fn source<'a>(start: *const c_void, length: usize) -> Result<&'a [u8], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    if start.is_null() || length > isize::MAX as usize {
        return Err(Failure::argument("the buffer"));
    }
    // SAFETY: not NULL, of a length that can be, and the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(start.cast(), length) })
}

/// Bytes to write to.
///
/// # Safety
/// `start` is NULL, or `length` bytes are there that nobody else uses while the answer lives.
pub(crate) unsafe fn target<'a>(start: *mut c_void, length: usize) -> Result<&'a mut [u8], Failure> {
    if length == 0 {
        return Ok(&mut []);
    }
    if start.is_null() || length > isize::MAX as usize {
        return Err(Failure::argument("the buffer"));
    }
    // SAFETY: not NULL, of a length that can be, and the rest is the caller's promise; memory of another language holds some
    // value for every byte.
    Ok(unsafe { slice::from_raw_parts_mut(start.cast(), length) })
}

/// Stores as many values as there is room for, `count`, and then in `count` how many there are.
///
/// # Safety
/// `start` is NULL, or has room for `count` values that nobody else uses during the call.
pub(crate) unsafe fn store<T: Copy>(values: &[T], start: *mut T, count: Option<&mut usize>) -> Result<(), Failure> {
    let count = count.ok_or_else(|| Failure::argument("the count"))?;
    let fit = values.len().min(*count);
    if fit > 0 && start.is_null() {
        return Err(Failure::argument("the array"));
    }
    if fit > 0 {
        // SAFETY: the caller's promise of room; the caller's array does not overlap ours.
        unsafe { start.copy_from_nonoverlapping(values.as_ptr(), fit) };
    }
    *count = values.len();
    Ok(())
}

/// An object.
pub(crate) fn object<'a, T>(object: Option<&'a T>, what: &str) -> Result<&'a T, Failure> {
    object.ok_or_else(|| Failure::argument(what))
}

/// A place for a result that the caller wants.
pub(crate) fn place<T>(place: Option<&mut MaybeUninit<T>>) -> Result<&mut MaybeUninit<T>, Failure> {
    place.ok_or_else(|| Failure::argument("the place for the result"))
}

/// Stores a result that the caller may not want.
pub(crate) fn tell<T>(place: Option<&mut MaybeUninit<T>>, value: T) {
    if let Some(place) = place {
        place.write(value);
    }
}

/// From a start and a length, which must not overflow.
pub(crate) fn span(start: u64, length: u64) -> Result<Range<u64>, Failure> {
    let end = start.checked_add(length).ok_or_else(|| Failure::argument("the range"))?;
    Ok(start..end)
}

/// Hands an object over to the caller.
pub(crate) fn hand_over<T>(place: &mut MaybeUninit<*mut T>, value: T) {
    place.write(Box::into_raw(Box::new(value)));
}
