//! Inputs head by head, and one task per query row.

use rayon::prelude::*;

use crate::{
    element,
    error::{Error, Result},
    plan,
    problem::{Problem, Shape},
    run::Inputs,
    scales::ScaledTensor,
};

/// The inputs of a checked problem, gathered in the order [batch, heads, seqlen, head_dim].
pub(crate) struct Heads {
    pub shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Scales of the rows of q, k and v, [batch, heads, seqlen].
    scales: [Vec<f64>; 3],
}

impl Heads {
    /// Checks problem and inputs, and gathers.
    pub fn new(problem: &Problem, inputs: &Inputs<'_>) -> Result<Self> {
        let shape = plan::check(problem)?;
        inputs.check(problem)?;
        let mut scales = [const { Vec::new() }; 3];
        for ((rows, scaled), scales) in scales.iter_mut().zip(problem.scaled()).zip(inputs.scales())
        {
            *rows = row_scales(&scaled, scales)?;
        }
        Ok(Self {
            shape,
            q: element::gather_heads(problem.dtype, inputs.q, &problem.q)?,
            k: element::gather_heads(problem.dtype, inputs.k, &problem.k)?,
            v: element::gather_heads(problem.dtype, inputs.v, &problem.v)?,
            scales,
        })
    }

    /// Of one sequence or several, from elements in the order [batch, heads, seqlen, head_dim] without scales.
    pub fn without_scales(shape: Shape, q: Vec<f32>, k: Vec<f32>, v: Vec<f32>) -> Self {
        let rows = [
            shape.heads_q * shape.seqlen_q,
            shape.heads_kv * shape.seqlen_k,
            shape.heads_kv * shape.seqlen_k,
        ];
        Self {
            shape,
            q,
            k,
            v,
            scales: rows.map(|rows| vec![1.0; shape.batch * rows]),
        }
    }

    /// What query `i` of query head `h` in batch `b` is multiplied by: 1 without scales.
    pub fn query_scale(&self, b: usize, h: usize, i: usize) -> f64 {
        let s = &self.shape;
        self.scales[0][(b * s.heads_q + h) * s.seqlen_q + i]
    }

    /// What the keys that query head `h` of batch `b` may attend are multiplied by.
    pub fn key_scales(&self, b: usize, h: usize) -> &[f64] {
        self.of_keys(&self.scales[1], b, h)
    }

    /// What the values that query head `h` of batch `b` may attend are multiplied by.
    pub fn value_scales(&self, b: usize, h: usize) -> &[f64] {
        self.of_keys(&self.scales[2], b, h)
    }

    fn of_keys<'a>(&self, scales: &'a [f64], b: usize, h: usize) -> &'a [f64] {
        let s = &self.shape;
        let head = b * s.heads_kv + h / (s.heads_q / s.heads_kv);
        &scales[head * s.seqlen_k..][..s.seqlen_k]
    }

    /// Query `i` of query head `h` in batch `b`, as its elements are, without its scale. So are keys and values.
    pub fn query(&self, b: usize, h: usize, i: usize) -> &[f32] {
        let s = &self.shape;
        &self.q[((b * s.heads_q + h) * s.seqlen_q + i) * s.head_dim_qk..][..s.head_dim_qk]
    }

    /// All keys that query head `h` of batch `b` may attend, one after the other.
    pub fn keys(&self, b: usize, h: usize) -> &[f32] {
        let s = &self.shape;
        let head = b * s.heads_kv + h / (s.heads_q / s.heads_kv);
        let len = s.seqlen_k * s.head_dim_qk;
        &self.k[head * len..][..len]
    }

    /// All values that query head `h` of batch `b` may attend, one after the other.
    pub fn values(&self, b: usize, h: usize) -> &[f32] {
        let s = &self.shape;
        let head = b * s.heads_kv + h / (s.heads_q / s.heads_kv);
        let len = s.seqlen_k * s.head_dim_v;
        &self.v[head * len..][..len]
    }

    /// Largest product of the norms of a query and a key that may meet, scales included: no score's sum of
    /// absolute products is larger (Cauchy-Schwarz).
    pub fn largest_product_of_norms(&self) -> f64 {
        let norm = |row: &[f32]| {
            row.iter()
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let s = &self.shape;
        let mut largest = 0.0f64;
        for b in 0..s.batch {
            for h in 0..s.heads_q {
                let q =
                    (0..s.seqlen_q).map(|i| norm(self.query(b, h, i)) * self.query_scale(b, h, i));
                let keys = self.keys(b, h).chunks(s.head_dim_qk).map(norm);
                let k = keys.zip(self.key_scales(b, h)).map(|(k, scale)| k * scale);
                largest = largest.max(q.fold(0.0, f64::max) * k.fold(0.0, f64::max));
            }
        }
        largest
    }
}

/// The scale of each row of a tensor, in the order [batch, heads, seqlen].
fn row_scales(scaled: &ScaledTensor<'_>, scales: &[f32]) -> Result<Vec<f64>> {
    let [batch, seqlen, heads, _] = scaled.tensor.shape;
    let count = [batch, seqlen, heads]
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n));
    let mut rows = filled::<f64>(count.ok_or_else(too_large)?)?;
    for (at, row) in rows.iter_mut().enumerate() {
        let (head, i) = (at / seqlen, at % seqlen);
        let index = scaled
            .layout
            .index(scaled.tensor, [head / heads, i, head % heads]);
        *row = index.map_or(1.0, |index| f64::from(scales[index]));
    }
    Ok(rows)
}

/// Runs `row(b, h, i, out_row) -> lse` for every query row, in parallel. Returns out
/// [batch, seqlen_q, heads_q, head_dim_v] and lse [batch, heads_q, seqlen_q].
pub(crate) fn per_row<T, L, F>(shape: &Shape, row: F) -> Result<(Vec<T>, Vec<L>)>
where
    T: Copy + Default + Send + Sync,
    L: Copy + Default + Send + Sync,
    F: Fn(usize, usize, usize, &mut [T]) -> L + Sync,
{
    let (batch, heads, seqlen, dim) =
        (shape.batch, shape.heads_q, shape.seqlen_q, shape.head_dim_v);
    let rows = [batch, heads, seqlen]
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n));
    let rows = rows.ok_or_else(too_large)?;
    let mut by_head = filled::<T>(rows.checked_mul(dim).ok_or_else(too_large)?)?;
    let mut lse = filled::<L>(rows)?;
    by_head
        .par_chunks_mut(dim)
        .zip(lse.par_iter_mut())
        .enumerate()
        .with_min_len(8)
        .for_each(|(index, (out_row, lse))| {
            let (head, i) = (index / seqlen, index % seqlen);
            *lse = row(head / heads, head % heads, i, out_row);
        });
    let mut out = filled::<T>(by_head.len())?;
    for (index, source) in by_head.chunks(dim).enumerate() {
        let (head, i) = (index / seqlen, index % seqlen);
        let (b, h) = (head / heads, head % heads);
        out[((b * seqlen + i) * heads + h) * dim..][..dim].copy_from_slice(source);
    }
    Ok((out, lse))
}

fn filled<T: Copy + Default>(len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| too_large())?;
    values.resize(len, T::default());
    Ok(values)
}

fn too_large() -> Error {
    Error::bad("out", "a tensor that fits in memory", "a larger one")
}
