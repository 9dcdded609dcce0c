//! The randomness of a draw: a function of (seed, position, token), so that nothing about it depends on what was seen.

/// Gumbel noise for the tokens of one position.
///
/// The token with the largest `logit / temperature + gumbel(token)` is a draw from the softmax, and needs neither the
/// normaliser nor the other tokens. Source: Maddison et al., arXiv:1411.0030, section 2.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise {
    key: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64: a bijection that passes statistical tests as a generator.
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Noise {
    pub(super) const fn new(seed: u64, position: u32) -> Self {
        Self { key: mix(mix(seed.wrapping_add(GOLDEN)) ^ (position as u64 + 1).wrapping_mul(GOLDEN)) }
    }

    /// 64 uniform bits for a token.
    pub(super) const fn bits(self, token: u32) -> u64 {
        mix(self.key.wrapping_add((token as u64 + 1).wrapping_mul(GOLDEN)))
    }

    /// A Gumbel variate for a token, between -3.7 and 37.5; grows with [`bits`](Self::bits).
    pub(super) fn gumbel(self, token: u32) -> f64 {
        Self::gumbel_of(self.bits(token))
    }

    /// The largest variate of the tokens below `vocabulary` that are not in `present` (ascending).
    pub(super) fn max_outside(self, present: &[u32], vocabulary: u32) -> f64 {
        let mut start = 0;
        let mut most = 0;
        for &token in present.iter().chain([&vocabulary]) {
            most = (start..token).map(|absent| self.bits(absent)).fold(most, u64::max);
            start = token.saturating_add(1);
        }
        Self::gumbel_of(most)
    }

    fn gumbel_of(bits: u64) -> f64 {
        let share = |bits: u64| ((bits >> 11) as f64 + 0.5) * (-53f64).exp2();
        // Whichever of the uniform and its complement is small is exact.
        let exponential = if bits < 1 << 63 { -share(bits).ln() } else { -(-share(!bits)).ln_1p() };
        -exponential.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noise_of_a_seed_never_changes() {
        // A text and its seed are quoted together: another value here changes what every seed says.
        let noise = Noise::new(42, 7);
        assert_eq!([noise.bits(0), noise.bits(1), noise.bits(u32::MAX)], PINNED);
        assert_ne!(Noise::new(42, 8).bits(0), noise.bits(0));
        assert_ne!(Noise::new(43, 7).bits(0), noise.bits(0));
    }

    const PINNED: [u64; 3] = [7_314_796_947_921_493_390, 603_594_583_533_611_557, 8_531_063_478_482_175_381];

    #[test]
    fn a_variate_is_finite_and_grows_with_its_bits() {
        assert!((Noise::gumbel_of(0) - -(54.0 * 2f64.ln()).ln()).abs() < 1e-9);
        assert!((37.0..37.5).contains(&Noise::gumbel_of(u64::MAX)));
        let steps: Vec<f64> = (0..64).map(|bit| Noise::gumbel_of(u64::MAX >> bit)).collect();
        assert!(steps.windows(2).all(|pair| pair[0] >= pair[1]), "{steps:?}");
    }

    #[test]
    fn the_largest_outside_leaves_out_exactly_the_present() {
        let noise = Noise::new(1, 2);
        let by_noise = |tokens: Vec<u32>| tokens.into_iter().map(|t| noise.gumbel(t)).fold(f64::NEG_INFINITY, f64::max);
        for present in [vec![], vec![0], vec![99], vec![3, 4, 50], (0..99).collect()] {
            let absent = (0..100).filter(|t| !present.contains(t)).collect();
            assert_eq!(noise.max_outside(&present, 100), by_noise(absent), "{present:?}");
        }
    }
}
