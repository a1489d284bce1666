//! How far a result may be from the oracle.

use flashtile_abi::DType;

use super::{
    Heads, LowPrecision, Reference, Scoring, attention_f64, attention_low_precision,
    sensitivity::{Moves, Perturbation, ProbabilityError, ScoreError, sensitivity},
};
use crate::{
    element,
    error::{Error, Result},
    problem::Problem,
    run::{Inputs, Outputs},
};

/// The largest errors that are acceptable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ErrorBound {
    /// Of any element of out.
    pub max_abs: f64,
    /// Root mean square over the elements of out.
    pub rms: f64,
    /// Of any element of the log-sum-exp.
    pub lse_max_abs: f64,
}

/// A result, measured against the oracle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Largest difference in out. Infinite if an element is NaN or infinite where the oracle's is not.
    pub max_abs_error: f64,
    /// Root mean square of the differences in out.
    pub rms_error: f64,
    /// Largest difference in the log-sum-exp, if there is one. -inf must meet -inf, and a number past
    /// f32's range the infinity of its sign.
    pub lse_max_abs_error: Option<f64>,
    /// What is acceptable.
    pub bound: ErrorBound,
    /// Whether all of it is.
    pub ok: bool,
}

/// Elements of out from which on the textbook's measured error is a fair yardstick.
const FAIR_SAMPLE: usize = 1024;

/// FlashAttention-3's rule (`hopper/test_flash_attn.py`): an error is acceptable up to `k` times the
/// error of the textbook computation in the same low precision, plus the rounding of the
/// reference: `k * max|low - R| + atol`, with `k` = 2, or 3 where scores are capped, and
/// `atol = 2 * max|(R + 0.3 - 0.3) - R|` computed in the precision of the inputs: f16 or bf16, and 22
/// significant bits for f32 (two tf32 numbers); for e4m3 that of the output, bf16 if it is f32. The root mean square has the same
/// rule, with root mean squares.
///
/// For f32 inputs there is a third term. Their errors are those of the sums alone, and where large
/// scores nearly tie, two orders of summation differ by any factor. So to the bound is added how
/// far the output moves, to first order, if every score is wrong by as much as its sum can be:
/// truncation to f32 after every 8 of the head_dim_qk products, 22 bits of either operand, and the
/// dropped product of the small pieces: `(head_dim_qk / 8 + 7) * 2^-23` of its absolute products.
///
/// For e4m3 inputs there is another: tensor cores keep 14 bits of sums of 8-bit products. To the bound is added how far the output
/// moves, to first order, if every score and every weighted sum loses as much as it can by that, step by step of 32 products, the
/// weighted sums being of 256 keys at most (`accumulator.rs`).
///
/// Where out has fewer than 1,024 elements, the textbook computation may be exact by luck. The rule then
/// takes the larger of its measured error and the error that its roundings can cause, to first order:
/// half a unit in the last place of every score and probability; of e4m3's scores, which are rounded to bf16, and probabilities, which
/// are not normalised, in these types.
///
/// The log-sum-exp is f32, whatever the inputs. Its bound is `2 * max|low - R|`, low being an f32
/// computation, plus what tensor cores and the hardware's exponential add to that:
///
/// - a score is summed by steps of 8 products at least, each truncated (not rounded) to f32, so
///   it is off by at most `(head_dim_qk / 8 + 1) * 2^-23` of the sum of its absolute products;
///   for f32 inputs, products from two tf32 pieces each add `2^-20` of it; for e4m3 inputs, the scales, whose product is rounded,
///   twice, and multiplied with the sum, `2 * 2^-23`. That sum is at most the
///   product of the norms of query and key. LSE moves no more than the score that moves most;
/// - for e4m3 inputs, what the score loses that loses most;
/// - a cap's tanh is good to `8 * 2^-23`, absolute, and multiplied by the cap;
/// - `ex2.approx` and `lg2.approx` are good to `2^-22`, relative and absolute; conversion between
///   the bases rounds the score and the LSE once more: `4 * 2^-23` of the largest |LSE|, and of 8 ln 2 for e4m3 inputs, whose
///   probabilities are 2^8 times as large.
///
/// Elements where either computation is not finite are left out.
///
/// # Errors
/// As [`attention_f64`].
pub fn error_bound(
    problem: &Problem,
    inputs: &Inputs<'_>,
    reference: &Reference,
    low: &LowPrecision,
) -> Result<ErrorBound> {
    let part = Part {
        heads: &Heads::new(problem, inputs)?,
        scoring: Scoring::of(problem),
        reference,
        low,
    };
    bound_of(&[part], 1.0)
}

/// A part of a problem that is computed by itself: all of a dense one, or a sequence.
pub(crate) struct Part<'a> {
    pub heads: &'a Heads,
    pub scoring: Scoring<'a>,
    pub reference: &'a Reference,
    pub low: &'a LowPrecision,
}

/// [`error_bound`] of a problem of several parts, of the same types and the same factor and cap of scores. The log-sum-exp is converted
/// between bases `conversions` times.
///
/// Where something is added to scores (bias, ALiBi), there is another term: how far the output moves, to first order, and the
/// log-sum-exp, if every score is wrong by [`OF_TERMS`] of the sum of the absolute values of what is added to it.
pub(crate) fn bound_of(parts: &[Part<'_>], conversions: f64) -> Result<ErrorBound> {
    let Some(Part { scoring, .. }) = parts.first() else {
        return Ok(ErrorBound {
            max_abs: 0.0,
            rms: 0.0,
            lse_max_abs: 0.0,
        });
    };
    let k = if scoring.softcap.is_some() { 3.0 } else { 2.0 };
    let round = |x: f32| working_precision(scoring, x);
    let of_out = || parts.iter().flat_map(|part| &part.reference.out);
    let of_lse = || parts.iter().flat_map(|part| &part.reference.lse);
    let rounding = Errors::of(of_out().filter(|r| r.is_finite()).map(|&r| {
        let r = round(r as f32);
        f64::from(round(round(r + 0.3) - 0.3) - r)
    }));
    let differences = |low: &[f32], reference: &[f64]| -> Vec<f64> {
        let pairs = low.iter().zip(reference);
        pairs.map(|(&low, &r)| f64::from(low) - r).collect()
    };
    let finite = |errors: Vec<f64>| errors.into_iter().filter(|x| x.is_finite());
    let out = Errors::of(
        parts
            .iter()
            .flat_map(|part| finite(differences(&part.low.out, &part.reference.out))),
    );
    let lse = Errors::of(
        parts
            .iter()
            .flat_map(|part| finite(differences(&part.low.lse, &part.reference.lse))),
    );

    let unit = 2f64.powi(-23);
    let head_dim_qk = parts.iter().map(|part| part.heads.shape.head_dim_qk).max();
    let steps = head_dim_qk.unwrap_or(0) as f64 / 8.0 + 1.0;
    // Half a unit in the last place of the inputs' precision.
    let rounded_to = |bits: i32| Perturbation {
        score: ScoreError::Relative(2f64.powi(-bits)),
        probability: ProbabilityError::Relative(2f64.powi(-bits)),
    };
    let is_fair = of_out().count() >= FAIR_SAMPLE;
    let roundings = match scoring.dtype {
        DType::F32 => None,
        _ if is_fair => None,
        DType::F16 => Some(rounded_to(11)),
        DType::Bf16 => Some(rounded_to(8)),
        DType::E4m3 => Some(Perturbation {
            probability: ProbabilityError::E4m3,
            ..rounded_to(8)
        }),
    };
    let sums = match scoring.dtype {
        DType::F16 | DType::Bf16 => None,
        DType::F32 => Some(Perturbation {
            score: ScoreError::Relative((steps + 6.0) * unit),
            probability: ProbabilityError::Relative(0.0),
        }),
        DType::E4m3 => Some(Perturbation {
            score: ScoreError::Accumulator,
            probability: ProbabilityError::Accumulator,
        }),
    };
    let terms = parts
        .iter()
        .any(|part| part.scoring.pairs.adds())
        .then_some(Perturbation {
            score: ScoreError::Terms(OF_TERMS),
            probability: ProbabilityError::Relative(0.0),
        });
    let moved = |perturbation: Option<Perturbation>| {
        let mut all = [const { Vec::new() }; 3];
        if let Some(perturbation) = perturbation {
            for part in parts {
                let Moves { out, score, lse } =
                    sensitivity(part.scoring, part.heads, perturbation)?;
                for (all, moves) in all.iter_mut().zip([out, score, lse]) {
                    all.extend(finite(moves));
                }
            }
        }
        Ok::<_, Error>(all.map(|moves| Errors::of(moves.into_iter())))
    };
    let [roundings, ..] = moved(roundings)?;
    let [sums, score_sums, _] = moved(sums)?;
    let [terms, _, lse_terms] = moved(terms)?;
    let yardstick = |of: fn(&Errors) -> f64| {
        (k * of(&out)).max(of(&roundings)) + of(&sums) + of(&terms) + 2.0 * of(&rounding)
    };
    let per_product = match scoring.dtype {
        DType::F32 => 2f64.powi(-20),
        DType::E4m3 => 2.0 * unit,
        DType::F16 | DType::Bf16 => 0.0,
    };
    let (score_lost, offset) = match scoring.dtype {
        DType::E4m3 => (score_sums.max_abs, 8.0 * std::f64::consts::LN_2),
        DType::F16 | DType::Bf16 | DType::F32 => (0.0, 0.0),
    };
    let norms = parts
        .iter()
        .map(|part| part.heads.largest_product_of_norms());
    let products = norms.fold(0.0, f64::max) * f64::from(scoring.scale).abs();
    let largest_lse = of_lse().filter(|x| x.is_finite());
    let largest_lse = largest_lse.fold(0.0, |max: f64, x| max.max(x.abs()));
    let lse_added = products * (steps * unit + per_product)
        + score_lost
        + lse_terms.max_abs
        + 8.0 * unit * f64::from(scoring.softcap.unwrap_or(0.0))
        + conversions * 4.0 * unit * (1.0 + largest_lse + offset);
    Ok(ErrorBound {
        max_abs: yardstick(|errors| errors.max_abs),
        rms: yardstick(|errors| errors.rms),
        lse_max_abs: 2.0 * lse.max_abs + lse_added,
    })
}

/// What is added to a score costs, relative to its magnitude and in halves of 2^-23: a slope's product with a distance, and two sums,
/// 3; the maximum as an exponent of two, 1.44; a part's log-sum-exp, a sum and two factors, 3; its difference from the others' and
/// that as an exponent, 2.44. Together less than 10.
const OF_TERMS: f64 = 5.0 / (1u32 << 23) as f64;

/// Rounds to the precision that a problem is computed in.
fn working_precision(scoring: &Scoring<'_>, x: f32) -> f32 {
    match (scoring.dtype, scoring.out) {
        (dtype @ (DType::F16 | DType::Bf16), _) => element::round(dtype, x),
        (DType::E4m3, out @ (DType::F16 | DType::Bf16)) => element::round(out, x),
        (DType::E4m3, _) => element::round(DType::Bf16, x),
        // Nearest of 22 significant bits; ties away from zero, a carry into the exponent is right.
        (DType::F32, _) if x.is_finite() => f32::from_bits((x.to_bits() + 2) & !3),
        (DType::F32, _) => x,
    }
}

/// Measures a result against the oracle and judges it by [`error_bound`].
///
/// # Errors
/// As [`attention_f64`], and [`Error::BadInput`] for outputs of the wrong length.
pub fn compare(problem: &Problem, inputs: &Inputs<'_>, outputs: &Outputs) -> Result<Comparison> {
    let reference = attention_f64(problem, inputs)?;
    let low = attention_low_precision(problem, inputs)?;
    let bound = error_bound(problem, inputs, &reference, &low)?;
    let out = element::gather(problem.out_element(), &outputs.out, &problem.out)?;
    let errors = Errors::of(
        out.iter()
            .zip(&reference.out)
            .map(|(&x, &r)| difference(x, r)),
    );
    let lse = match &outputs.lse {
        Some(lse) if lse.len() == reference.lse.len() => {
            let pairs = lse.iter().zip(&reference.lse);
            Some(Errors::of(pairs.map(|(&x, &r)| difference(x, in_range(r)))).max_abs)
        }
        Some(lse) => {
            return Err(Error::bad(
                "lse",
                format!("{} numbers", reference.lse.len()),
                lse.len().to_string(),
            ));
        }
        None if problem.lse => {
            return Err(Error::bad(
                "lse",
                "a tensor, since the problem wants it",
                "none",
            ));
        }
        None => None,
    };
    let ok = errors.max_abs <= bound.max_abs
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

/// Difference of a result from the oracle: 0 between equal infinities and between NaNs, infinite
/// between anything else that is not finite.
pub(crate) fn difference(result: f32, reference: f64) -> f64 {
    let result = f64::from(result);
    if result == reference || (result.is_nan() && reference.is_nan()) {
        0.0
    } else if result.is_finite() && reference.is_finite() {
        result - reference
    } else {
        f64::INFINITY
    }
}

/// The oracle's log-sum-exp, infinite where it is past f32's range: there f32 has no nearer number.
pub(crate) fn in_range(lse: f64) -> f64 {
    match lse as f32 {
        rounded if rounded.is_infinite() => f64::from(rounded),
        _ => lse,
    }
}

/// Size of a set of errors.
pub(crate) struct Errors {
    pub max_abs: f64,
    pub rms: f64,
}

impl Errors {
    pub fn of(errors: impl Iterator<Item = f64>) -> Self {
        let (mut max_abs, mut squares, mut count) = (0f64, 0f64, 0u64);
        for error in errors {
            max_abs = max_abs.max(error.abs());
            squares += error * error;
            count += 1;
        }
        Self {
            max_abs,
            rms: (squares / count.max(1) as f64).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests;
