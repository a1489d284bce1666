//! Attention as inference engines need it: sequences of their own lengths in one launch, caches in pages, keys split over blocks,
//! and what models add to scores.
//!
//! A [`ServingProblem`] says what there is; [`ServingProblem::plan`] checks it and chooses kernels; [`ServingPlan::launch`] enqueues
//! them on addresses in device memory. For tensors in the host's memory, [`attention`] does it all on a device, [`attention_cpu`]
//! without one.

mod checked;
mod cpu;
mod extents;
mod inputs;
mod layout;
mod merge;
mod oracle;
mod params;
mod parts;
mod plan;
mod pointers;
mod problem;
mod run;
mod sequence;
mod tiling;
mod validate;

pub use cpu::attention_cpu;
pub use inputs::ServingInputs;
pub use layout::{BiasType, CacheLayout, MaskType, PageTable, PairLayout};
pub use merge::{MergeInputs, MergePlan, MergePointers, MergeProblem, merge};
pub use oracle::{attention_f64, compare};
pub(crate) use params::cache_view;
pub(crate) use parts::PartPlan;
pub use plan::ServingPlan;
pub use pointers::ServingPointers;
pub use problem::{CacheScales, SequenceLengths, ServingProblem, Splits};
pub use run::attention;
