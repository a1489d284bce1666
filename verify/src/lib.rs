//! What flashtile's kernels are held against: cases, their data, how they are run and judged, and the sweep
//! that takes every kernel through every class of cases.
//!
//! A [`Case`] is everything that decides a result: sizes, options, memory layouts, and the seed of its
//! data. It prints as one line and parses back from it, so that a failure can be repeated:
//!
//! ```text
//! flashtile verify --case 'fused f16 b1 q37 k70 h2/1 d32/32 seed=7'
//! ```
//!
//! The command `flashtile verify` and the project's own tests both are made of this.

pub mod any;
pub mod case;
pub mod data;
pub mod judge;
pub mod memory;
pub mod parallel;
pub mod serving;
pub mod shrink;
pub mod sweep;
pub mod text;

pub use any::{AnyCase, Wrong};
pub use case::{Case, Placement, sizes};
pub use data::{Distribution, Encoded, Tensors};
pub use judge::{bound, judge, oracle};
pub use memory::Results;
