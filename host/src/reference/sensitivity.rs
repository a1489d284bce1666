//! How far errors of the scores move the output.

use super::{
    Heads, Scoring,
    accumulator::{WeightedSum, lost_of_dot, rounding_of_probability},
    per_row,
};
use crate::error::Result;

/// An error of a score q_i . k_j.
#[derive(Clone, Copy)]
pub(super) enum ScoreError {
    /// Relative to its sum of absolute products.
    Relative(f64),
    /// What accumulators of 14 bits lose ([`lost_of_dot`]).
    Accumulator,
    /// Relative to the magnitude of what is added to it, after scale and cap.
    Terms(f64),
}

/// An error of what scores become.
#[derive(Clone, Copy)]
pub(super) enum ProbabilityError {
    /// Of a probability other than 0 and 1, relative to it.
    Relative(f64),
    /// Half a unit in the last place of e4m3 ([`rounding_of_probability`]).
    E4m3,
    /// None of a probability, but what accumulators of 14 bits lose of the weighted sum ([`WeightedSum::lost`]).
    Accumulator,
}

/// Errors of what the output is made of.
#[derive(Clone, Copy)]
pub(super) struct Perturbation {
    pub score: ScoreError,
    pub probability: ProbabilityError,
}

/// How far a perturbation moves the results.
pub(super) struct Moves {
    /// Every element of out, in the order of [`Reference::out`](super::Reference::out).
    pub out: Vec<f64>,
    /// The score of each row that moves most, in the order of [`Reference::lse`](super::Reference::lse). The log-sum-exp moves no more.
    pub score: Vec<f64>,
    /// The log-sum-exp of each row, in the same order: the mean of what the scores move, by their weights.
    pub lse: Vec<f64>,
}

/// A key in sight.
struct Key {
    index: usize,
    /// The score; then its exponential, relative to the row's maximum.
    weight: f64,
    /// Error of the score after scale and cap.
    error: f64,
}

/// How far the results move to first order under a perturbation: an element of out by `sum_j p_ij (|ds_ij| |v_jx - out_ix| +
/// |dp_ij| |v_jx|)`, where `ds` is the error of the score after scale and cap, and `dp` that of the probability.
///
/// That follows from d(out_i) = sum_j p_ij (v_j - out_i) d(s_ij). Where one key dominates a row it is
/// next to nothing; where two large scores nearly tie it says what no yardstick shows reliably.
pub(super) fn sensitivity(
    scoring: Scoring<'_>,
    heads: &Heads,
    perturbation: Perturbation,
) -> Result<Moves> {
    let softcap = scoring.softcap.map(f64::from);
    let (dim_qk, dim_v) = (heads.shape.head_dim_qk, heads.shape.head_dim_v);
    let (out, moves) = per_row(&heads.shape, |b, h, i, row: &mut [f64]| {
        let query = heads.query(b, h, i);
        let q_scale = f64::from(scoring.scale) * heads.query_scale(b, h, i);
        let keys = heads.keys(b, h).chunks_exact(dim_qk);
        let mut keys: Vec<Key> = keys
            .zip(heads.key_scales(b, h))
            .enumerate()
            .filter_map(|(j, key)| Some((j, key, scoring.pairs.term(h, i, j)?)))
            .map(|(index, (key, k_scale), term)| {
                let scale = q_scale * k_scale;
                let products = query
                    .iter()
                    .zip(key)
                    .map(|(&x, &y)| f64::from(x) * f64::from(y));
                let (dot, absolute) = products.fold((0.0, 0.0), |(dot, absolute), product| {
                    (dot + product, absolute + product.abs())
                });
                let error = scale.abs()
                    * match perturbation.score {
                        ScoreError::Relative(error) => error * absolute,
                        ScoreError::Accumulator => lost_of_dot(query, key),
                        ScoreError::Terms(_) => 0.0,
                    };
                let (weight, error) = match softcap {
                    Some(cap) => {
                        let tanh = (dot * scale / cap).tanh();
                        (cap * tanh, error * (1.0 - tanh * tanh))
                    }
                    None => (dot * scale, error),
                };
                let error_of_term = match perturbation.score {
                    ScoreError::Terms(error) => error * term.magnitude,
                    ScoreError::Relative(_) | ScoreError::Accumulator => 0.0,
                };
                Key {
                    index,
                    weight: weight + term.sum,
                    error: error + error_of_term,
                }
            })
            .collect();
        // A score of -inf hides its key.
        keys.retain(|key| key.weight != f64::NEG_INFINITY);
        let sink = scoring.pairs.sink(h);
        let max = keys.iter().fold(sink, |max, key| max.max(key.weight));
        for key in &mut keys {
            key.weight = (key.weight - max).exp();
        }
        let of_sink = match sink == f64::NEG_INFINITY {
            true => 0.0,
            false => (sink - max).exp(),
        };
        let sum = of_sink + keys.iter().map(|key| key.weight).sum::<f64>();
        let (values, scales) = (heads.values(b, h), heads.value_scales(b, h));
        let value = |j: usize| {
            let row = &values[j * dim_v..][..dim_v];
            row.iter().map(move |&v| f64::from(v) * scales[j])
        };
        let mut out = vec![0.0; dim_v];
        for key in &keys {
            for (o, v) in out.iter_mut().zip(value(key.index)) {
                *o += key.weight / sum * v;
            }
        }
        for key in &keys {
            let probability = key.weight / sum;
            let rounding = match perturbation.probability {
                ProbabilityError::Relative(error) if probability < 1.0 => error * probability,
                ProbabilityError::E4m3 if probability < 1.0 => {
                    rounding_of_probability(key.weight) / sum
                }
                _ => 0.0,
            };
            for ((x, v), o) in row.iter_mut().zip(value(key.index)).zip(&out) {
                *x += probability * key.error * (v - o).abs() + rounding * v.abs();
            }
        }
        if let ProbabilityError::Accumulator = perturbation.probability {
            let weights: Vec<_> = keys.iter().map(|key| (key.index, key.weight)).collect();
            let weighted = WeightedSum {
                weights: &weights,
                values,
                scales,
                dim: dim_v,
            };
            for (x, lost) in row.iter_mut().zip(weighted.lost()) {
                *x += lost / sum;
            }
        }
        let largest = keys.iter().fold(0.0, |max: f64, key| max.max(key.error));
        let mean = keys.iter().map(|key| key.weight / sum * key.error).sum();
        [largest, mean]
    })?;
    let [score, lse] = [0, 1].map(|of| moves.iter().map(|moves| moves[of]).collect());
    Ok(Moves { out, score, lse })
}
