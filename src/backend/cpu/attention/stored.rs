//! How stored tokens become rows of numbers: each element by itself, or int8 rows with their scales.

use super::{Call, Item};
use crate::backend::cpu::simd::Element;
use crate::backend::int8;

/// A form of stored K and V.
pub(super) trait Stored: 'static {
    /// The element of a row as [`Self::row`] gives it.
    type Element: Element;

    /// Row `token` of a run: in its place, or widened in `space`.
    ///
    /// # Safety
    /// The KV has this form, `token` is in the run, and `space` has room for a row of f32.
    unsafe fn row(run: &Run<'_, '_>, token: usize, space: *mut f32) -> *const Self::Element;
}

/// Tokens of one K or V that lie in one block, one after the other.
pub(super) struct Run<'a, 'b> {
    pub call: &'a Call<'b>,
    pub tokens: *const u8,
    /// Null but for int8.
    pub scales: *const f32,
}

impl<'a, 'b> Run<'a, 'b> {
    /// Those from `position` on, and how many there are.
    pub fn new(call: &'a Call<'b>, item: &Item<'_>, value: bool, position: usize) -> (Self, usize) {
        let (tokens, count) = call.tokens(item, value, position);
        let scaled = call.geometry.scale_bytes() > 0;
        let scales = if scaled { call.scales(item, value, position) } else { std::ptr::null() };
        (Run { call, tokens, scales }, count)
    }

    /// The elements and the scale of an int8 row.
    ///
    /// # Safety
    /// The KV is int8, and `token` is in the run.
    #[inline(always)]
    pub unsafe fn int8(&self, token: usize) -> (&[u8], f32) {
        // SAFETY: by the contract.
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
        // SAFETY: by the contract.
        unsafe { run.tokens.cast::<E>().add(token * run.call.dim) }
    }
}

/// int8 rows, each widened to f32 before it is used.
pub(super) struct Int8;

impl Stored for Int8 {
    type Element = f32;

    #[inline(always)]
    unsafe fn row(run: &Run<'_, '_>, token: usize, space: *mut f32) -> *const f32 {
        // SAFETY: by the contract; the space is the caller's alone.
        unsafe {
            let (q, scale) = run.int8(token);
            int8::dequantise(q, scale, std::slice::from_raw_parts_mut(space, q.len()));
        }
        space
    }
}
