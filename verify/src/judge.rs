//! Judging results.
//!
//! The rule is the library's own ([`flashtile::reference::error_bound`]): the error of a kernel is at
//! most twice that of the textbook computation in the same low precision (three times where scores
//! are capped), plus rounding. The textbook's error is measured on the case's own data; where that is
//! too little data to measure an error with (one output element may be exact by luck), on the same
//! case with other seeds as well.

use flashtile::{
    Outputs, Problem, element,
    reference::{
        ErrorBound, Reference, attention_f64, attention_low_precision, compare, error_bound,
        visible,
    },
};

use crate::{
    case::Case,
    data::{Tensors, row},
    memory::Results,
};

/// Outputs that a measurement of the textbook's error takes at least.
const SAMPLE: usize = 4096;

/// Most seeds that one measurement takes.
const MOST_SEEDS: u64 = 48;

/// The oracle's answer.
pub fn oracle(case: &Case, tensors: &Tensors) -> Reference {
    let bytes = tensors.encode(case.dtype);
    match attention_f64(&case.contiguous_problem(), &bytes.inputs()) {
        Ok(reference) => reference,
        Err(error) => panic!("{case}: {error}"),
    }
}

/// What a result of the case may be off by.
pub fn bound(case: &Case, tensors: &Tensors) -> ErrorBound {
    let outputs = case.shapes()[3].iter().product::<usize>().max(1);
    let seeds = (SAMPLE.div_ceil(outputs) as u64).min(MOST_SEEDS);
    let mut bound = bound_of(case, tensors);
    for seed in 1..seeds {
        let sibling = Case {
            seed: case.seed.wrapping_add(seed << 32),
            ..*case
        };
        let other = bound_of(&sibling, &Tensors::of(&sibling));
        bound.max_abs = bound.max_abs.max(other.max_abs);
        bound.rms = bound.rms.max(other.rms);
        bound.lse_max_abs = bound.lse_max_abs.max(other.lse_max_abs);
    }
    bound
}

fn bound_of(case: &Case, tensors: &Tensors) -> ErrorBound {
    let bytes = tensors.encode(case.dtype);
    let (problem, inputs) = (case.contiguous_problem(), bytes.inputs());
    let bound = attention_f64(&problem, &inputs).and_then(|reference| {
        let low = attention_low_precision(&problem, &inputs)?;
        error_bound(&problem, &inputs, &reference, &low)
    });
    bound.unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// Judges results of a case on these tensors.
///
/// # Errors
/// What is wrong, and where.
pub fn judge(case: &Case, tensors: &Tensors, results: &Results) -> Result<(), String> {
    let (problem, bytes) = (case.contiguous_problem(), tensors.encode(case.dtype));
    no_keys_no_output(case, &problem, results)?;
    let outputs = Outputs {
        out: element::encode(case.out_element(), &results.out),
        lse: Some(results.lse.clone()),
    };
    let found =
        compare(&problem, &bytes.inputs(), &outputs).map_err(|error| format!("{case}: {error}"))?;
    if found.ok {
        return Ok(());
    }
    let bound = bound(case, tensors);
    let lse_error = found.lse_max_abs_error.unwrap_or(0.0);
    if found.max_abs_error <= bound.max_abs
        && found.rms_error <= bound.rms
        && lse_error <= bound.lse_max_abs
    {
        return Ok(());
    }
    let reference = oracle(case, tensors);
    Err(format!(
        "{case}\n  kernel {}\n  out: error {:.3e} (bound {:.3e}), rms {:.3e} (bound {:.3e}); lse: error {lse_error:.3e} (bound {:.3e})\n{}",
        case.variant().name,
        found.max_abs_error,
        bound.max_abs,
        found.rms_error,
        bound.rms,
        bound.lse_max_abs,
        whereabouts(case, &reference, results, &bound)
    ))
}

/// Requires output 0 and log-sum-exp -inf, exactly, of queries that see no key.
fn no_keys_no_output(case: &Case, problem: &Problem, results: &Results) -> Result<(), String> {
    let (s, shape) = (&case.shape, case.shapes()[3]);
    for i in 0..s.seqlen_q {
        if (0..s.seqlen_k).any(|j| visible(problem, i, j)) {
            continue;
        }
        for (b, h) in (0..s.batch).flat_map(|b| (0..s.heads_q).map(move |h| (b, h))) {
            let lse = results.lse[(b * s.heads_q + h) * s.seqlen_q + i];
            let out = &results.out[row(shape, b, i, h)];
            let wrong = out.iter().position(|&x| x != 0.0);
            if lse != f32::NEG_INFINITY || wrong.is_some() {
                let x = wrong.unwrap_or_default();
                return Err(format!(
                    "{case}\n  query [{b}, {i}, {h}] sees no key, but has lse {lse}, out[{b}, {i}, {h}, {x}] = {}",
                    out[x]
                ));
            }
        }
    }
    Ok(())
}

/// Which rows and columns are off by more than the bound.
fn whereabouts(
    case: &Case,
    reference: &Reference,
    results: &Results,
    bound: &ErrorBound,
) -> String {
    let far = |x: f32, r: f64, limit: f64| {
        let same = f64::from(x) == r || (x.is_nan() && r.is_nan());
        let near = (f64::from(x) - r).abs() <= limit;
        !(same || near)
    };
    let s = &case.shape;
    let mut lines = Vec::new();
    let mut count = 0;
    for (at, (&x, &r)) in results.out.iter().zip(&reference.out).enumerate() {
        if far(x, r, bound.max_abs) {
            count += 1;
            if lines.len() < 6 {
                let (row, column) = (at / s.head_dim_v, at % s.head_dim_v);
                let (b, i, h) = (
                    row / s.heads_q / s.seqlen_q,
                    row / s.heads_q % s.seqlen_q,
                    row % s.heads_q,
                );
                lines.push(format!(
                    "  out[{b}, {i}, {h}, {column}] = {x:e}, expected {r:e}"
                ));
            }
        }
    }
    lines.push(format!(
        "  {count} of {} outputs are out of bounds",
        results.out.len()
    ));
    let lse = results.lse.iter().zip(&reference.lse).enumerate();
    for (at, (&x, &r)) in lse
        .filter(|(_, (x, r))| far(**x, **r, bound.lse_max_abs))
        .take(6)
    {
        let (head, i) = (at / s.seqlen_q, at % s.seqlen_q);
        let (b, h) = (head / s.heads_q, head % s.heads_q);
        lines.push(format!("  lse[{b}, {h}, {i}] = {x:e}, expected {r:e}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Distribution,
        sweep::{Class, case},
    };

    fn cases(class: Class) -> impl Iterator<Item = Case> {
        flashtile::variants()
            .iter()
            .filter_map(move |variant| case(variant, class))
    }

    /// A bound as large as the values would accept anything.
    #[test]
    fn bounds_of_large_elements_and_of_a_dominating_key_say_something() {
        for data in [Distribution::Large, Distribution::Dominant] {
            for case in cases(Class::Data(data)) {
                let tensors = Tensors::of(&case);
                let largest = tensors.v.iter().fold(0.0, |max: f32, v| max.max(v.abs()));
                let bound = bound(&case, &tensors);
                assert!(
                    bound.max_abs < 0.1 * f64::from(largest),
                    "{case}: {bound:?}"
                );
            }
        }
    }

    /// Queries without keys are judged exactly, whatever the bound allows.
    #[test]
    fn next_to_nothing_is_not_nothing() {
        let line = "fused f16 b1 q4 k2 h1/1 d8/8 causal=bottom-right seed=1";
        let case: Case = line.parse().unwrap();
        let tensors = Tensors::of(&case);
        let right = crate::memory::run_on_cpu(&case, &tensors).unwrap();
        assert_eq!(judge(&case, &tensors, &right), Ok(()));
        let mut wrong = right.clone();
        wrong.out[8] = 1e-6;
        let reason = judge(&case, &tensors, &wrong).unwrap_err();
        assert!(reason.contains("query [0, 1, 0] sees no key"), "{reason}");
        let mut wrong = right;
        wrong.lse[0] = f32::MIN;
        assert!(judge(&case, &tensors, &wrong).is_err());
    }

    #[test]
    fn wrong_numbers_are_rejected_and_located() {
        let line = "fused bf16 b2 q9 k30 h2/1 d16/8 seed=1";
        let case: Case = line.parse().unwrap();
        let tensors = Tensors::of(&case);
        let right = crate::memory::run_on_cpu(&case, &tensors).unwrap();
        assert_eq!(judge(&case, &tensors, &right), Ok(()));
        let mut wrong = right.clone();
        wrong.out[((9 + 3) * 2 + 1) * 8 + 5] += 0.5;
        let reason = judge(&case, &tensors, &wrong).unwrap_err();
        assert!(
            reason.starts_with(line) && reason.contains("out[1, 3, 1, 5]"),
            "{reason}"
        );
        let mut wrong = right;
        wrong.lse[9 + 7] = f32::NAN;
        let reason = judge(&case, &tensors, &wrong).unwrap_err();
        assert!(reason.contains("lse[0, 1, 7] = NaN"), "{reason}");
    }
}
