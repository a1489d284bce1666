//! Attention for inference engines: [`place`] says which sequence, rows and keys a block has, [`stream`] brings its keys and values,
//! [`operands`] makes operands of them, [`scores`] changes and hides scores, [`latent`] is what differs where values are columns of keys,
//! [`finish`] makes results of what the warps hold, [`merge`] one of several.
//! [`instances`] holds the entry points.

pub mod config;
pub mod finish;
pub mod hopper;
#[cfg(all(target_arch = "nvptx64", flashtile_arch = "sm_80"))]
pub mod instances;
pub mod kernel;
pub mod latent;
pub mod merge;
pub mod operands;
pub mod place;
pub mod scores;
pub mod stream;
