//! What the tests in `tests/` are made of: devices, generated cases, changed kernels. Cases themselves, their
//! data and their judgement are `flashtile-verify`'s, which the command `flashtile verify` has too.
//!
//! A failure is shrunk and printed as commands that repeat it:
//!
//! ```text
//! flashtile verify --device emulator --case 'fused f16 b1 q37 k70 h2/1 d32/32 seed=7'
//! FLASHTILE_TEST_CASE='fused f16 b1 q37 k70 h2/1 d32/32 seed=7' cargo test --release -p flashtile-tests placement_does_not_matter
//! ```
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `FLASHTILE_TEST_CASES` | factor of the number of generated cases; below 1 the sweep is the quick one | 1 |
//! | `FLASHTILE_TEST_SEED` | seed of the generated cases | 0 |
//! | `FLASHTILE_TEST_DEVICE` | `emulator` or `cuda` alone | `all` |
//! | `FLASHTILE_EXAMPLES` | folder of the repository's own sample | that of the checkout |
//! | `FLASHTILE_TEST_NUMERICS`, `FLASHTILE_TEST_PERTURB` | arithmetic of the emulator ([`device`]) | fast, exact |
//! | `FLASHTILE_TEST_CASE` | generated properties are tried on this case alone | none |
//! | `FLASHTILE_TEST_SANITIZE` | 1: the emulator has its sanitizer on | off |
//! | `FLASHTILE_TEST_SCHEDULE` | seed of the order in which the emulator runs warps | in order |
//! | `FLASHTILE_DATA` | folder of captured tensors | `../shared/data` beside the repository, if there is one |

pub mod cache;
pub mod check;
pub mod checked;
pub mod device;
pub mod fuzzing;
pub mod generate;
pub mod golden;
pub mod mutation;
pub mod program;
pub mod ranks;
pub mod serving;
pub mod wrapped;

pub use check::{assert_near, assert_same_bits, check, run};
pub use device::{devices, devices_for};
pub use flashtile_verify::{
    Case, Distribution, Placement, Results, Tensors, bound, case, data, judge, memory, oracle,
    parallel, shrink, sizes, sweep, text,
};
