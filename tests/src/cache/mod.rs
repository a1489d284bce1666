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

/// A case with all that does not depend on the device: made once, tried as often as needed.
#[derive(Clone, Debug)]
pub struct Prepared {
    case: CacheCase,
    numbers: Numbers,
    images: Images,
}

impl Prepared {
    /// The case's numbers and buffers.
    pub fn new(case: CacheCase) -> Self {
        Self {
            numbers: case.numbers(),
            images: Images::new(&case),
            case,
        }
    }

    /// Appends on a device, and compares with what plain Rust makes of it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn appends(&self, device: &dyn Device) -> Result<(), String> {
        let problem = self.case.append();
        let found = append(device, &problem, &self.numbers, &self.images);
        let found = found.map_err(|error| error.to_string())?;
        let expected = Expected::of(&problem, &self.numbers, &self.images);
        expected.compare(&found)
    }

    /// Gathers on a device, and compares with what plain Rust makes of it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn gathers(&self, device: &dyn Device) -> Result<(), String> {
        let problem = self.case.gather();
        let found = gather(device, &problem, &self.numbers, &self.images);
        let found = found.map_err(|error| error.to_string())?;
        gathered(&problem, &self.numbers, &self.images).same(&found)
    }
}
