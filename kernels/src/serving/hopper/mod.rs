//! Serving on Hopper, for many queries: as the kernels of [`super`], but products are those of warpgroups, and a warpgroup of its own copies
//! ([`producer`]) what two others ([`kernel`]) compute with. Rows are gathered one by one, since they lie in pages, and sequences end
//! anywhere: by asynchronous copies of 16 bytes and not by the copy engine, whose boxes know nothing of either.
//! [`instances`] holds the entry points.

pub mod config;
#[cfg(all(target_arch = "nvptx64", flashtile_arch = "sm_90a"))]
pub mod instances;
pub mod kernel;
pub mod producer;
