//! What results are judged by: the oracle, and how far from it they may be.

use super::{
    inputs::ServingInputs,
    problem::ServingProblem,
    sequence::{Sequence, Sequences},
};
use crate::{
    element,
    error::{Error, Result},
    reference::{
        Comparison, Errors, Part, Reference, Scoring, bound_of, difference, in_range,
        low_precision, oracle,
    },
    run::{Outputs, bytes_of},
};

/// Attention in f64 for each sequence by itself, over the queries that count: safe softmax, from the definitions of the problem's
/// fields, pair by pair. A row that sees no key has output 0 and LSE -inf; one that sees its sink alone, the sink as LSE.
///
/// # Errors
/// [`Error::BadInput`] as [`attention_cpu`](super::attention_cpu).
pub fn attention_f64(
    problem: &ServingProblem,
    inputs: &ServingInputs<'_>,
) -> Result<Vec<Reference>> {
    let sequences = Sequences::new(problem, inputs)?;
    sequences
        .iter()
        .map(|sequence| {
            let sequence = sequence?;
            oracle(&sequence.heads, scoring(problem, &sequence))
        })
        .collect()
}

/// Measures a result against [`attention_f64`] and judges it by the bound of dense problems
/// ([`reference::error_bound`](crate::reference::error_bound)), all sequences together. A row that sees no key must be 0.
///
/// Where something is added to scores, every score may be wrong by `5 * 2^-23` of the sum of the absolute values of what is added to it
/// besides. Log-sum-exps may be wrong by twice as much by conversions between bases: those of parts of the keys are converted as well.
///
/// # Errors
/// As [`attention_f64`], and for outputs of the wrong length.
pub fn compare(
    problem: &ServingProblem,
    inputs: &ServingInputs<'_>,
    outputs: &Outputs,
) -> Result<Comparison> {
    let sequences = Sequences::new(problem, inputs)?;
    check_lengths(problem, outputs)?;
    let sequences = sequences.iter().collect::<Result<Vec<_>>>()?;
    let mut judged = Vec::new();
    for sequence in &sequences {
        let scoring = scoring(problem, sequence);
        judged.push((
            oracle(&sequence.heads, scoring)?,
            low_precision(&sequence.heads, scoring)?,
        ));
    }
    let parts: Vec<Part<'_>> = sequences
        .iter()
        .zip(&judged)
        .map(|(sequence, (reference, low))| Part {
            heads: &sequence.heads,
            scoring: scoring(problem, sequence),
            reference,
            low,
        })
        .collect();
    let bound = bound_of(&parts, 2.0)?;
    let (mut out, mut lse, mut empty_rows_are_zero) = (Vec::new(), Vec::new(), true);
    for (sequence, (reference, _)) in sequences.iter().zip(&judged) {
        let found = sequence.out(problem, outputs);
        let dim = sequence.heads.shape.head_dim_v;
        let (heads_q, seqlen_q) = (sequence.heads.shape.heads_q, sequence.heads.shape.seqlen_q);
        for (index, row) in found.chunks(dim).enumerate() {
            let (i, h) = (index / heads_q, index % heads_q);
            let is_empty = reference.lse[h * seqlen_q + i] == f64::NEG_INFINITY;
            empty_rows_are_zero &= !is_empty || row.iter().all(|&x| x == 0.0);
        }
        let pairs = found.iter().zip(&reference.out);
        out.extend(pairs.map(|(&x, &r)| difference(x, r)));
        if let Some(found) = sequence.lse(problem, outputs) {
            let pairs = found.iter().zip(&reference.lse);
            lse.extend(pairs.map(|(&x, &r)| difference(x, in_range(r))));
        }
    }
    let errors = Errors::of(out.into_iter());
    let lse = problem.lse.then(|| Errors::of(lse.into_iter()).max_abs);
    let ok = empty_rows_are_zero
        && errors.max_abs <= bound.max_abs
        && errors.rms <= bound.rms
        && lse.is_none_or(|error| error <= bound.lse_max_abs);
    Ok(Comparison {
        max_abs_error: errors.max_abs,
        rms_error: errors.rms,
        lse_max_abs_error: lse,
        bound,
        ok,
    })
}

fn scoring<'a>(problem: &ServingProblem, sequence: &'a Sequence<'_>) -> Scoring<'a> {
    Scoring {
        dtype: problem.dtype,
        out: problem.out_element(),
        scale: problem.softmax_scale(),
        softcap: problem.softcap,
        pairs: sequence,
    }
}

fn check_lengths(problem: &ServingProblem, outputs: &Outputs) -> Result<()> {
    let wanted = bytes_of("out", &problem.out, problem.out_element().bytes())?;
    if outputs.out.len() < wanted {
        return Err(Error::bad(
            "out",
            format!("at least {wanted} bytes"),
            outputs.out.len().to_string(),
        ));
    }
    let wanted = match problem.lse {
        true => Some(problem.lse_shape().iter().product()),
        false => None,
    };
    let found = outputs.lse.as_ref().map(Vec::len);
    match found == wanted {
        true => Ok(()),
        false => Err(Error::bad(
            "lse",
            wanted.map_or("none".into(), |n: usize| format!("{n} numbers")),
            found.map_or("none".into(), |n| n.to_string()),
        )),
    }
}

impl Sequence<'_> {
    /// Its rows of an output, [seqlen_q, heads_q, head_dim_v].
    fn out(&self, problem: &ServingProblem, outputs: &Outputs) -> Vec<f32> {
        let shape = &self.heads.shape;
        let dtype = problem.out_element();
        let mut found = Vec::new();
        for i in 0..shape.seqlen_q {
            for h in 0..shape.heads_q {
                let at = problem.out.index([self.block, self.first_row + i, h, 0]);
                let row = at..at + shape.head_dim_v;
                found.extend(row.map(|at| element::read(dtype, &outputs.out, at)));
            }
        }
        found
    }

    /// Its rows of a log-sum-exp, [heads_q, seqlen_q].
    fn lse(&self, problem: &ServingProblem, outputs: &Outputs) -> Option<Vec<f32>> {
        let all = outputs.lse.as_ref()?;
        let [_, heads, rows] = problem.lse_shape();
        let of_head = |h: usize| {
            let first = (self.block * heads + h) * rows + self.first_row;
            &all[first..first + self.heads.shape.seqlen_q]
        };
        Some((0..heads).flat_map(of_head).copied().collect())
    }
}
