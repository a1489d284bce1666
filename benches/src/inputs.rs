//! Elements from a seed and their place alone, so that any of them can be made anywhere: whole tensors on the way to a
//! device, single rows for the oracle, and the same numbers again in Python (`peers.py`).

use std::ops::Range;

use flashtile::{DType, element};
use rayon::prelude::*;

/// Elements that one task makes.
const CHUNK: usize = 1 << 16;

/// Bits of a 32-bit number, thoroughly mixed: one to one.
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// A seed's two keys.
fn keys(seed: u32) -> [u32; 2] {
    [0, 1].map(|which| mix(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9 + which)))
}

/// The sum of four independent 16-bit numbers, scaled to mean 0 and variance 1: nearly normal, at most 3.47. All of
/// it is exact in f32 but the last product, so that every machine gets the same bits.
fn element(keys: [u32; 2], index: usize) -> f32 {
    // Tensors of 2^32 elements and more repeat themselves.
    let place = mix(index as u32);
    let halves = |key: u32| {
        let bits = mix(place ^ key);
        (bits & 0xffff) + (bits >> 16)
    };
    let sum = halves(keys[0]) + halves(keys[1]);
    // A 16-bit number has variance 2^32 / 12.
    (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
}

/// Elements `range` of the tensor of a seed, rounded to the element type.
pub fn part(dtype: DType, seed: u32, range: Range<usize>) -> Vec<u8> {
    let keys = keys(seed);
    let width = dtype.bytes() as usize;
    let mut bytes = vec![0; range.len() * width];
    let chunks = bytes.par_chunks_mut(CHUNK * width).enumerate();
    chunks.for_each(|(chunk, bytes)| {
        let first = range.start + chunk * CHUNK;
        for at in 0..bytes.len() / width {
            element::write(dtype, bytes, at, element(keys, first + at));
        }
    });
    bytes
}

/// The first `count` elements of the tensor of a seed.
pub fn values(dtype: DType, count: usize, seed: u32) -> Vec<u8> {
    part(dtype, seed, 0..count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u32, count: usize) -> Vec<f64> {
        let bytes = values(DType::F32, count, seed);
        (0..count)
            .map(|at| f64::from(element::read(DType::F32, &bytes, at)))
            .collect()
    }

    fn mean(numbers: impl Iterator<Item = f64>, count: usize) -> f64 {
        numbers.sum::<f64>() / count as f64
    }

    /// Computed in Python's integers, as `peers.py` does it.
    #[test]
    fn the_numbers_are_these() {
        let first: Vec<_> = numbers(1, 3).into_iter().map(|x| x as f32).collect();
        assert_eq!(first, [0.142_584_44, 0.383_114_76, 0.441_787_12]);
        assert_eq!(element(keys(1), 123_456_789), 0.326_530_28);
    }

    #[test]
    fn a_part_is_that_of_the_whole() {
        let count = 2 * CHUNK + 77;
        for dtype in [DType::F16, DType::F32] {
            let width = dtype.bytes() as usize;
            let whole = values(dtype, count, 5);
            for range in [0..1, 3..3, CHUNK - 1..CHUNK + 1, 100..count] {
                let bytes = range.start * width..range.end * width;
                assert_eq!(part(dtype, 5, range), whole[bytes]);
            }
        }
    }

    /// A mean over n numbers of variance 1 is off by more than 5/sqrt(n) once in a million.
    #[test]
    fn nearly_normal_and_independent() {
        let count = 1 << 16;
        let close = |found: f64, expected: f64, variance: f64| {
            let off = (found - expected).abs();
            assert!(off < 5.0 * (variance / count as f64).sqrt(), "{found}");
        };
        let [a, b] = [numbers(1, count), numbers(2, count)];
        for x in [&a, &b] {
            close(mean(x.iter().copied(), count), 0.0, 1.0);
            // The sum of four uniform numbers has kurtosis 3 - 6/(5*4), so x^2 has variance 1.7.
            close(mean(x.iter().map(|x| x * x), count), 1.0, 1.7);
            assert!(x.iter().all(|x| x.abs() < 3.47));
        }
        close(mean(a.iter().zip(&b).map(|(x, y)| x * y), count), 0.0, 1.0);
        close(mean(a.windows(2).map(|x| x[0] * x[1]), count), 0.0, 1.0);
    }
}
