//! Budget of one rendering: bytes that it makes, and time. A thread renders one template at a time, so the budget is
//! the thread's.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Bytes any template may make, beside [`PER_INPUT_BYTE`] for each byte of its input.
const BASE: usize = 64 << 20;
const PER_INPUT_BYTE: usize = 64;
/// A long conversation takes milliseconds.
const TIME: Duration = Duration::from_secs(30);
/// Deeper values are printed by no template that is meant well.
const DEPTH_MAX: usize = 150;

/// Bytes that an element of a list or a pair of a map takes.
pub const ELEMENT: usize = 32;
const PAIR: usize = 96;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(0) };
    static END: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The budget ran out.
#[derive(Debug)]
pub struct Exhausted(&'static str);

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the template takes more {} than a rendering may", self.0)
    }
}

impl std::error::Error for Exhausted {}

fn exhausted(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, "over budget").with_source(Exhausted(what))
}

/// Gives this thread the budget of a rendering of `input` bytes.
pub fn begin(input: usize) {
    LEFT.set(BASE.saturating_add(PER_INPUT_BYTE.saturating_mul(input)));
    END.set(Instant::now().checked_add(TIME));
}

/// Takes bytes from the budget, and looks at the clock.
pub fn charge(bytes: usize) -> Result<(), Error> {
    match LEFT.get().checked_sub(bytes) {
        Some(left) => LEFT.set(left),
        None => return Err(exhausted("memory")),
    }
    match END.get() {
        Some(end) if Instant::now() > end => Err(exhausted("time")),
        _ => Ok(()),
    }
}

/// Bytes of a value itself: what a list or map holds is not counted again.
pub fn shallow(value: &Value) -> usize {
    match value.kind() {
        ValueKind::String => value.as_str().map_or(0, str::len),
        ValueKind::Bytes => value.as_bytes().map_or(0, <[u8]>::len),
        ValueKind::Map => value.len().unwrap_or(0).saturating_mul(PAIR),
        ValueKind::Seq | ValueKind::Iterable => value.len().unwrap_or(0).saturating_mul(ELEMENT),
        _ => 0,
    }
}

/// Bytes of a list together with those of its elements.
pub fn with_elements(value: &Value) -> Result<usize, Error> {
    let mut sum = shallow(value);
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        for item in value.try_iter()? {
            sum = add(sum, shallow(&item))?;
        }
    }
    Ok(sum)
}

/// At least as many bytes as the value takes when it is printed.
pub fn printed(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(text.len()),
        None => nested(value, 0),
    }
}

fn nested(value: &Value, depth: usize) -> Result<usize, Error> {
    if depth > DEPTH_MAX {
        return Err(Error::new(ErrorKind::InvalidOperation, "a value is nested too deeply"));
    }
    let mut sum = 32;
    match value.kind() {
        // Quoted, every character as \u{...} at worst.
        ValueKind::String => sum = add(sum, shallow(value).saturating_mul(10))?,
        ValueKind::Bytes => sum = add(sum, shallow(value).saturating_mul(4))?,
        ValueKind::Map => {
            for key in value.try_iter()? {
                sum = add(sum, nested(&key, depth + 1)?)?;
                sum = add(sum, nested(&value.get_item(&key)?, depth + 1)?)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                sum = add(sum, nested(&item, depth + 1)?)?;
            }
        }
        _ => sum = 64,
    }
    Ok(sum)
}

/// A sum that ends the counting where it is more than the budget has left.
fn add(sum: usize, more: usize) -> Result<usize, Error> {
    let sum = sum.saturating_add(more);
    if sum > LEFT.get() {
        return Err(exhausted("memory"));
    }
    Ok(sum)
}
