//! What the tests in `tests/` are made of: devices, cases, data, judgements.
//!
//! A [`Case`] is everything that decides a result: sizes, options, memory layouts, and the seed of its
//! data. It prints as one line and parses back from it, so that a failure can be repeated:
//!
//! ```text
//! FLASHTILE_TEST_CASE='fused f16 b1 q37 k70 h2/1 d32/32 seed=7' cargo test --release -p flashtile-tests repeat
//! ```
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FLASHTILE_TEST_CASES` | factor of the number of generated cases | 1 |
//! | `FLASHTILE_TEST_SEED` | seed of the generated cases | 0 |
//! | `FLASHTILE_TEST_CASE` | the case that the test `repeat` runs | none |
//! | `FLASHTILE_TEST_DEVICE` | `emulator` or `cuda` alone | `all` |
//! | `FLASHTILE_EXAMPLES` | folder of the repository's own sample | that of the checkout |
//! | `FLASHTILE_DATA` | folder of captured tensors | `../shared/data` beside the repository, if there is one |

pub mod case;
pub mod check;
pub mod data;
pub mod device;
pub mod fuzzing;
pub mod generate;
pub mod golden;
pub mod memory;
pub mod mutation;
pub mod program;
pub mod text;

pub use case::{Case, Placement, sizes};
pub use check::{assert_near, assert_same_bits, bound, check, judge, oracle, run};
pub use data::{Distribution, Tensors};
pub use device::devices;
pub use memory::Results;
