//! Everything the two sides of a launch must agree on: parameter blocks, variant keys, tile shapes,
//! shared-memory plans, and the integer arithmetic of masks.
//!
//! `kernels/` (device code) and `flashtile` (host code) both depend on this crate, so each fact
//! exists once. It is `no_std`, allocates nothing, and all arithmetic that a kernel needs at
//! compile time is `const`.
#![cfg_attr(not(test), no_std)]

pub mod cache;
pub mod check;
pub mod divide;
pub mod e4m3;
pub mod exp2;
pub mod hopper;
pub mod mask;
pub mod operation;
pub mod params;
pub mod serving;
pub mod tile;
pub mod variant;

pub use cache::{BlocksParams, CacheVariant, CacheWork, RowsParams};
pub use check::{CheckParams, CheckReport, CheckState, CheckVariant, Offence};
pub use divide::Divisor;
pub use hopper::HopperPlan;
pub use mask::{Band, BlockRange, KeyInterval};
pub use operation::{Operation, operations};
pub use params::{
    AttentionParams, HopperParams, LseView, ScaleView, Schedule, TensorMap, TensorView,
};
pub use serving::{MergeParams, MergeVariant, ServingParams, ServingVariant, Sharing};
pub use tile::{DType, SharedPlan, TileShape};
pub use variant::{Algorithm, Arch, Entry, ScoreModKind, Variant, variants};
