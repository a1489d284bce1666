//! Cases of caches: generated problems with the numbers that go with them, sound or hostile, their images in memory, and what plain Rust
//! makes of them.

mod blocks;
mod case;
mod expect;
mod launch;

pub use blocks::{BlocksCase, blocks_case};
pub use case::{CacheCase, Layouts, Numbers, PlaceKind, RotaryCase, case};
pub use expect::{Expected, gathered};
pub use launch::{Images, append, gather};

use flashtile::Device;

/// Appends on a device, and compares with what plain Rust makes of it.
///
/// # Errors
/// What is wrong.
pub fn appends(device: &dyn Device, case: &CacheCase) -> Result<(), String> {
    let (problem, numbers, images) = (case.append(), case.numbers(), Images::new(case));
    let found = append(device, &problem, &numbers, &images).map_err(|error| error.to_string())?;
    Expected::of(&problem, &numbers, &images).compare(case.dtype, &found)
}

/// Gathers on a device, and compares with what plain Rust makes of it.
///
/// # Errors
/// What is wrong.
pub fn gathers(device: &dyn Device, case: &CacheCase) -> Result<(), String> {
    let (problem, numbers, images) = (case.gather(), case.numbers(), Images::new(case));
    let found = gather(device, &problem, &numbers, &images).map_err(|error| error.to_string())?;
    gathered(&problem, &numbers, &images).same(&found)
}
