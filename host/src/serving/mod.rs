//! Attention as inference engines need it: sequences of their own lengths in one launch, caches in pages, keys split over blocks,
//! and what models add to scores.

mod problem;

pub use problem::{
    BiasType, CacheLayout, MaskType, PageTable, PairLayout, SequenceLengths, ServingProblem, Splits,
};
