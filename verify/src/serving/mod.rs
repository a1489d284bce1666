//! Problems of inference engines: cases, their tensors in any layout, launches that trust nothing, and their judgement.

mod build;
mod case;
mod launch;
mod merge;
mod shrink;
pub mod sweep;
mod text;

pub use build::{Built, GAP};
pub use case::{Bias, Cache, CacheOrder, MaskCase, Queries, ServingCase};
pub use launch::{Launch, launch, try_launch};
pub use merge::{BuiltMerge, MergeCase, judge_merge, merging_error};

use flashtile::{
    Device, Outputs,
    reference::ErrorBound,
    serving::{attention_cpu, compare},
};

/// Outputs that a measurement of the textbook's error takes at least, and the most seeds it takes: as for dense problems.
const SAMPLE: usize = 4096;
const MOST_SEEDS: u64 = 48;

/// Runs a case on a device. What belongs to no query that counts must stay as it was.
///
/// # Errors
/// The library's error, or the first byte that was written and should not be.
pub fn run(device: &dyn Device, case: &ServingCase, built: &Built) -> Result<Outputs, String> {
    let on = || format!("{case}\n  on {}", device.info().name);
    let outputs = launch(device, &built.problem, &built.inputs())
        .map_err(|error| format!("{}: {error}", on()))?;
    untouched(built, &outputs).map_err(|reason| format!("{}: {reason}", on()))?;
    Ok(outputs)
}

/// Runs a case and judges the results, on a device or by plain Rust on the CPU.
///
/// # Errors
/// The library's error; inside, what is wrong with the results.
pub fn attempt(
    device: Option<&dyn Device>,
    case: &ServingCase,
) -> Result<Result<(), String>, flashtile::Error> {
    let built = Built::of(case);
    let (problem, inputs) = (&built.problem, built.inputs());
    let outputs = match device {
        Some(device) if case.hostile => {
            return try_launch(device, problem, &inputs).map(|_| Ok(()));
        }
        Some(device) => launch(device, problem, &inputs)?,
        None => attention_cpu(problem, &inputs)?,
    };
    // On the CPU what belongs to no query is 0.
    let checked = match device {
        Some(_) => untouched(&built, &outputs).map_err(|reason| format!("{case}\n  {reason}")),
        None => Ok(()),
    };
    Ok(checked.and_then(|()| judge(case, &built, &outputs)))
}

fn untouched(built: &Built, outputs: &Outputs) -> Result<(), String> {
    let written = |what| format!("{what} was written, which is no query's");
    built.check_untouched(outputs).map_err(written)
}

/// Judges results by the library's rule; of few outputs, by the largest bound of several seeds.
///
/// # Errors
/// What is wrong.
pub fn judge(case: &ServingCase, built: &Built, outputs: &Outputs) -> Result<(), String> {
    judge_by(case, built, outputs, || bound(case, built))
}

/// As [`judge`], where the [`bound`] may be known already.
///
/// # Errors
/// What is wrong.
pub fn judge_by(
    case: &ServingCase,
    built: &Built,
    outputs: &Outputs,
    bound: impl FnOnce() -> ErrorBound,
) -> Result<(), String> {
    let found = compare(&built.problem, &built.inputs(), outputs)
        .map_err(|error| format!("{case}: {error}"))?;
    if found.ok {
        return Ok(());
    }
    let bound = bound();
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
        "{case}\n  out: error {:.3e} (bound {:.3e}), rms {:.3e} (bound {:.3e}); lse: error {lse_error:.3e} (bound {:.3e})",
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

fn bound_of(built: &Built) -> ErrorBound {
    let outputs = attention_cpu(&built.problem, &built.inputs()).expect("a sound problem");
    compare(&built.problem, &built.inputs(), &outputs)
        .expect("a sound problem")
        .bound
}
