//! What the emulator's model of the hardware loses, against what is said that it can.

use flashtile_emulator::semantics::{
    Float,
    mma::fused::{HOPPER_WGMMA_FP8, multiply},
};
use proptest::prelude::*;

use super::*;
use crate::{DType, element};

/// A code's number; not NaN.
fn number() -> impl Strategy<Value = f32> {
    any::<u8>().prop_map(|code| match element::read(DType::E4m3, &[code], 0) {
        x if x.is_nan() => 0.0,
        x => x,
    })
}

/// Numbers of one of several kinds: any codes; nearly normal; small ones, subnormals among them; few that are large.
fn numbers(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let round = |x: f32| element::round(DType::E4m3, x);
    let normal = (-1f32..1.0, -1f32..1.0, -1f32..1.0).prop_map(move |(a, b, c)| round(a + b + c));
    let small = (-0.04f32..0.04).prop_map(round);
    let spiky =
        (0u8..12, number()).prop_map(move |(n, x)| if n == 0 { x } else { round(x / 400.0) });
    prop_oneof![
        prop::collection::vec(number(), count),
        prop::collection::vec(normal, count),
        prop::collection::vec(small, count),
        prop::collection::vec(spiky, count),
    ]
}

/// The sum of products as the hardware makes it, from 32 products to 32.
fn hardware(a: &[f32], b: &[f32]) -> f64 {
    let mut c = [[0.0; 8]; 16];
    for (a, b) in a.chunks(STEP).zip(b.chunks(STEP)) {
        let (mut tile_a, mut tile_b) = ([[0.0; STEP]; 16], [[0.0; 8]; STEP]);
        tile_a[0][..a.len()].copy_from_slice(a);
        tile_b.iter_mut().zip(b).for_each(|(row, &b)| row[0] = b);
        multiply(HOPPER_WGMMA_FP8, [Float::E4m3; 2], &tile_a, &tile_b, &mut c);
    }
    f64::from(c[0][0])
}

fn exact(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    products.sum()
}

#[test]
fn sums_without_small_terms_lose_nothing() {
    // Terms of one size, up to a sum that 14 bits hold.
    let (a, b) = ([1.5; 64], [0.75; 64]);
    assert_eq!(hardware(&a, &b), exact(&a, &b));
    assert_eq!(lost_of_dot(&[0.0; 64], &b), 0.0);
    assert_eq!(lost_of_dot(&a, &b), 0.0);
    // Sums of the largest products there are, as long as 14 bits hold whatever products of this size there may be: multiples of 2^10
    // below 2^23.
    let large = [448.0, -448.0, 448.0, 448.0].repeat(16);
    assert_eq!(hardware(&large, &large), exact(&large, &large));
    assert_eq!(lost_of_dot(&large, &large), 0.0);
    // 1.875^2 has 8 bits, so 3 of it and more than 14 together.
    assert!(lost_of_dot(&[1.875; 256], &[1.875; 256]) > 0.0);
}

#[test]
fn small_terms_next_to_a_large_one_are_lost() {
    // 2^-6 is less than 2^-13 of 2^8, so each of the others is lost.
    let (mut a, mut b) = ([0.125; 32], [0.0625; 32]);
    (a[0], b[0]) = (16.0, 16.0);
    assert_eq!(hardware(&a, &b), 256.0);
    let lost = lost_of_dot(&a, &b);
    let small = 31.0 / 128.0;
    assert!((small..small + 0.04).contains(&lost), "{lost}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_dot_product_loses_more(
        (a, b) in (1usize..=256).prop_flat_map(|n| (numbers(n), numbers(n))),
    ) {
        let off = (hardware(&a, &b) - exact(&a, &b)).abs();
        prop_assert!(off <= lost_of_dot(&a, &b), "{off:e}, {:e}", lost_of_dot(&a, &b));
    }

    /// Probabilities are relative to any maximum below the final one, in each sum of 32 to 256 keys, whose halves may change places;
    /// every such sum is brought to f64 (in place of f32) and added.
    #[test]
    fn no_weighted_sum_loses_more(
        keys in (1usize..=600).prop_flat_map(|n| (prop::collection::vec(0.0f64..12.0, n), numbers(n))),
        spread in prop::sample::select(vec![0.0, 0.01, 0.3, 1.0, 2.0]),
        first in 0usize..200, steps in 1usize..=8, grown in prop::collection::vec(0.0f64..2.0, 32),
        scale in prop::sample::select(vec![1.0, 0.37, 1e30]), backwards: bool,
    ) {
        let (scores, values) = keys;
        let largest = scores.iter().fold(0.0, |max: f64, &x| max.max(x));
        let mut weights: Vec<_> = scores.iter().map(|x| ((x - largest) * spread).exp()).collect();
        // Keys that are not seen.
        weights.iter_mut().take(first).for_each(|weight| *weight = 0.0);
        let seen: Vec<_> = weights.iter().copied().enumerate().skip(first).collect();
        prop_assume!(!seen.is_empty());

        let (mut off, span) = (0.0, STEP * steps);
        for (number, (weights, values)) in weights.chunks(span).zip(values.chunks(span)).enumerate() {
            // No larger than that the largest probability here is 1.
            let largest = weights.iter().fold(0.0, |max: f64, &x| max.max(x));
            let factor = 256.0 * grown[number].exp().min(1.0 / largest);
            let p = weights.iter().map(|w| element::round(DType::E4m3, (w * factor) as f32));
            let mut pairs: Vec<_> = p.zip(values.iter().copied()).collect();
            if backwards && pairs.len() == span {
                pairs.rotate_left(STEP * (steps / 2));
            }
            let (p, values): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            off += (hardware(&p, &values) - exact(&p, &values)) / factor * scale;
        }
        let scales = vec![scale; values.len()];
        let sum = WeightedSum { weights: &seen, values: &values, scales: &scales, dim: 1 };
        let lost = sum.lost()[0];
        prop_assert!(off.abs() <= lost, "{off:e}, {lost:e}");
    }

    /// As far as roundings of f32 numbers near a tie allow.
    #[test]
    fn rounding_moves_no_probability_further(exponent in -40f64..0.0) {
        let weight = exponent.exp();
        let rounded = element::round(DType::E4m3, (256.0 * weight) as f32);
        let off = (f64::from(rounded) / 256.0 - weight).abs();
        prop_assert!(off <= rounding_of_probability(weight) * (1.0 + 1e-6), "{weight:e}: {off:e}");
    }
}

/// Over keys that weigh alike, whose values do not cancel, sums of 256 keys lose next to nothing of what a single sum loses, and the
/// bounds of both say so.
#[test]
fn short_sums_lose_less_than_a_long_one() {
    let values: Vec<f32> = (0..4096u32)
        .map(|n| {
            let bits = n.wrapping_mul(0x9e37_79b9) >> 8;
            element::round(DType::E4m3, bits as f32 / (1 << 24) as f32)
        })
        .collect();
    let weights: Vec<_> = (0..values.len()).map(|j| (j, 1.0)).collect();
    let scales = vec![1.0; values.len()];
    let short = WeightedSum {
        weights: &weights,
        values: &values,
        scales: &scales,
        dim: 1,
    };
    let ones = vec![1.0; values.len()];
    let off = |keys: usize| {
        let sums = ones.chunks(keys).zip(values.chunks(keys));
        sums.map(|(a, b)| hardware(a, b) - exact(a, b)).sum::<f64>()
    };
    let (short, long) = (
        [off(256).abs(), short.lost()[0]],
        [off(4096).abs(), lost_of_dot(&ones, &values)],
    );
    assert!(short[0] < long[0] / 4.0 && short[1] < long[1] / 4.0);
}
