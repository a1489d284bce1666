//! The oracle: three-pass safe softmax in f64.

use super::{Heads, Scoring, per_row};
use crate::{error::Result, problem::Problem, run::Inputs};

/// The oracle's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Output [batch, seqlen_q, heads_q, head_dim_v], without gaps.
    pub out: Vec<f64>,
    /// Log-sum-exp [batch, heads_q, seqlen_q]: natural logarithm, -inf for a row that sees nothing.
    pub lse: Vec<f64>,
}

/// Attention in f64, from the inputs as they are, times their scales: maximum; sum; weighted sum (safe softmax,
/// arXiv:1805.02867, algorithm 2). A row that sees no key, or only keys of score -inf, has output 0 and LSE -inf.
///
/// # Errors
/// [`Error::BadInput`](crate::Error::BadInput) as [`Problem::plan`], and for slices that are too short.
pub fn attention_f64(problem: &Problem, inputs: &Inputs<'_>) -> Result<Reference> {
    oracle(&Heads::new(problem, inputs)?, Scoring::of(problem))
}

/// As [`attention_f64`], of gathered inputs. A row whose only key is its sink has the sink as LSE.
pub(crate) fn oracle(heads: &Heads, scoring: Scoring<'_>) -> Result<Reference> {
    let scale = f64::from(scoring.scale);
    let softcap = scoring.softcap.map(f64::from);
    let (dim_qk, dim_v) = (heads.shape.head_dim_qk, heads.shape.head_dim_v);

    let (out, lse) = per_row(&heads.shape, |b, h, i, out_row: &mut [f64]| {
        let (query, q_scale) = (heads.query(b, h, i), heads.query_scale(b, h, i));
        let keys = heads.keys(b, h).chunks_exact(dim_qk);
        // (key, score) of the keys in sight.
        let mut scores = Vec::new();
        for (j, (key, k_scale)) in keys.zip(heads.key_scales(b, h)).enumerate() {
            if let Some(term) = scoring.pairs.term(h, i, j) {
                let products = query
                    .iter()
                    .zip(key)
                    .map(|(&x, &y)| (f64::from(x) * q_scale) * (f64::from(y) * k_scale));
                let scaled = products.sum::<f64>() * scale;
                let capped = softcap.map_or(scaled, |cap| cap * (scaled / cap).tanh());
                scores.push((j, capped + term.sum));
            }
        }
        let sink = scoring.pairs.sink(h);
        let max = scores.iter().fold(sink, |max, &(_, s)| max.max(s));
        let nan = scores.iter().any(|&(_, s)| s.is_nan());
        if max == f64::NEG_INFINITY && !nan {
            return f64::NEG_INFINITY;
        }
        let sum = (sink - max).exp() + scores.iter().map(|&(_, s)| (s - max).exp()).sum::<f64>();
        let (values, v_scales) = (heads.values(b, h), heads.value_scales(b, h));
        for &(j, s) in &scores {
            let weight = (s - max).exp() / sum;
            let value = &values[j * dim_v..][..dim_v];
            for (o, &x) in out_row.iter_mut().zip(value) {
                *o += weight * (f64::from(x) * v_scales[j]);
            }
        }
        max + sum.ln()
    })?;
    Ok(Reference { out, lse })
}
