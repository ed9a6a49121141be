//! Shared parts of the tests: element types, random data and launches.

use half::{bf16, f16};
use simulated_kernels::{self as kernels, Lanes};
use std::ffi::c_void;

/// An element type of the kernels. `NAME` is its part of their names.
pub trait Element: Copy + PartialEq + std::fmt::Debug + 'static {
    const NAME: &'static str;
    /// Half the relative distance between two neighbouring values.
    const EPSILON: f64;
    fn of(x: f64) -> Self;
    fn get(self) -> f64;
}

impl Element for f32 {
    const NAME: &'static str = "float";
    const EPSILON: f64 = 6e-8;
    fn of(x: f64) -> f32 {
        x as f32
    }
    fn get(self) -> f64 {
        f64::from(self)
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const EPSILON: f64 = 1.0 / 256.0;
    fn of(x: f64) -> bf16 {
        bf16::from_f64(x)
    }
    fn get(self) -> f64 {
        self.to_f64()
    }
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const EPSILON: f64 = 1.0 / 2048.0;
    fn of(x: f64) -> f16 {
        f16::from_f64(x)
    }
    fn get(self) -> f64 {
        self.to_f64()
    }
}

/// Random numbers determined by the seed alone (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Returns a number below `n`.
    #[allow(dead_code)]
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
    /// Returns a number between -1 and 1.
    pub fn signed(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
    pub fn vector<T: Element>(&mut self, n: usize) -> Vec<T> {
        (0..n).map(|_| T::of(self.signed())).collect()
    }
}

/// Address of a kernel's argument. Create it within the call of [`launch`], so that temporaries live long enough.
pub fn arg<T>(value: &T) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

pub const BOTH: [Lanes; 2] = [Lanes::Ascending, Lanes::Descending];

/// Launches a kernel with one-dimensional blocks. Panics with the error that the simulator reports.
pub fn launch(kernel: &str, grid: [u32; 3], threads: u32, shared: usize, params: &[*const c_void], lanes: Lanes) {
    // SAFETY: each test passes what the kernel's comment asks for.
    let done = unsafe { kernels::launch(kernel, grid, [threads, 1, 1], shared, params, lanes) };
    done.unwrap_or_else(|error| panic!("{error}"));
}

/// Checks that all of `found` are within `tolerance` of `expected`, relative to the larger of 1 and the expected value.
#[track_caller]
pub fn assert_close<T: Element>(found: &[T], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (found.get() - expected).abs();
        let most = tolerance * expected.abs().max(1.0);
        assert!(off <= most, "{what}: [{i}] is {found:?}, expected {expected} within {most}");
    }
}
