//! A sequence of a problem by itself: its queries, keys and values without gaps, and what is added to its scores.

use super::{
    inputs::ServingInputs,
    layout::CacheLayout,
    problem::ServingProblem,
    validate::{self, Sizes},
};
use crate::{
    element,
    error::{Error, Result},
    problem::{CausalAlignment, Shape},
    reference::{Heads, Pairs, Term},
};

/// The sequences of a checked problem.
pub(super) struct Sequences<'a> {
    problem: &'a ServingProblem,
    inputs: &'a ServingInputs<'a>,
    pub sizes: Sizes,
}

/// One of them.
pub(super) struct Sequence<'a> {
    problem: &'a ServingProblem,
    inputs: &'a ServingInputs<'a>,
    /// Its number.
    pub index: usize,
    /// Row of its first query in q, out and log-sum-exp; its block in them.
    pub first_row: usize,
    pub block: usize,
    /// Queries, keys and values, as those of a batch of one.
    pub heads: Heads,
}

impl<'a> Sequences<'a> {
    /// Checks problem and inputs.
    pub fn new(problem: &'a ServingProblem, inputs: &'a ServingInputs<'a>) -> Result<Self> {
        let sizes = validate::check(problem)?;
        inputs.check(problem)?;
        Ok(Self {
            problem,
            inputs,
            sizes,
        })
    }

    /// Sequence by sequence.
    pub fn iter(&self) -> impl Iterator<Item = Result<Sequence<'a>>> + '_ {
        (0..self.problem.batch).map(|index| self.gather(index))
    }

    fn gather(&self, index: usize) -> Result<Sequence<'a>> {
        let (problem, inputs) = (self.problem, self.inputs);
        let (first_row, seqlen_q) = problem.q_rows(inputs, index);
        let block = match problem.q_lengths.starts {
            true => 0,
            false => index,
        };
        let seqlen_k = problem.k_len(inputs, index);
        let Sizes {
            heads_q,
            heads_kv,
            head_dim_qk,
            head_dim_v,
        } = self.sizes;
        let mut q = reserved(&[heads_q, seqlen_q, head_dim_qk])?;
        for h in 0..heads_q {
            for i in 0..seqlen_q {
                let row = problem.q.index([block, first_row + i, h, 0]);
                let at = row..row + head_dim_qk;
                q.extend(at.map(|at| element::read(problem.dtype, inputs.q, at)));
            }
        }
        let k = self.gather_cache(index, seqlen_k, &problem.k, inputs.k, inputs.k_scale)?;
        let v = match problem.latent {
            true => {
                let mut v = reserved(&[heads_kv, seqlen_k, head_dim_v])?;
                for row in k.chunks(head_dim_qk) {
                    v.extend_from_slice(&row[..head_dim_v]);
                }
                v
            }
            false => self.gather_cache(index, seqlen_k, &problem.v, inputs.v, inputs.v_scale)?,
        };
        let shape = Shape {
            batch: 1,
            seqlen_q,
            seqlen_k,
            heads_q,
            heads_kv,
            head_dim_qk,
            head_dim_v,
        };
        Ok(Sequence {
            problem,
            inputs,
            index,
            first_row,
            block,
            heads: Heads::without_scales(shape, q, k, v),
        })
    }

    /// [heads, seqlen, head_dim] of keys or values, times their scales.
    fn gather_cache(
        &self,
        index: usize,
        seqlen: usize,
        layout: &CacheLayout,
        bytes: &[u8],
        scales: &[f32],
    ) -> Result<Vec<f32>> {
        let (problem, inputs) = (self.problem, self.inputs);
        let [_, page, heads, dim] = layout.shape;
        let mut values = reserved(&[heads, seqlen, dim])?;
        let [of_sequence, of_head] = problem.kv_scales.strides(heads);
        let scale = |head: usize| {
            let at = index * of_sequence + head * of_head;
            scales.get(at).copied().unwrap_or(1.0)
        };
        let low = layout.offsets().map_or(0, |(low, _)| low);
        let columns: Vec<i64> = (0..dim)
            .map(|d| layout.offset([0, 0, 0, d]) - low)
            .collect();
        for h in 0..heads {
            for j in 0..seqlen {
                let (block, row) = match problem.pages {
                    Some(pages) => {
                        let entry = pages.index(problem.batch, [index, j / page]);
                        (inputs.table[entry] as usize, j % page)
                    }
                    None if problem.k_lengths.starts => (0, inputs.k_starts[index] as usize + j),
                    None => (index, j),
                };
                let row = layout.offset([block, row, h, 0]);
                let at = columns.iter().map(|column| (row + column) as usize);
                values.extend(at.map(|at| scale(h) * element::read(problem.kv_dtype, bytes, at)));
            }
        }
        Ok(values)
    }
}

impl Sequence<'_> {
    /// The key at which a query stands.
    fn diagonal(&self, i: usize) -> i64 {
        let shape = &self.heads.shape;
        match self.problem.causal {
            Some(CausalAlignment::TopLeft) => i as i64,
            Some(CausalAlignment::BottomRight) | None => {
                i as i64 + shape.seqlen_k as i64 - shape.seqlen_q as i64
            }
        }
    }

    /// Whether a query sees a key, by the definitions of [`ServingProblem`]'s fields.
    fn visible(&self, h: usize, i: usize, j: usize) -> bool {
        let (problem, inputs) = (self.problem, self.inputs);
        let diagonal = self.diagonal(i);
        let distance = j as i64 - diagonal;
        let window = problem.window;
        let in_band = (problem.causal.is_none() || distance <= 0)
            && window.left.is_none_or(|left| distance >= -i64::from(left))
            && window
                .right
                .is_none_or(|right| distance <= i64::from(right));
        let numbers = 2 * problem.ranges.unwrap_or(0);
        let ranges = &inputs.ranges[self.index * numbers..][..numbers];
        let stands_at_key = diagonal < self.heads.shape.seqlen_k as i64;
        let in_range = ranges.chunks_exact(2).any(|range| {
            let range = i64::from(range[0])..=i64::from(range[1]);
            stands_at_key && range.contains(&diagonal) && range.contains(&(j as i64))
        });
        let unmasked = problem
            .mask
            .is_none_or(|mask| mask.shows(inputs.mask, self.index, h, i, j));
        (in_band || in_range) && unmasked
    }
}

impl Pairs for Sequence<'_> {
    fn term(&self, h: usize, i: usize, j: usize) -> Option<Term> {
        let (problem, inputs) = (self.problem, self.inputs);
        if !self.visible(h, i, j) {
            return None;
        }
        let slope = match problem.alibi {
            None => 0.0,
            Some(false) => f64::from(inputs.alibi[h]),
            Some(true) => f64::from(inputs.alibi[self.index * self.heads.shape.heads_q + h]),
        };
        let alibi = -slope * (j as i64 - self.diagonal(i)).abs() as f64;
        let bias = problem.bias.map_or(0.0, |bias| {
            let index = bias.index(self.index, h, i, j);
            let dtype = problem.bias_element(bias.element);
            f64::from(element::read(dtype, inputs.bias, index))
        });
        Some(Term {
            sum: alibi + bias,
            magnitude: alibi.abs() + bias.abs(),
        })
    }

    fn adds(&self) -> bool {
        self.problem.alibi.is_some() || self.problem.bias.is_some()
    }

    fn sink(&self, h: usize) -> f64 {
        match self.problem.sink {
            true => f64::from(self.inputs.sink[h]),
            false => f64::NEG_INFINITY,
        }
    }
}

/// An empty list with room for so many numbers.
fn reserved(shape: &[usize]) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    let count = shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
    // A broadcast input may have more elements than memory.
    if count.is_none_or(|n| values.try_reserve_exact(n).is_err()) {
        return Err(Error::bad(
            "k",
            "sequences that fit in memory",
            format!("shape {shape:?}"),
        ));
    }
    Ok(values)
}
