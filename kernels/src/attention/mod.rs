//! Attention kernels of the sm_80 tier. A kernel is wiring: [`pipeline`] streams K and V tiles past a
//! [`pass::Pass`], [`mask`] says which tiles and which keys, [`softmax`] keeps the row statistics,
//! [`epilogue`] writes the result. [`instances`] holds the entry points.

pub mod config;
pub mod epilogue;
pub mod instances;
pub mod kernel;
pub mod mask;
pub mod pass;
pub mod pipeline;
pub mod query;
pub mod score_mod;
pub mod softmax;
