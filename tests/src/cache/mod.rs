//! Cases of caches: generated problems with the numbers that go with them, sound or hostile, their images in memory, and what plain Rust
//! makes of them.

mod case;
mod expect;
mod launch;

pub use case::{CacheCase, Layouts, Numbers, PlaceKind, RotaryCase, case};
pub use expect::{Expected, gathered};
pub use launch::{Images, append, gather};
