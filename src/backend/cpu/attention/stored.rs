//! Reads stored K and V as rows of numbers: float elements directly, int8 rows with their scales.

use super::{Call, Item};
use crate::backend::cpu::simd::Element;
use crate::backend::int8;

/// A storage format of K and V.
pub(super) trait Stored: 'static {
    /// Element type of the rows that [`Self::row`] returns.
    type Element: Element;

    /// Pointer to row `token` of a run: into the block itself, or into `space` if the row has to be widened first.
    ///
    /// # Safety
    /// The KV has this format, `token` is in the run, and `space` has room for a row of f32.
    unsafe fn row(run: &Run<'_, '_>, token: usize, space: *mut f32) -> *const Self::Element;
}

/// Consecutive tokens of K or V within one block.
pub(super) struct Run<'a, 'b> {
    pub call: &'a Call<'b>,
    pub tokens: *const u8,
    /// Scales of the rows; null unless the KV is int8.
    pub scales: *const f32,
}

impl<'a, 'b> Run<'a, 'b> {
    /// The run that begins at `position`, and its number of tokens.
    pub fn new(call: &'a Call<'b>, item: &Item<'_>, value: bool, position: usize) -> (Self, usize) {
        let (tokens, count) = call.tokens(item, value, position);
        let scaled = call.geometry.scale_bytes() > 0;
        let scales = if scaled { call.scales(item, value, position) } else { std::ptr::null() };
        (Run { call, tokens, scales }, count)
    }

    /// Elements and scale of an int8 row.
    ///
    /// # Safety
    /// The KV is int8, and `token` is in the run.
    #[inline(always)]
    pub unsafe fn int8(&self, token: usize) -> (&[u8], f32) {
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            let row = self.tokens.add(token * self.call.dim);
            (std::slice::from_raw_parts(row, self.call.dim), *self.scales.add(token))
        }
    }
}

impl<E: Element> Stored for E {
    type Element = E;

    #[inline(always)]
    unsafe fn row(run: &Run<'_, '_>, token: usize, _: *mut f32) -> *const E {
        // SAFETY: the caller upholds this function's contract.
        unsafe { run.tokens.cast::<E>().add(token * run.call.dim) }
    }
}

/// int8 rows, each widened to f32 before it is used.
pub(super) struct Int8;

impl Stored for Int8 {
    type Element = f32;

    #[inline(always)]
    unsafe fn row(run: &Run<'_, '_>, token: usize, space: *mut f32) -> *const f32 {
        // SAFETY: the caller upholds this function's contract, and no one else uses `space`.
        unsafe {
            let (q, scale) = run.int8(token);
            int8::dequantise(q, scale, std::slice::from_raw_parts_mut(space, q.len()));
        }
        space
    }
}
