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
/// dtype that [`Problem::plan`] accepts; algorithm and tier are ignored.
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
        let query = heads.query(b, h, i);
        let keys = &heads.keys(b, h)[begin * dim_qk..end * dim_qk];
        let mut weights: Vec<f32> = keys
            .chunks_exact(dim_qk)
            .map(|key| {
                let scaled = dot(query, key) * scale;
                softcap.map_or(scaled, |cap| cap * (scaled / cap).tanh())
            })
            .collect();
        let max = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY && !weights.iter().any(|w| w.is_nan()) {
            return max;
        }
        let mut sum = 0.0;
        for weight in &mut weights {
            *weight = (*weight - max).exp();
            sum += *weight;
        }
        let values = &heads.values(b, h)[begin * dim_v..end * dim_v];
        for (value, weight) in values.chunks_exact(dim_v).zip(&weights) {
            for (o, x) in out_row.iter_mut().zip(value) {
                *o += weight * x;
            }
        }
        for o in out_row {
            *o /= sum;
        }
        max + sum.ln()
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
