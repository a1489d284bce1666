//! Attention over sequences that are split over several GPUs, on an engine's own communicator.
//!
//! | | queries | keys | what travels |
//! |---|---|---|---|
//! | [`ContextParallel`], ring | split | split | keys and values, step by step, while kernels run |
//! | [`ContextParallel`], all-gather | split | split | keys and values, at once |
//! | [`KeyParallel`] | on all ranks | split | f32 results and their log-sum-exps |
//! | [`ServingKeyParallel`] | on all ranks | split, in caches | the same |
//!
//! An [`Exchange`] moves bytes between ranks: `NcclExchange` (feature `nccl`), or an engine's own. Every rank makes a plan of the same
//! problem over its own tensors and launches it with its own device. Partial results are merged by their log-sum-exps in the order of
//! the ranks whose keys they are of, so that results are the same on every run and every rank.

mod agree;
mod check;
mod context;
mod exchange;
mod keys;
mod launch;
#[cfg(feature = "nccl")]
mod nccl;
mod piece;
mod shards;

pub use context::{Circulation, ContextParallel, ContextParallelPlan, Streams};
pub use exchange::{DeviceRange, Exchange};
pub use keys::{KeyParallel, KeyParallelPlan, ServingKeyParallel, ServingKeyParallelPlan};
#[cfg(feature = "nccl")]
pub use nccl::NcclExchange;
pub use shards::{Sharding, Shards};
