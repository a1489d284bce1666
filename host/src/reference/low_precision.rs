//! The textbook computation in the precision of the inputs: what an error may be compared with.

use flashtile_abi::DType;

use super::{Heads, per_row, visible};
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
/// # Errors
/// As [`attention_f64`](super::attention_f64).
pub fn attention_low_precision(problem: &Problem, inputs: &Inputs<'_>) -> Result<LowPrecision> {
    let heads = Heads::new(problem, inputs)?;
    let scale = problem.softmax_scale();
    let softcap = problem.softcap;
    let dtype = problem.dtype;
    let out_dtype = problem.out_element();
    let (dim_qk, dim_v) = (heads.shape.head_dim_qk, heads.shape.head_dim_v);

    let (out, lse) = per_row(&heads.shape, |b, h, i, out_row: &mut [f32]| {
        let query = heads.query(b, h, i);
        let mut keys_seen = Vec::new();
        let mut exact = Vec::new();
        let mut rounded = Vec::new();
        for (j, key) in heads.keys(b, h).chunks_exact(dim_qk).enumerate() {
            if visible(problem, i, j) {
                let dot = query
                    .iter()
                    .zip(key)
                    .fold(0f32, |sum, (&x, &y)| sum + x * y);
                keys_seen.push(j);
                exact.push(score(dot, scale, softcap, |x| x));
                rounded.push(score(dot, scale, softcap, |x| round_precision(dtype, x)));
            }
        }
        let (max, sum) = max_and_sum(&rounded);
        if max > f32::NEG_INFINITY {
            let values = heads.values(b, h);
            for (&j, &s) in keys_seen.iter().zip(&rounded) {
                let weight = element::round(dtype, (s - max).exp() / sum);
                let value = &values[j * dim_v..][..dim_v];
                for (o, &x) in out_row.iter_mut().zip(value) {
                    *o += weight * x;
                }
            }
        }
        for o in out_row {
            *o = element::round(out_dtype, *o);
        }
        let (max, sum) = max_and_sum(&exact);
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

/// Maximum, and sum of the exponentials of the differences from it.
fn max_and_sum(scores: &[f32]) -> (f32, f32) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, scores.iter().map(|s| (s - max).exp()).sum())
}

/// Rounds to the element type's precision; beyond f16's range, to its 11 significant bits.
fn round_precision(dtype: DType, value: f32) -> f32 {
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
    fn f16_precision_without_f16_range() {
        assert_eq!(round_precision(DType::F16, 1.0 + 1.0 / 4096.0), 1.0);
        assert_eq!(round_precision(DType::F16, 70000.0), 70016.0);
        assert_eq!(round_precision(DType::F16, -1.0e6), -999_936.0);
        assert_eq!(round_precision(DType::F16, f32::INFINITY), f32::INFINITY);
    }
}
