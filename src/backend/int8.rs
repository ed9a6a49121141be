//! int8 KV: a token's row of one head is `q * scale`, with one f32 scale per row and `q` in -127..=127. The same
//! bits at every level, since nothing here depends on the order of a sum. A `q` is the byte of an i8.

/// Rounds a row to `q`, one for each of `row`, and returns its scale: `absmax / 127`. A NaN or an infinity makes
/// the whole row NaN, so that it is seen.
#[inline(always)]
pub(crate) fn quantise(row: &[f32], q: &mut [u8]) -> f32 {
    // The bits of magnitudes, read as integers, are in the same order, with NaN at the top.
    let absmax = row.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most));
    let scale = f32::from_bits(absmax) / 127.0;
    // 1.5 * 2^23: adding and taking it away rounds to even.
    const MAGIC: f32 = 12_582_912.0;
    // A subnormal row has a coarse scale, or 0.
    let divisor = if scale == 0.0 { 1.0 } else { scale };
    for (q, &x) in q.iter_mut().zip(row) {
        let x = (x / divisor).clamp(-127.0, 127.0);
        *q = ((x + MAGIC) - MAGIC) as i32 as i8 as u8;
    }
    scale
}

/// The inverse: `out[i] = q[i] * scale`.
#[inline(always)]
pub(crate) fn dequantise(q: &[u8], scale: f32, out: &mut [f32]) {
    for (out, &q) in out.iter_mut().zip(q) {
        *out = f32::from(q as i8) * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(row: &[f32]) -> (Vec<i8>, f32, Vec<f32>) {
        let (mut q, mut back) = (vec![0; row.len()], vec![0.0; row.len()]);
        let scale = quantise(row, &mut q);
        dequantise(&q, scale, &mut back);
        (q.into_iter().map(|q| q as i8).collect(), scale, back)
    }

    #[test]
    fn a_row_is_off_by_half_a_scale_at_most() {
        let mut state = 1u64;
        for magnitude in [1e-30f32, 1e-3, 1.0, 300.0, 1e30] {
            for len in 1..70 {
                let mut next = || {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * magnitude
                };
                let row: Vec<f32> = (0..len).map(|_| next()).collect();
                let (q, scale, back) = round_trip(&row);
                let absmax = row.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                assert_eq!(scale, absmax / 127.0);
                assert!(q.iter().any(|q| q.abs() == 127), "{q:?}");
                for (x, back) in row.iter().zip(back) {
                    assert!((x - back).abs() <= scale * 0.5001, "{x} became {back}, scale {scale}");
                }
            }
        }
    }

    #[test]
    fn zeros_and_what_is_no_number() {
        assert_eq!(round_trip(&[0.0, -0.0]), (vec![0, 0], 0.0, vec![0.0, 0.0]));
        assert_eq!(round_trip(&[2.0, -1.0, 0.5 / 127.0, -127.0]).0, [2, -1, 0, -127]);
        assert_eq!(round_trip(&[0.5, 1.5, 127.0]).0, [0, 2, 127], "ties to even");
        let tiny = f32::from_bits(150);
        assert_eq!(round_trip(&[tiny, -tiny]).0, [127, -127]);
        assert_eq!(round_trip(&[f32::from_bits(1)]), (vec![0], 0.0, vec![0.0]));
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(round_trip(&[1.0, bad, 3.0]).2.iter().all(|x| x.is_nan()), "{bad}");
        }
    }
}
