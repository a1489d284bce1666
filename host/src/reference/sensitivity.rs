//! How far errors of the scores move the output.

use super::{Heads, per_row, visible};
use crate::{error::Result, problem::Problem};

/// Relative errors of what the output is made of.
#[derive(Clone, Copy)]
pub(super) struct Perturbation {
    /// Of a score q_i . k_j, relative to its sum of absolute products.
    pub score: f64,
    /// Of a probability other than 0 and 1.
    pub probability: f64,
}

/// For every element of out (in the order of [`Reference::out`](super::Reference::out)), how far it
/// moves to first order under a perturbation: `sum_j p_ij (|ds_ij| |v_jx - out_ix| + |dp_ij| |v_jx|)`,
/// where `ds` is the error of the score after scale and cap, and `dp` that of the probability.
///
/// That follows from d(out_i) = sum_j p_ij (v_j - out_i) d(s_ij). Where one key dominates a row it is
/// next to nothing; where two large scores nearly tie it says what no yardstick shows reliably.
pub(super) fn sensitivity(
    problem: &Problem,
    heads: &Heads,
    perturbation: Perturbation,
) -> Result<Vec<f64>> {
    let scale = f64::from(problem.softmax_scale());
    let softcap = problem.softcap.map(f64::from);
    let (dim_qk, dim_v) = (heads.shape.head_dim_qk, heads.shape.head_dim_v);
    let (moves, _) = per_row(&heads.shape, |b, h, i, row: &mut [f64]| {
        let query = heads.query(b, h, i);
        // (key, score, error of the score)
        let mut scores = Vec::new();
        for (j, key) in heads.keys(b, h).chunks_exact(dim_qk).enumerate() {
            if !visible(problem, i, j) {
                continue;
            }
            let products = query
                .iter()
                .zip(key)
                .map(|(&x, &y)| f64::from(x) * f64::from(y));
            let (dot, absolute) = products.fold((0.0, 0.0), |(dot, absolute), product| {
                (dot + product, absolute + product.abs())
            });
            let error = absolute * scale.abs() * perturbation.score;
            scores.push(match softcap {
                Some(cap) => {
                    let tanh = (dot * scale / cap).tanh();
                    (j, cap * tanh, error * (1.0 - tanh * tanh))
                }
                None => (j, dot * scale, error),
            });
        }
        let max = scores
            .iter()
            .fold(f64::NEG_INFINITY, |max, score| max.max(score.1));
        for score in &mut scores {
            score.1 = (score.1 - max).exp();
        }
        let sum: f64 = scores.iter().map(|score| score.1).sum();
        let values = heads.values(b, h);
        let mut out = vec![0.0; dim_v];
        for &(j, weight, _) in &scores {
            for (o, &v) in out.iter_mut().zip(&values[j * dim_v..]) {
                *o += weight / sum * f64::from(v);
            }
        }
        for &(j, weight, error) in &scores {
            let probability = weight / sum;
            let rounding = if probability < 1.0 {
                perturbation.probability
            } else {
                0.0
            };
            for ((x, &v), o) in row.iter_mut().zip(&values[j * dim_v..]).zip(&out) {
                let v = f64::from(v);
                *x += probability * (error * (v - o).abs() + rounding * v.abs());
            }
        }
        0.0
    })?;
    Ok(moves)
}
