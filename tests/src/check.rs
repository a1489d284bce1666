//! Judging results.
//!
//! The rule is the library's own ([`flashtile::reference::error_bound`]): the error of a kernel is at
//! most twice that of the textbook computation in the same low precision (three times where scores
//! are capped), plus rounding. The textbook's error is measured on the case's own data; where that is
//! too little data to measure an error with (one output element may be exact by luck), on the same
//! case with other seeds as well.

use flashtile::{
    Device, Inputs, Outputs, element,
    reference::{
        ErrorBound, Reference, attention_f64, attention_low_precision, compare, error_bound,
    },
};

use crate::{case::Case, data::Tensors, device::devices, memory::Results};

/// Outputs that a measurement of the textbook's error takes at least.
const SAMPLE: usize = 4096;

/// Most seeds that one measurement takes.
const MOST_SEEDS: u64 = 48;

/// A case's tensors as bytes without gaps.
struct Bytes {
    q: Vec<u8>,
    k: Vec<u8>,
    v: Vec<u8>,
}

impl Bytes {
    fn of(case: &Case, tensors: &Tensors) -> Self {
        Self {
            q: element::encode(case.dtype, &tensors.q),
            k: element::encode(case.dtype, &tensors.k),
            v: element::encode(case.dtype, &tensors.v),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            q: &self.q,
            k: &self.k,
            v: &self.v,
        }
    }
}

/// The oracle's answer.
pub fn oracle(case: &Case, tensors: &Tensors) -> Reference {
    let bytes = Bytes::of(case, tensors);
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
    let bytes = Bytes::of(case, tensors);
    let (problem, inputs) = (case.contiguous_problem(), bytes.inputs());
    let bound = attention_f64(&problem, &inputs).and_then(|reference| {
        let low = attention_low_precision(&problem, &inputs)?;
        error_bound(&problem, &inputs, &reference, &low)
    });
    bound.unwrap_or_else(|error| panic!("{case}: {error}"))
}

/// Runs a case on these tensors and returns what the device left.
///
/// # Errors
/// The library's error, in words.
pub fn run(device: &dyn Device, case: &Case, tensors: &Tensors) -> Result<Results, String> {
    crate::memory::run(device, case, tensors)
        .map_err(|error| format!("{case}\n  on {}: {error}", device.info().name))
}

/// Judges results of a case on these tensors.
///
/// # Errors
/// What is wrong, and where.
pub fn judge(case: &Case, tensors: &Tensors, results: &Results) -> Result<(), String> {
    let (problem, bytes) = (case.contiguous_problem(), Bytes::of(case, tensors));
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

/// Runs a case on every device and judges the results.
///
/// # Errors
/// What is wrong, and where.
pub fn check(case: &Case) -> Result<(), String> {
    let tensors = Tensors::of(case);
    for device in devices() {
        let results = run(&**device, case, &tensors)?;
        judge(case, &tensors, &results)
            .map_err(|reason| format!("{reason}\n  on {}", device.info().name))?;
    }
    Ok(())
}

/// Requires equal bits.
///
/// # Errors
/// The first difference.
pub fn assert_same_bits(what: &str, a: &[f32], b: &[f32]) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("{what}: {} numbers against {}", a.len(), b.len()));
    }
    let differs = |(x, y): (&f32, &f32)| x.to_bits() != y.to_bits();
    match a.iter().zip(b).position(differs) {
        Some(at) => Err(format!(
            "{what}: number {at} is {:e} ({:#010x}) against {:e} ({:#010x})",
            a[at],
            a[at].to_bits(),
            b[at],
            b[at].to_bits()
        )),
        None => Ok(()),
    }
}

/// Requires numbers within a distance; equal infinities are 0 apart, and NaN is near nothing.
///
/// # Errors
/// The farthest pair.
pub fn assert_near(what: &str, a: &[f32], b: &[f32], distance: f64) -> Result<(), String> {
    if a.len() != b.len() {
        return Err(format!("{what}: {} numbers against {}", a.len(), b.len()));
    }
    for (at, (&x, &y)) in a.iter().zip(b).enumerate() {
        let apart = (f64::from(x) - f64::from(y)).abs();
        if x != y && (apart.is_nan() || apart > distance) {
            return Err(format!(
                "{what}: number {at} is {x:e} against {y:e}, {apart:.3e} apart; allowed is {distance:.3e}"
            ));
        }
    }
    Ok(())
}
