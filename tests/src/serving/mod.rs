//! Problems of inference engines by chance, on every device.

mod strategy;

pub use flashtile_verify::serving::{
    Bias, Built, Cache, CacheOrder, GAP, Launch, MaskCase, Queries, ServingCase, bound, judge,
    judge_by, judge_merge, launch, merging_error, run, sweep, try_launch,
};
pub use strategy::{Axes, case, for_all};

use std::cell::OnceCell;

use flashtile::{Device, DeviceKind, EmulatorDevice};

use crate::device::emulators;

thread_local! {
    static EMULATORS: OnceCell<&'static [EmulatorDevice]> = const { OnceCell::new() };
}

/// The suite's emulators, but with their sanitizer on, and each GPU: as the environment wants them.
pub fn devices() -> Vec<&'static dyn Device> {
    let all = crate::devices().iter().map(|device| &**device);
    let (emulated, gpus): (Vec<_>, Vec<_>) =
        all.partition(|device| device.info().kind == DeviceKind::Emulator);
    let sanitizing = match emulated.is_empty() {
        true => &[][..],
        false => EMULATORS.with(|cell| *cell.get_or_init(|| Vec::leak(emulators(true)))),
    };
    let sanitizing = sanitizing.iter().map(|device| device as &dyn Device);
    sanitizing.chain(gpus).collect()
}

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
