//! Philox4x32-10, the counter-based random number generator of Salmon, Moraes, Dror and Shaw, "Parallel Random
//! Numbers: As Easy as 1, 2, 3" (SC 2011): a number is a function of key and counter, so there is no state to
//! carry from engine to engine.

/// Runs ten rounds on a counter under a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        // Weyl sequence: the golden ratio and √3 − 1.
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// The 53 random bits that decide the token at `position` of a sequence with this seed. They are uniformly distributed. The upper
/// counter words are zero, and free for further numbers at the same position.
pub fn random53(seed: u64, position: u64) -> u64 {
    let counter = [position as u32, (position >> 32) as u32, 0, 0];
    let out = philox4x32(counter, [seed as u32, (seed >> 32) as u32]);
    (u64::from(out[1]) << 32 | u64::from(out[0])) >> 11
}

/// The bits of [`random53`] as a number in [0, 1), a multiple of 2⁻⁵³.
#[cfg(test)]
pub fn uniform(seed: u64, position: u64) -> f64 {
    random53(seed, position) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from `tests/kat_vectors` of the Random123 distribution.
    #[test]
    fn known_answers() {
        let all = [u32::MAX; 4];
        let pi = [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344];
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32(all, [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(philox4x32(pi, [0xa4093822, 0x299f31d0]), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
    }

    #[test]
    fn uniform_is_in_range_and_depends_on_both() {
        let mean = (0..10_000).map(|p| uniform(7, p)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01);
        assert!((0..10_000).all(|p| (0.0..1.0).contains(&uniform(p, 3))));
        assert_ne!(uniform(1, 5), uniform(2, 5));
        assert_ne!(uniform(1, 5), uniform(1, 6));
        assert_ne!(uniform(1, 5), uniform(1 << 32, 5));
        assert_ne!(uniform(1, 5), uniform(1, 5 << 32));
    }
}
