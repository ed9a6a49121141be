//! A 16 x 16 transpose in registers.

use std::arch::x86_64::*;

/// Transposes a matrix: row i of the result is column i of the argument.
///
/// # Safety
/// AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in super::super) unsafe fn transpose16(rows: [__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    let (mut pairs, mut quads, mut out) = ([zero; 16], [zero; 16], [zero; 16]);
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    for g in 0..4 {
        for h in 0..2 {
            let low = _mm512_castps_pd(pairs[4 * g + h]);
            let high = _mm512_castps_pd(pairs[4 * g + 2 + h]);
            quads[4 * g + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            quads[4 * g + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    // Now lane L of quads[4 g + c] holds column 4 L + c of rows 4 g to 4 g + 3.
    for c in 0..4 {
        let a = _mm512_shuffle_f32x4::<0x88>(quads[c], quads[4 + c]);
        let b = _mm512_shuffle_f32x4::<0x88>(quads[8 + c], quads[12 + c]);
        out[c] = _mm512_shuffle_f32x4::<0x88>(a, b);
        out[8 + c] = _mm512_shuffle_f32x4::<0xdd>(a, b);
        let a = _mm512_shuffle_f32x4::<0xdd>(quads[c], quads[4 + c]);
        let b = _mm512_shuffle_f32x4::<0xdd>(quads[8 + c], quads[12 + c]);
        out[4 + c] = _mm512_shuffle_f32x4::<0x88>(a, b);
        out[12 + c] = _mm512_shuffle_f32x4::<0xdd>(a, b);
    }
    out
}
