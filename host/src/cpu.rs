//! Attention on the CPU in f32: the command line's `cpu` device.

use crate::{
    element,
    error::Result,
    plan,
    problem::Problem,
    reference::{Heads, per_row},
    run::{Inputs, Outputs, bytes_of},
};

/// Attention in f32 on all cores: three-pass safe softmax, sums in f32. Every mask, layout and
/// dtype that [`Problem::plan`] accepts; algorithm and tier are ignored. Rows with a score past
/// f32's range have their weights computed in f64, so that finite inputs never give NaN.
///
/// # Errors
/// [`Error::BadInput`](crate::Error::BadInput) as [`Problem::plan`], and for slices that are too short.
pub fn attention(problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs> {
    let heads = Heads::new(problem, inputs)?;
    let scale = problem.softmax_scale();
    let softcap = problem.softcap;
    let (dim_qk, dim_v) = (heads.shape.head_dim_qk, heads.shape.head_dim_v);
    let band = plan::band(problem);

    let (rows, lse) = per_row(&heads.shape, |b, h, i, out_row: &mut [f32]| {
        let sight = band.row(i as i32);
        if sight.begin >= sight.end {
            return f32::NEG_INFINITY;
        }
        let (begin, end) = (sight.begin as usize, sight.end as usize);
        let row = Row {
            query: heads.query(b, h, i),
            keys: &heads.keys(b, h)[begin * dim_qk..end * dim_qk],
            values: &heads.values(b, h)[begin * dim_v..end * dim_v],
            // What scores of elements are multiplied by. In f64, so that scales past each other's range meet.
            scale: f64::from(scale) * heads.query_scale(b, h, i),
            k_scales: &heads.key_scales(b, h)[begin..end],
            v_scales: &heads.value_scales(b, h)[begin..end],
            softcap,
            sink: f32::NEG_INFINITY,
        };
        row.attend(|_| Some(0.0), out_row)
    })?;

    let dtype = problem.out_element();
    let mut out = vec![0; bytes_of("out", &problem.out, dtype.bytes())?];
    let [_, seqlen, head_count, _] = problem.out.shape;
    for (index, row) in rows.chunks(dim_v).enumerate() {
        let (b, i, h) = (
            index / head_count / seqlen,
            index / head_count % seqlen,
            index % head_count,
        );
        let at = problem.out.index([b, i, h, 0]);
        for (x, &value) in row.iter().enumerate() {
            element::write(dtype, &mut out, at + x, value);
        }
    }
    Ok(Outputs {
        out,
        lse: problem.lse.then_some(lse),
    })
}

/// One query and the keys that it may see.
pub(crate) struct Row<'a> {
    pub query: &'a [f32],
    /// One after the other; so values.
    pub keys: &'a [f32],
    pub values: &'a [f32],
    /// Factor of the scores.
    pub scale: f64,
    /// Another one for each key.
    pub k_scales: &'a [f64],
    /// What each value is multiplied by.
    pub v_scales: &'a [f64],
    pub softcap: Option<f32>,
    /// Logit of a key whose value is 0; -inf is none.
    pub sink: f32,
}

impl Row<'_> {
    /// Adds the output to `out`, which is zero, and returns the log-sum-exp. `term` is what is added to the score of each key, `None`
    /// if it is not seen after all.
    pub fn attend(&self, term: impl Fn(usize) -> Option<f32>, out: &mut [f32]) -> f32 {
        let keys = self.keys.chunks_exact(self.query.len()).zip(self.k_scales);
        let keys = keys.enumerate();
        let mut overflow = false;
        let mut weights: Vec<f32> = keys
            .clone()
            .map(|(j, (key, k_scale))| {
                let Some(term) = term(j) else {
                    return f32::NEG_INFINITY;
                };
                let scaled = dot(self.query, key) * (self.scale * k_scale) as f32;
                overflow |= !scaled.is_finite();
                term + self
                    .softcap
                    .map_or(scaled, |cap| cap * (scaled / cap).tanh())
            })
            .collect();
        let (lse, sum) = match overflow {
            false => softmax(&mut weights, self.sink),
            true => {
                let scores = keys.map(|(j, (key, k_scale))| {
                    let Some(term) = term(j) else {
                        return f64::NEG_INFINITY;
                    };
                    let scaled = dot_f64(self.query, key) * (self.scale * k_scale);
                    f64::from(term)
                        + self.softcap.map_or(scaled, |cap| {
                            f64::from(cap) * (scaled / f64::from(cap)).tanh()
                        })
                });
                softmax_f64(scores.collect(), f64::from(self.sink), &mut weights)
            }
        };
        if sum == 0.0 {
            return lse;
        }
        // Divided first: the sum of large values would overflow before it is divided.
        let weights = weights.iter().zip(self.v_scales);
        for (value, (weight, scale)) in self.values.chunks_exact(out.len()).zip(weights) {
            // A key that is not seen must not reach the row, whatever its value is.
            if *weight == 0.0 {
                continue;
            }
            let weight = (f64::from(weight / sum) * scale) as f32;
            for (o, x) in out.iter_mut().zip(value) {
                *o += weight * x;
            }
        }
        lse
    }
}

/// Turns scores into weights and returns their log-sum-exp, and the sum that they are still to be divided by; the sink counts in both.
fn softmax(scores: &mut [f32], sink: f32) -> (f32, f32) {
    let max = scores.iter().copied().fold(sink, f32::max);
    if max == f32::NEG_INFINITY {
        scores.fill(0.0);
        return (max, 0.0);
    }
    let mut sum = 0.0;
    for score in scores {
        *score = (*score - max).exp();
        sum += *score;
    }
    sum += (sink - max).exp();
    (max + sum.ln(), sum)
}

/// As [`softmax`], of scores that may be past f32's range, infinite or NaN. The weights are zero if
/// all scores are -inf.
fn softmax_f64(scores: Vec<f64>, sink: f64, weights: &mut [f32]) -> (f32, f32) {
    let max = scores.iter().copied().fold(sink, f64::max);
    if max == f64::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
        weights.fill(0.0);
        return (f32::NEG_INFINITY, 0.0);
    }
    let mut sum = (sink - max).exp();
    for (weight, score) in weights.iter_mut().zip(scores) {
        let exact = (score - max).exp();
        *weight = exact as f32;
        sum += exact;
    }
    ((max + sum.ln()) as f32, sum as f32)
}

/// Sum of products, which cannot overflow.
fn dot_f64(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y));
    products.sum()
}

/// Sum of products in eight lanes, so that it vectorises.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<8>();
    let (b_lanes, b_rest) = b.as_chunks::<8>();
    let mut lanes = [0f32; 8];
    for (x, y) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..8 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Shape};

    /// One query with two keys of these elements; values 1 and 3.
    fn two_keys(q: [f32; 2], keys: [[f32; 2]; 2], change: impl Fn(Problem) -> Problem) -> [f32; 2] {
        two_values(q, keys, [1.0, 3.0], change)
    }

    fn two_values(
        q: [f32; 2],
        keys: [[f32; 2]; 2],
        values: [f32; 2],
        change: impl Fn(Problem) -> Problem,
    ) -> [f32; 2] {
        let shape = Shape {
            batch: 1,
            seqlen_q: 1,
            seqlen_k: 2,
            heads_q: 1,
            heads_kv: 1,
            head_dim_qk: 2,
            head_dim_v: 1,
        };
        let problem = change(Problem::contiguous(DType::F32, shape).lse(true));
        let encode = |values: &[f32]| element::encode(DType::F32, values);
        let (q, k, v) = (encode(&q), encode(keys.as_flattened()), encode(&values));
        let inputs = Inputs {
            q: &q,
            k: &k,
            v: &v,
            ..Inputs::default()
        };
        let outputs = attention(&problem, &inputs).unwrap();
        let out = element::gather(DType::F32, &outputs.out, &problem.out).unwrap();
        [out[0], outputs.lse.unwrap()[0]]
    }

    #[test]
    fn scores_past_the_range_of_f32() {
        let inf = f32::INFINITY;
        let same = |problem| problem;
        let big = [1e30, 0.0];
        assert_eq!(two_keys(big, [big, big], same), [2.0, inf]);
        assert_eq!(two_keys(big, [[-1e30, 0.0]; 2], same), [2.0, -inf]);
        assert_eq!(two_keys(big, [big, [2e30, 0.0]], same), [3.0, inf]);
        let scaled = |problem: Problem| problem.scale(1e38);
        assert_eq!(
            two_keys([9.0, 0.0], [[9.0, 0.0], [8.0, 0.0]], scaled),
            [1.0, inf]
        );
        // Infinite partial sums that cancel: both scores are 0.
        let cancels = [[1e30, -1e30]; 2];
        assert_eq!(two_keys([1e30, 1e30], cancels, same), [2.0, 2f32.ln()]);
        let capped = |problem: Problem| problem.softcap(1.0);
        assert_eq!(two_keys([1e30, 1e30], cancels, capped), [2.0, 2f32.ln()]);
    }

    #[test]
    fn values_whose_sum_overflows() {
        let keys = [[0.0; 2]; 2];
        assert_eq!(two_values([0.0; 2], keys, [3e38; 2], |p| p)[0], 3e38);
        assert_eq!(two_values([0.0; 2], keys, [3e38, -3e38], |p| p)[0], 0.0);
    }

    #[test]
    fn infinite_inputs() {
        let inf = f32::INFINITY;
        let found = two_keys([1.0, 0.0], [[-inf, 0.0]; 2], |problem| problem);
        assert_eq!(found[1].to_bits(), (-inf).to_bits());
        assert_eq!(found[0], 0.0);
        let [out, _] = two_keys([1.0, 0.0], [[-inf, 0.0], [5.0, 0.0]], |problem| problem);
        assert_eq!(out, 3.0);
    }
}
