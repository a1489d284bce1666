//! The sm_80 tier: [`pipeline`] streams K and V tiles past a [`pass::Pass`], [`epilogue`] writes the result.
//! [`instances`] holds the entry points.

pub mod config;
pub mod epilogue;
#[cfg(all(target_arch = "nvptx64", flashtile_arch = "sm_80"))]
pub mod instances;
pub mod kernel;
pub mod pass;
pub mod pipeline;
pub mod query;
