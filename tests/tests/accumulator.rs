//! Hopper's tensor cores keep 14 bits of sums of 8-bit products. What that costs over long sequences, in the emulator's model of them.

use flashtile::{
    DType, EmulatorDevice,
    device::emulator::{Numerics, Options, TensorCores},
    element,
};
use flashtile_emulator::semantics::{
    Float,
    mma::fused::{HOPPER_WGMMA_FP8, multiply},
};
use flashtile_tests::{Case, Distribution, Results, Tensors, judge, oracle, run, sizes};

const QUERIES: usize = 16;
const KEYS: usize = 16 << 10;
const DIM: usize = 64;

/// Keys of one step of the tensor cores, and columns.
const STEP: usize = 32;
const COLUMNS: usize = 8;

/// Attention with probabilities that are relative to the row's maximum, times 2^8, rounded to e4m3; everything else in f64. And the
/// same with weighted sums that stay in the tensor cores' accumulator over all keys.
fn exact_and_plain(case: &Case, tensors: &Tensors) -> [Vec<f64>; 2] {
    let scale = f64::from(case.problem().softmax_scale());
    let weights: Vec<Vec<f64>> = (0..QUERIES)
        .map(|i| {
            let query = &tensors.q[i * DIM..][..DIM];
            let scores = tensors.k.chunks(DIM).map(|key| {
                let products = query.iter().zip(key).map(|(a, b)| f64::from(a * b));
                scale * products.sum::<f64>()
            });
            let scores: Vec<f64> = scores.collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            scores.iter().map(|x| 256.0 * (x - max).exp()).collect()
        })
        .collect();
    let mut exact = vec![0.0; QUERIES * DIM];
    let mut accumulators = [[[0.0; COLUMNS]; QUERIES]; DIM / COLUMNS];
    for first in (0..KEYS).step_by(STEP) {
        let p: [[f32; STEP]; QUERIES] = std::array::from_fn(|i| {
            std::array::from_fn(|j| element::round(DType::E4m3, weights[i][first + j] as f32))
        });
        let values = &tensors.v[first * DIM..][..STEP * DIM];
        for (row, p) in exact.chunks_mut(DIM).zip(&p) {
            for (p, value) in p.iter().zip(values.chunks(DIM)) {
                for (sum, v) in row.iter_mut().zip(value) {
                    *sum += f64::from(p * v);
                }
            }
        }
        for (n, accumulator) in accumulators.iter_mut().enumerate() {
            let v: [[f32; COLUMNS]; STEP] =
                std::array::from_fn(|j| std::array::from_fn(|x| values[j * DIM + n * COLUMNS + x]));
            multiply(HOPPER_WGMMA_FP8, [Float::E4m3; 2], &p, &v, accumulator);
        }
    }
    let mut plain = exact.clone();
    let both = exact.chunks_mut(DIM).zip(plain.chunks_mut(DIM));
    for (i, (exact, plain)) in both.enumerate() {
        let sum: f64 = weights[i].iter().sum();
        for x in 0..DIM {
            exact[x] /= sum;
            plain[x] = f64::from(accumulators[x / COLUMNS][i][x % COLUMNS]) / sum;
        }
    }
    [exact, plain]
}

/// Root mean square and maximum of differences.
fn errors(a: &[f64], b: &[f64]) -> [f64; 2] {
    assert_eq!(a.len(), b.len());
    let errors = a.iter().zip(b).map(|(a, b)| a - b);
    let (squares, max) = errors.fold((0.0, 0f64), |(sum, max), e| (sum + e * e, max.max(e.abs())));
    [(squares / a.len() as f64).sqrt(), max]
}

/// The kernels add sums of at most 256 keys in f32. At 16,384 keys of about the same weight, what they lose by the accumulator is at most
/// half of what a sum of all keys in the accumulator loses; so is their whole error where values do not cancel. (Where they do, the
/// rounding of probabilities is the most of either error.)
#[test]
fn sums_of_two_levels_are_at_least_twice_as_exact() {
    let device = |tensor_cores| {
        EmulatorDevice::with_options(Options {
            numerics: Numerics {
                tensor_cores,
                ..Numerics::default()
            },
            ..Options::default()
        })
    };
    let (hopper, fast) = (device(TensorCores::Hopper), device(TensorCores::Fast));
    let case = Case::new(DType::E4m3, sizes(QUERIES, KEYS, [1, 1], DIM)).out_f32();
    // Scores are sums of 64 times -1, 0 or 1: the accumulator loses nothing of them.
    let scores = Tensors::of(&case.data(Distribution::Ternary, 1));
    let normal = Tensors {
        v: Tensors::of(&case).v,
        ..scores
    };
    let positive = Tensors {
        v: normal.v.iter().map(|v| v.abs()).collect(),
        ..normal.clone()
    };
    for (tensors, cancels) in [(normal, true), (positive, false)] {
        let reference = oracle(&case, &tensors).out;
        let results = run(&hopper, &case, &tensors).unwrap();
        judge(&case, &tensors, &results).unwrap();
        let out = |results: &Results| results.out.iter().map(|&x| x.into()).collect::<Vec<f64>>();
        let kernel = out(&results);
        let unlimited = out(&run(&fast, &case, &tensors).unwrap());
        let [exact, plain] = exact_and_plain(&case, &tensors);
        let mut pairs = vec![(errors(&kernel, &unlimited), errors(&plain, &exact))];
        if !cancels {
            pairs.push((errors(&kernel, &reference), errors(&plain, &reference)));
        }
        for (kernel, plain) in pairs {
            for (kernel, plain) in kernel.into_iter().zip(plain) {
                assert!(2.0 * kernel <= plain, "{kernel:e} against {plain:e}");
            }
        }
    }
}
