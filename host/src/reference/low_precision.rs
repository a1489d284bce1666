//! The textbook computation in the precision of the inputs: what an error may be compared with.

use flashtile_abi::DType;

use super::{Heads, Scoring, per_row};
use crate::{element, error::Result, problem::Problem, run::Inputs};

/// Results of the computation in low precision.
#[derive(Clone, Debug, PartialEq)]
pub struct LowPrecision {
    /// Output [batch, seqlen_q, heads_q, head_dim_v], rounded to the output's element type.
    pub out: Vec<f32>,
    /// Log-sum-exp [batch, heads_q, seqlen_q] in f32 throughout: no implementation rounds the scores to the
    /// inputs' precision before it sums, so nothing coarser would be a fair yardstick.
    pub lse: Vec<f32>,
}

/// Attention as written in a textbook, every intermediate tensor in the inputs' precision: S = q k^T
/// summed in f32 and rounded; scaled, rounded; capped, rounded; P = softmax(S) computed in f32
/// and rounded; out = P v summed in f32 and rounded to the output's element type. Sums run from
/// the first element to the last. This is what FlashAttention's tests run in PyTorch
/// (`attention_ref` with `upcast=False`).
///
/// For f16 the scores keep f16's precision, not its range: a score past 65504 would otherwise be
/// infinite, and the yardstick NaN.
///
/// For f32 the precision is that of f32 on tensor cores: operands are sums of two tf32 numbers (22
/// significant bits), of the products of the pieces the smallest is dropped, and sums are truncated
/// (not rounded) to f32 after every 8 products. Scores and P stay f32.
///
/// For e4m3 inputs, scores are those of the elements times their scales, in bf16's precision, as in FlashAttention's test of its
/// own fp8 kernels. Probabilities are relative to the row's maximum, times 2^8, rounded to e4m3: every implementation scales them
/// so, for without it small ones vanish. Their weighted sum is divided by 2^8 times the f32 sum of the probabilities before
/// rounding.
///
/// # Errors
/// As [`attention_f64`](super::attention_f64).
pub fn attention_low_precision(problem: &Problem, inputs: &Inputs<'_>) -> Result<LowPrecision> {
    low_precision(&Heads::new(problem, inputs)?, Scoring::of(problem))
}

/// As [`attention_low_precision`], of gathered inputs. What is added to scores is added in f32, and the sum stays f32: that is what
/// adding an f32 tensor to one of lower precision gives.
pub(crate) fn low_precision(heads: &Heads, scoring: Scoring<'_>) -> Result<LowPrecision> {
    match scoring.dtype {
        DType::F16 | DType::Bf16 | DType::E4m3 => compute(scoring, heads, Sequential),
        DType::F32 => compute(scoring, heads, Tf32Pairs),
    }
}

/// How sums of products are made.
trait Products: Sync {
    /// Sum of the products of two rows.
    fn dot(&self, a: &[f32], b: &[f32]) -> f32;

    /// out\[x\] = sum over j of weights\[j\] * rows\[j\]\[x\].
    fn weighted_sum(&self, weights: &[f32], rows: &[&[f32]], out: &mut [f32]);
}

/// One after the other, in f32.
struct Sequential;

impl Products for Sequential {
    fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).fold(0.0, |sum, (x, y)| sum + x * y)
    }

    fn weighted_sum(&self, weights: &[f32], rows: &[&[f32]], out: &mut [f32]) {
        for (weight, row) in weights.iter().zip(rows) {
            for (o, x) in out.iter_mut().zip(*row) {
                *o += weight * x;
            }
        }
    }
}

/// As tensor cores compute f32 products from tf32 pieces.
struct Tf32Pairs;

impl Tf32Pairs {
    /// Products between two truncations of a sum.
    const STEP: usize = 8;

    /// `sum` plus products, small pieces first.
    fn add(sum: f32, pairs: impl Iterator<Item = (f32, f32)> + Clone) -> f32 {
        let step = |sum: f32, product: fn([f64; 2], [f64; 2]) -> f64| {
            let products = pairs.clone().map(|(a, b)| product(split(a), split(b)));
            truncate(products.fold(f64::from(sum), |sum, product| sum + product))
        };
        let sum = step(sum, |[_, a_low], [b_high, _]| a_low * b_high);
        let sum = step(sum, |[a_high, _], [_, b_low]| a_high * b_low);
        step(sum, |[a_high, _], [b_high, _]| a_high * b_high)
    }
}

impl Products for Tf32Pairs {
    fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        let steps = a.chunks(Self::STEP).zip(b.chunks(Self::STEP));
        steps.fold(0.0, |sum, (a, b)| {
            Self::add(sum, a.iter().copied().zip(b.iter().copied()))
        })
    }

    fn weighted_sum(&self, weights: &[f32], rows: &[&[f32]], out: &mut [f32]) {
        for (weights, rows) in weights.chunks(Self::STEP).zip(rows.chunks(Self::STEP)) {
            for (x, o) in out.iter_mut().enumerate() {
                let column = rows.iter().map(|row| row[x]);
                *o = Self::add(*o, weights.iter().copied().zip(column));
            }
        }
    }
}

/// A number as the sum of two tf32 numbers, up to 2^-22 of it.
fn split(x: f32) -> [f64; 2] {
    let high = round_tf32(x);
    [f64::from(high), f64::from(round_tf32(x - high))]
}

/// Rounds to the nearest tf32, ties away from zero.
fn round_tf32(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    f32::from_bits((x.to_bits() + (1 << 12)) & !((1 << 13) - 1))
}

/// Rounds towards zero.
fn truncate(x: f64) -> f32 {
    let nearest = x as f32;
    if f64::from(nearest).abs() <= x.abs() || !nearest.is_finite() {
        return nearest;
    }
    // Not zero: its magnitude is above another's.
    f32::from_bits(nearest.to_bits() - 1)
}

fn compute(scoring: Scoring<'_>, heads: &Heads, products: impl Products) -> Result<LowPrecision> {
    let Scoring {
        dtype,
        out: out_dtype,
        scale,
        softcap,
        pairs,
    } = scoring;
    let (dim_qk, dim_v) = (heads.shape.head_dim_qk, heads.shape.head_dim_v);

    let (out, lse) = per_row(&heads.shape, |b, h, i, out_row: &mut [f32]| {
        let (query, q_scale) = (heads.query(b, h, i), heads.query_scale(b, h, i));
        let (k_scales, v_scales) = (heads.key_scales(b, h), heads.value_scales(b, h));
        let values = heads.values(b, h);
        let mut rows = Vec::new();
        let mut row_scales = Vec::new();
        let mut exact = Vec::new();
        let mut rounded = Vec::new();
        for (j, key) in heads.keys(b, h).chunks_exact(dim_qk).enumerate() {
            if let Some(term) = pairs.term(h, i, j) {
                let term = term.sum as f32;
                let dot = f64::from(products.dot(query, key)) * (q_scale * k_scales[j]);
                let dot = dot as f32;
                rows.push(&values[j * dim_v..][..dim_v]);
                row_scales.push(v_scales[j] as f32);
                exact.push(term + score(dot, scale, softcap, |x| x));
                rounded.push(term + score(dot, scale, softcap, |x| round_score(dtype, x)));
            }
        }
        let sink = pairs.sink(h) as f32;
        let (max, sum) = max_and_sum(&rounded, sink);
        if max > f32::NEG_INFINITY {
            let (before, after) = match dtype {
                DType::E4m3 => (1.0, sum),
                _ => (sum, 1.0),
            };
            let weight = |s: &f32| round_probability(dtype, (s - max).exp() / before);
            let weights = rounded.iter().zip(&row_scales);
            let weights: Vec<f32> = weights.map(|(s, scale)| weight(s) * scale).collect();
            products.weighted_sum(&weights, &rows, out_row);
            out_row.iter_mut().for_each(|o| *o /= after);
        }
        for o in out_row {
            *o = element::round(out_dtype, *o);
        }
        let (max, sum) = max_and_sum(&exact, sink);
        if max > f32::NEG_INFINITY {
            max + sum.ln()
        } else {
            max
        }
    })?;
    Ok(LowPrecision { out, lse })
}

/// A score from a sum of products, each step rounded.
fn score(dot: f32, scale: f32, softcap: Option<f32>, round: impl Fn(f32) -> f32) -> f32 {
    let scaled = round(round(dot) * scale);
    match softcap {
        Some(cap) => round(round(round(scaled / cap).tanh()) * cap),
        None => scaled,
    }
}

/// Maximum, and sum of the exponentials of the differences from it; -inf is no sink.
fn max_and_sum(scores: &[f32], sink: f32) -> (f32, f32) {
    let max = scores.iter().copied().fold(sink, f32::max);
    let all = scores.iter().chain(std::iter::once(&sink));
    (max, all.map(|s| (s - max).exp()).sum())
}

/// What 8-bit probabilities relative to the row's maximum are multiplied by: so the largest is 2^8, and the largest number is 448.
const PROBABILITY_FACTOR: f32 = 256.0;

/// Rounds a probability to the elements' type.
fn round_probability(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::E4m3 => element::round(dtype, value * PROBABILITY_FACTOR) / PROBABILITY_FACTOR,
        _ => element::round(dtype, value),
    }
}

/// Rounds to the precision of scores of such elements: f16's 11 significant bits beyond
/// its range too; bf16's for 8-bit elements; f32 as it is.
fn round_score(dtype: DType, value: f32) -> f32 {
    let dtype = match dtype {
        DType::E4m3 => DType::Bf16,
        other => other,
    };
    let nearest = element::round(dtype, value);
    if dtype != DType::F16 || nearest.is_finite() || !value.is_finite() {
        return nearest;
    }
    // Round to nearest even in the 13 bits that f32 has more than f16.
    let bits = value.to_bits();
    let half = (1 << 12) - 1 + ((bits >> 13) & 1);
    f32::from_bits((bits + half) & !((1 << 13) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_is_towards_zero() {
        let above = 1.0 + f64::from(f32::EPSILON) * 0.75;
        assert_eq!(truncate(above), 1.0);
        assert_eq!(truncate(-above), -1.0);
        assert_eq!(truncate(1.5), 1.5);
        assert_eq!(truncate(0.0), 0.0);
    }

    #[test]
    fn two_tf32_numbers_hold_22_bits() {
        for x in [1.0f32, 1.234_567_9, -3.999_999_8, 1e-30, 7e30] {
            let [high, low] = split(x);
            assert!((high + low - f64::from(x)).abs() <= f64::from(x).abs() * 2f64.powi(-22));
            assert_eq!((high as f32).to_bits() & 0x1fff, 0);
            assert_eq!((low as f32).to_bits() & 0x1fff, 0);
        }
    }

    #[test]
    fn f16_precision_without_f16_range() {
        assert_eq!(round_score(DType::F16, 1.0 + 1.0 / 4096.0), 1.0);
        assert_eq!(round_score(DType::F16, 70000.0), 70016.0);
        assert_eq!(round_score(DType::F16, -1.0e6), -999_936.0);
        assert_eq!(round_score(DType::F16, f32::INFINITY), f32::INFINITY);
    }
}
