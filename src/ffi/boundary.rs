//! The line between C and Rust: panics stop here, pointers are checked here, and errors and results are written here.

use super::error::{CLEAVE_OK, cleave_error_t, cleave_status_t};
use crate::error::{Error, Result, Status};
use crate::{bail, panics};
use libc::{c_char, size_t};
use std::ffi::CStr;

/// Runs the body of a function that returns a status. A panic in it is CLEAVE_ERR_INTERNAL; an error fills `err`.
pub(super) fn call(err: *mut cleave_error_t, body: impl FnOnce() -> Result<()>) -> cleave_status_t {
    match panics::catch(|| crate::failpoint::hit("ffi.call").and_then(|()| body())).and_then(|result| result) {
        Ok(()) => CLEAVE_OK,
        Err(error) => {
            crate::log!(Debug, "api", "{:?}: {}", error.status, error.message);
            // SAFETY: the header's contract: `err` is NULL or valid.
            unsafe { fill_error(err, &error) };
            error.status as cleave_status_t
        }
    }
}

/// Runs the body of a function that returns nothing. An error goes to the log only.
pub(super) fn call_void(body: impl FnOnce() -> Result<()>) {
    call(std::ptr::null_mut(), body);
}

/// Runs the body of a function that returns a count or a descriptor, which is not negative, or a status.
pub(super) fn call_int(body: impl FnOnce() -> Result<i32>) -> i32 {
    let mut value = 0;
    let status = call(std::ptr::null_mut(), || {
        value = body()?;
        Ok(())
    });
    if status == CLEAVE_OK { value } else { status }
}

/// Writes code and text. Text that is too long is cut at a character boundary. `err` may be NULL.
unsafe fn fill_error(err: *mut cleave_error_t, error: &Error) {
    if err.is_null() {
        return;
    }
    let mut filled = cleave_error_t { code: error.status as i32, message: [0; 252] };
    let text = error.message.replace('\0', "\u{fffd}");
    let end = text.floor_char_boundary_(filled.message.len() - 1);
    for (to, from) in filled.message.iter_mut().zip(&text.as_bytes()[..end]) {
        *to = *from as c_char;
    }
    // SAFETY: not NULL, so valid for writes by contract; unaligned is tolerated.
    unsafe { err.write_unaligned(filled) };
}

trait FloorCharBoundary {
    fn floor_char_boundary_(&self, at: usize) -> usize;
}

impl FloorCharBoundary for str {
    fn floor_char_boundary_(&self, at: usize) -> usize {
        let at = at.min(self.len());
        (0..=at).rev().find(|&i| self.is_char_boundary(i)).unwrap_or(0)
    }
}

/// Checks a pointer that must not be NULL; `name` is the argument, for the text.
pub(super) fn required<T>(pointer: *const T, name: &str) -> Result<()> {
    if pointer.is_null() {
        bail!(InvalidArgument, "{name} is NULL");
    }
    if !pointer.is_aligned() {
        bail!(InvalidArgument, "{name} is not aligned to {} bytes", align_of::<T>());
    }
    Ok(())
}

/// Writes a result. Call [`required`] first, before anything that cannot be undone.
pub(super) unsafe fn put<T>(pointer: *mut T, value: T) {
    debug_assert!(!pointer.is_null());
    // SAFETY: checked by `required`, valid by contract.
    unsafe { pointer.write(value) };
}

/// A NUL-terminated UTF-8 string.
pub(super) unsafe fn c_string<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    required(text, name)?;
    // SAFETY: not NULL, so NUL-terminated by contract.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    utf8(bytes, name)
}

/// `len` bytes of UTF-8; NULL with 0 is the empty string.
pub(super) unsafe fn string<'a>(text: *const c_char, len: size_t, name: &str) -> Result<&'a str> {
    // SAFETY: the caller's contract.
    utf8(unsafe { slice(text.cast::<u8>(), len, name) }?, name)
}

fn utf8<'a>(bytes: &'a [u8], name: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|e| Error::new(Status::InvalidArgument, format!("{name} is not UTF-8 (at byte {})", e.valid_up_to())))
}

/// `n` elements; NULL with 0 is the empty array.
pub(super) unsafe fn slice<'a, T>(elements: *const T, n: size_t, name: &str) -> Result<&'a [T]> {
    if n == 0 {
        return Ok(&[]);
    }
    required(elements, name)?;
    if n.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        bail!(InvalidArgument, "{name}: {n} elements are more than memory can hold");
    }
    // SAFETY: not NULL, aligned, not larger than the address space; valid for `n` elements by contract.
    Ok(unsafe { std::slice::from_raw_parts(elements, n) })
}

/// Writes a result of variable length by the header's convention for (buffer, cap, *n): `*n` receives the full length,
/// NULL with cap 0 asks for it, and a buffer that is too small receives nothing (INVALID_ARGUMENT).
pub(super) unsafe fn fill<T: Copy>(items: &[T], buffer: *mut T, cap: size_t, n: *mut size_t, name: &str) -> Result<()> {
    required(n, "the pointer to the length")?;
    // SAFETY: checked just now.
    unsafe { put(n, items.len()) };
    if buffer.is_null() {
        if cap > 0 {
            bail!(InvalidArgument, "{name} is NULL, with room for {cap}");
        }
        return Ok(());
    }
    required(buffer, name)?;
    if cap < items.len() {
        bail!(InvalidArgument, "{name} has room for {cap}, {} are needed", items.len());
    }
    // SAFETY: `buffer` is valid for `cap` elements by contract and `items` is the library's own memory.
    unsafe { std::ptr::copy_nonoverlapping(items.as_ptr(), buffer, items.len()) };
    Ok(())
}

/// [`fill`] for text: if there is room, a NUL follows, which the length does not count.
pub(super) unsafe fn fill_text(text: &str, buffer: *mut c_char, cap: size_t, n: *mut size_t) -> Result<()> {
    // SAFETY: the caller's contract.
    unsafe {
        fill(text.as_bytes(), buffer.cast::<u8>(), cap, n, "the text buffer")?;
        if !buffer.is_null() && cap > text.len() {
            buffer.add(text.len()).write(0);
        }
    }
    Ok(())
}

/// Copies text into a fixed array of a struct: NUL-terminated, cut at a character boundary.
pub(super) fn fixed_text<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    let end = text.floor_char_boundary_(N - 1);
    for (to, from) in array.iter_mut().zip(&text.as_bytes()[..end]) {
        *to = *from as c_char;
    }
    array
}

/// Refuses bits that this version does not know.
pub(super) fn known_flags(flags: u32, known: u32, name: &str) -> Result<()> {
    if flags & !known != 0 {
        bail!(Unsupported, "{name}: unknown flags {:#x}", flags & !known);
    }
    Ok(())
}

/// `timeout_ms` of the API: UINT32_MAX waits for ever.
pub(super) fn timeout(timeout_ms: u32) -> Option<std::time::Duration> {
    (timeout_ms != u32::MAX).then(|| std::time::Duration::from_millis(u64::from(timeout_ms)))
}
