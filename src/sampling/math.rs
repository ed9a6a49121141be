//! exp and ln from additions and multiplications alone. The standard library calls the host's libm, whose results differ in the
//! last bit from host to host; a draw near an edge of the distribution would then differ too. Plain IEEE arithmetic gives the
//! same result everywhere, because Rust neither contracts nor reorders it. These functions also vectorise.

use std::f64::consts::{LN_2, LOG2_E};

/// ln 2 in two parts, the first with few enough bits that its product with any exponent is exact (fdlibm).
const LN2_HI: f64 = 6.931_471_803_691_238e-1;
const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
/// Number whose addition rounds to an integer and leaves that integer in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// Computes eˣ for x ≤ 0, to a few units in the last place. The result is 0 below −708 and for −∞, and NaN for NaN.
#[inline]
pub fn exp(x: f64) -> f64 {
    let clamped = if x < -708.0 { -708.0 } else { x };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    // Taylor, |r| ≤ ln 2 / 2: the first term left out is below 2⁻⁵⁶.
    const INVERSE_FACTORIALS: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let mut p = INVERSE_FACTORIALS[0];
    for c in &INVERSE_FACTORIALS[1..] {
        p = p * r + c;
    }
    let scale = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1.0f64.to_bits()));
    if x < -708.0 { 0.0 } else { p * scale }
}

/// Computes ln x for finite normal x > 0.
pub fn ln(x: f64) -> f64 {
    // x = m · 2ᵉ with m in [√½, √2); ln m = 2 artanh s, s = (m − 1) / (m + 1), |s| < 0.172.
    let bits = x.to_bits();
    let mut e = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits(bits & ((1 << 52) - 1) | 1.0f64.to_bits());
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let mut series = 0.0;
    for k in (0..=11).rev() {
        series = series * (s * s) + 1.0 / f64::from(2 * k + 1);
    }
    e as f64 * LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_std() {
        for i in 0..=1_000_000 {
            let x = -f64::from(i) * 0.000_7;
            let (ours, std) = (exp(x), x.exp());
            assert!((ours - std).abs() <= 4.0 * f64::EPSILON * std, "exp({x}) = {ours}, not {std}");
        }
        assert_eq!((exp(0.0), exp(f64::NEG_INFINITY), exp(-1e300)), (1.0, 0.0, 0.0));
        assert!(exp(f64::NAN).is_nan());
    }

    #[test]
    fn ln_agrees_with_std() {
        for i in 1..1_000_000 {
            for x in [f64::from(i) * 0.37, 1.0 + f64::from(i) * 1e-9, 1.0 / f64::from(i)] {
                let (ours, std) = (ln(x), x.ln());
                assert!((ours - std).abs() <= 4.0 * f64::EPSILON * std.abs().max(1e-3), "ln({x}) = {ours}, not {std}");
            }
        }
        assert_eq!(ln(1.0), 0.0);
    }

    /// Compares bits, so that a host with other results is noticed.
    #[test]
    fn bits_are_the_same_everywhere() {
        let fold = |f: fn(f64) -> f64, at: fn(i32) -> f64| {
            (0..10_000).fold(0u64, |h, i| (h ^ f(at(i)).to_bits()).wrapping_mul(0x9E37_79B9_7F4A_7C15))
        };
        let found = (fold(exp, |i| f64::from(i) * -0.003), fold(ln, |i| f64::from(i + 1) * 0.01));
        assert_eq!(found, (0xd4dc_58d3_d0a3_307d, 0xc6ed_bc72_b259_42c1));
    }
}
