//! Cases on every device, and comparisons of results.

use flashtile::Device;

use flashtile_verify::{Case, Results, Tensors, judge};

use crate::device::{command, devices_for};

/// Runs a case on these tensors and returns what the device left.
///
/// # Errors
/// The library's error, in words.
pub fn run(device: &dyn Device, case: &Case, tensors: &Tensors) -> Result<Results, String> {
    flashtile_verify::memory::run(device, case, tensors)
        .map_err(|error| format!("{case}\n  on {}: {error}", device.info().name))
}

/// Runs a case on every device that has its tier of kernels, and judges the results.
///
/// # Errors
/// What is wrong, where, and the command that repeats it.
pub fn check(case: &Case) -> Result<(), String> {
    let tensors = Tensors::of(case);
    for (number, device) in devices_for(case) {
        run(device, case, &tensors)
            .and_then(|results| judge(case, &tensors, &results))
            .map_err(|reason| format!("{reason}\n  {}", command(case, number)))?;
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
