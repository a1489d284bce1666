//! Attention as inference engines need it: sequences of their own lengths in one launch, caches in pages, keys split over blocks,
//! and what models add to scores.

mod cpu;
mod inputs;
mod layout;
mod problem;
mod sequence;
mod validate;

pub use cpu::attention_cpu;
pub use inputs::ServingInputs;
pub use layout::{BiasType, CacheLayout, MaskType, PageTable, PairLayout};
pub use problem::{SequenceLengths, ServingProblem, Splits};
