//! The sm_90a tier: Hopper. One warpgroup loads ([`producer`]), the others compute ([`consumer`]), through rings of tiles in shared
//! memory ([`pipeline`]); blocks take pieces of work until there are none left ([`scheduler`]). [`half`] and [`fp8`] are the element
//! types' arithmetic. [`instances`] holds the entry
//! points.

pub mod config;
pub mod consumer;
pub mod epilogue;
pub mod fp8;
pub mod half;
#[cfg(all(target_arch = "nvptx64", flashtile_arch = "sm_90a"))]
pub mod instances;
pub mod kernel;
pub mod pipeline;
pub mod producer;
pub mod scheduler;
pub mod transpose;
