//! Vectors of f32. Norms, rotation, activation functions, attention and the f32 products are written once:
//! [`Kernel::run`] is generic over [`Simd`] and is compiled for each [`Level`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(target_arch = "x86_64")]
mod transpose;

use super::level::Level;
pub(super) use portable::Lanes8;
#[cfg(target_arch = "x86_64")]
pub(super) use transpose::transpose16;

/// A vector of [`Simd::LANES`] floats.
///
/// # Safety
/// For every function: the instructions that the implementation uses are available, and pointers are valid for the
/// elements that are read or written. Pointers need no alignment.
#[allow(clippy::missing_safety_doc)]
pub(super) trait Simd: Copy {
    const LANES: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_bf16(p: *const u16) -> Self;
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// Stores the lanes as bf16, rounded to nearest even.
    unsafe fn store_bf16(self, p: *mut u16);
    unsafe fn store_f16(self, p: *mut u16);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// `self * b + c`, with one rounding where the level has fused multiply-add.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn max(self, b: Self) -> Self;
    unsafe fn min(self, b: Self) -> Self;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of each lane. Lanes must hold integers from -126 to 127.
    unsafe fn exp2_int(self) -> Self;
    /// Selects per lane: `a < b ? x : y`.
    unsafe fn select_lt(a: Self, b: Self, x: Self, y: Self) -> Self;
    /// Sum of all lanes, added in a fixed order.
    unsafe fn sum(self) -> f32;
    unsafe fn largest(self) -> f32;

    /// Loads the first `n < LANES` elements; the remaining lanes are zero.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self {
        let mut lanes = [0.0f32; 16];
        // SAFETY: p is valid for n <= 16 elements; LANES is at most 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// Stores the first `n < LANES` elements.
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: p is valid for n <= 16 elements; LANES is at most 16.
        unsafe {
            self.store(lanes.as_mut_ptr());
            std::ptr::copy_nonoverlapping(lanes.as_ptr(), p, n);
        }
    }

    /// e to the power of each lane: 0 below -87.3, at most e^88.3. Each lane's result depends only on that lane.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller upholds this function's contract.
        unsafe {
            let low = Self::splat(-87.33654);
            let x = self.max(low).min(Self::splat(88.37626));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 is split into two parts; the product of the first with n is exact.
            let r = n.fma(Self::splat(-0.693_359_4), x);
            let r = n.fma(Self::splat(2.121_944_4e-4), r);
            let p = Self::splat(1.987_569_1e-4);
            let p = p.fma(r, Self::splat(1.398_199_9e-3));
            let p = p.fma(r, Self::splat(8.333_452e-3));
            let p = p.fma(r, Self::splat(4.166_579_6e-2));
            let p = p.fma(r, Self::splat(1.666_666_5e-1));
            let p = p.fma(r, Self::splat(0.5));
            let e = p.fma(r.mul(r), r).add(Self::splat(1.0));
            let e = e.mul(n.exp2_int());
            Self::select_lt(self, low, Self::splat(0.0), e)
        }
    }
}

/// Element type of weights and KV: widened to f32 on load, rounded on store.
pub(super) trait Element: Copy + Send + Sync + 'static {
    unsafe fn load<S: Simd>(p: *const Self) -> S;
    unsafe fn store<S: Simd>(v: S, p: *mut Self);
    fn to_f32(self) -> f32;
    fn from_f32(value: f32) -> Self;

    /// Loads the first `n < LANES` elements; the remaining lanes are zero.
    #[inline(always)]
    unsafe fn load_part<S: Simd>(p: *const Self, n: usize) -> S {
        let mut lanes = [Self::from_f32(0.0); 16];
        // SAFETY: p is valid for n <= 16 elements; LANES is at most 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load::<S>(lanes.as_ptr())
        }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S {
        // SAFETY: the caller upholds this function's contract.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(v: S, p: *mut f32) {
        // SAFETY: the caller upholds this function's contract.
        unsafe { v.store(p) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

/// Bit pattern of a bf16.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Bf16(pub u16);

/// Bit pattern of an IEEE half-precision float.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct F16(pub u16);

impl Element for Bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Bf16) -> S {
        // SAFETY: the caller upholds this function's contract.
        unsafe { S::load_bf16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(v: S, p: *mut Bf16) {
        // SAFETY: the caller upholds this function's contract.
        unsafe { v.store_bf16(p.cast()) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Bf16 {
        Bf16(bf16_bits(value))
    }
}

impl Element for F16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const F16) -> S {
        // SAFETY: the caller upholds this function's contract.
        unsafe { S::load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(v: S, p: *mut F16) {
        // SAFETY: the caller upholds this function's contract.
        unsafe { v.store_f16(p.cast()) }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        half::f16::from_bits(self.0).to_f32()
    }
    #[inline(always)]
    fn from_f32(value: f32) -> F16 {
        F16(half::f16::from_f32(value).to_bits())
    }
}

/// Converts f32 to bf16, rounding to nearest even. A NaN stays a NaN.
#[inline(always)]
pub(super) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40;
    (if value.is_nan() { nan } else { rounded }) as u16
}

/// Code that is compiled for every level. `run` must be `#[inline(always)]`, and so must every function it passes
/// vectors to.
pub(super) trait Kernel {
    /// # Safety
    /// The instructions of `S` are available, and the fields meet the requirements that the kernel documents.
    unsafe fn run<S: Simd>(self);
}

/// Runs a kernel with the vectors of `level`.
///
/// # Safety
/// `level` is available on this machine, and the kernel's fields meet the requirements that it documents.
pub(super) unsafe fn dispatch<K: Kernel>(level: Level, kernel: K) {
    // SAFETY: the caller guarantees that the level is available.
    unsafe {
        match level {
            Level::Portable => kernel.run::<Lanes8>(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => avx2::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => avx512::run(kernel),
            #[cfg(not(target_arch = "x86_64"))]
            _ => kernel.run::<Lanes8>(),
        }
    }
}
