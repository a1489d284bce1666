//! Problems of inference engines by chance, their tensors in any layout, and their judgement.

mod build;
mod case;
mod launch;
mod strategy;

pub use build::{Built, GAP};
pub use case::{Bias, Cache, CacheOrder, MaskCase, Queries, ServingCase};
pub use launch::{Failure, Launch, devices, launch, try_launch};
pub use strategy::{Axes, case, for_all};

use flashtile::{
    Device, Outputs,
    reference::ErrorBound,
    serving::{attention_cpu, compare},
};

/// Outputs that a measurement of the textbook's error takes at least, and the most seeds it takes: as for dense problems.
const SAMPLE: usize = 4096;
const MOST_SEEDS: u64 = 48;

/// Runs a case on every device and judges the results.
///
/// # Errors
/// What is wrong, and where.
pub fn check(case: &ServingCase) -> Result<(), String> {
    let built = Built::of(case);
    for device in devices() {
        let outputs = run(device, case, &built)?;
        judge(case, &built, &outputs)?;
    }
    Ok(())
}

/// Runs a case on a device. What belongs to no query that counts must stay as it was.
///
/// # Errors
/// The library's error, or the first byte that was written and should not be.
pub fn run(device: &dyn Device, case: &ServingCase, built: &Built) -> Result<Outputs, String> {
    let outputs = launch(device, &built.problem, &built.inputs())
        .map_err(|error| format!("{case:?}\n  on {}: {error}", device.info().name))?;
    built.check_untouched(&outputs).map_err(|what| {
        format!(
            "{case:?}\n  on {}: {what} was written, which is no query's",
            device.info().name
        )
    })?;
    Ok(outputs)
}

/// Judges results by the library's rule; of few outputs, by the largest bound of several seeds.
///
/// # Errors
/// What is wrong.
pub fn judge(case: &ServingCase, built: &Built, outputs: &Outputs) -> Result<(), String> {
    let found = compare(&built.problem, &built.inputs(), outputs)
        .map_err(|error| format!("{case:?}: {error}"))?;
    if found.ok {
        return Ok(());
    }
    let bound = bound(case, built);
    let lse_error = found.lse_max_abs_error.unwrap_or(0.0);
    if found.max_abs_error <= bound.max_abs
        && found.rms_error <= bound.rms
        && lse_error <= bound.lse_max_abs
        // Not for a row without keys that is not 0.
        && (found.max_abs_error > found.bound.max_abs
            || found.rms_error > found.bound.rms
            || lse_error > found.bound.lse_max_abs)
    {
        return Ok(());
    }
    Err(format!(
        "{case:?}\n  out: error {:.3e} (bound {:.3e}), rms {:.3e} (bound {:.3e}); lse: error {lse_error:.3e} (bound {:.3e})",
        found.max_abs_error, bound.max_abs, found.rms_error, bound.rms, bound.lse_max_abs,
    ))
}

/// What a result of the case may be off by.
pub fn bound(case: &ServingCase, built: &Built) -> ErrorBound {
    let seeds = (SAMPLE.div_ceil(built.outputs().max(1)) as u64).min(MOST_SEEDS);
    let mut bound = bound_of(built);
    for seed in 1..seeds {
        let sibling = ServingCase {
            seed: case.seed.wrapping_add(seed << 32),
            ..case.clone()
        };
        let other = bound_of(&Built::of(&sibling));
        bound.max_abs = bound.max_abs.max(other.max_abs);
        bound.rms = bound.rms.max(other.rms);
        bound.lse_max_abs = bound.lse_max_abs.max(other.lse_max_abs);
    }
    bound
}

/// What merging so many parts adds: to log-sum-exps, and to outputs relative to twice the mean of the parts' magnitudes. Roundings of
/// exponents: of two logarithms and their difference; then exponential, sum, reciprocal, and products.
pub fn merging_error(largest_lse: f64, parts: usize) -> f64 {
    (8.0 * largest_lse + 2.0 * parts as f64 + 16.0) / 16_777_216.0
}

fn bound_of(built: &Built) -> ErrorBound {
    let outputs = attention_cpu(&built.problem, &built.inputs()).expect("a sound problem");
    compare(&built.problem, &built.inputs(), &outputs)
        .expect("a sound problem")
        .bound
}
