//! Eight lanes of plain Rust.

use super::{Simd, bf16_bits};

#[derive(Clone, Copy)]
pub(in super::super) struct Lanes8([f32; 8]);

#[inline(always)]
fn zip(a: Lanes8, b: Lanes8, f: impl Fn(f32, f32) -> f32) -> Lanes8 {
    Lanes8(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

impl Simd for Lanes8 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Lanes8([value; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: by the contract of the trait, `p` is valid for eight elements.
        Lanes8(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: by the contract of the trait, `p` is valid for eight elements.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        Lanes8(bits.map(|b| f32::from_bits((b as u32) << 16)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: by the contract of the trait, `p` is valid for eight elements.
        let bits = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        Lanes8(bits.map(|b| half::f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: by the contract of the trait, `p` is valid for eight elements.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // SAFETY: by the contract of the trait, `p` is valid for eight elements.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(self.0.map(bf16_bits)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: by the contract of the trait, `p` is valid for eight elements.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(self.0.map(|v| half::f16::from_f32(v).to_bits())) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        zip(self, b, |x, y| x + y)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        zip(self, b, |x, y| x - y)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        zip(self, b, |x, y| x * y)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        zip(self, b, |x, y| x / y)
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Lanes8(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        zip(self, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        zip(self, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // Adding and subtracting 1.5 * 2^23 rounds to even for magnitudes below 2^22, which is all that exp needs.
        const MAGIC: f32 = 12_582_912.0;
        Lanes8(self.0.map(|x| (x + MAGIC) - MAGIC))
    }
    #[inline(always)]
    unsafe fn exp2_int(self) -> Self {
        Lanes8(self.0.map(|x| f32::from_bits(((x as i32 + 127) << 23) as u32)))
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self, b: Self, x: Self, y: Self) -> Self {
        Lanes8(std::array::from_fn(|i| if a.0[i] < b.0[i] { x.0[i] } else { y.0[i] }))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let v = self.0;
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
}
