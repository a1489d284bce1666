//! Attention for [candle](https://docs.rs/candle-core): the functions of candle-flash-attn 0.11, with the same names, arguments and
//! meaning, over kernels that are written in Rust. To switch, change a `use`:
//!
//! ```
//! use flashtile_candle as candle_flash_attn;
//! # use candle_core::{DType, Device, Tensor};
//!
//! # fn main() -> candle_core::Result<()> {
//! let q = Tensor::zeros((1, 5, 4, 64), DType::BF16, &Device::Cpu)?; // [batch, seqlen, heads, head_dim]
//! let (k, v) = (q.narrow(2, 0, 2)?, q.narrow(2, 2, 2)?); // Two key/value heads: grouped-query attention, without a copy.
//! let out = candle_flash_attn::flash_attn(&q, &k, &v, 0.125, true)?;
//! assert_eq!(out.dims(), [1, 5, 4, 64]);
//! # Ok(())
//! # }
//! ```
//!
//! [`Attention`] has what these functions cannot say: the log-sum-exp, sinks, biases and masks, caches in pages of any size, outputs that
//! are reused, e4m3 caches with scales. [`CacheAppend`], [`CacheGather`] and [`copy_blocks`] fill and move caches. [`flash_attn_decode`] is
//! the short form for one new token over a cache in pages.
//!
//! Tensors on candle's CPU device are computed on the CPU: plain Rust, sums in f32, all cores. Tensors on a GPU need feature `cuda`.
//! There is no backward: `backward` through a result is candle's error that says so.

mod attention;
mod cache;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod functions;
mod into;
mod operands;
mod operation;
#[cfg(any(feature = "cuda", test))]
mod plan;
mod problem;

pub use attention::Attention;
pub use cache::{
    CacheAppend, CacheGather, copy_blocks, gather_cache, reshape_and_cache, swap_blocks,
};
pub use flashtile::{CausalAlignment, cache::RotaryPairs, serving::Splits};
pub use functions::{
    FlashAttn, flash_attn, flash_attn_alibi, flash_attn_alibi_windowed,
    flash_attn_alibi_windowed_softcap, flash_attn_decode, flash_attn_varlen,
    flash_attn_varlen_alibi, flash_attn_varlen_alibi_windowed,
    flash_attn_varlen_alibi_windowed_softcap, flash_attn_varlen_paged_windowed,
    flash_attn_varlen_windowed, flash_attn_windowed,
};
