//! Caches of keys and values: new rows written into them, rows gathered from them, blocks copied.
//!
//! Caches are [blocks, rows, heads_kv, head_dim] and of any strides; keys also [blocks, heads_kv, head_dim / x, rows, x], as vLLM has them.
//! They are of f16 or bf16, or of e4m3 (f8e4m3, or u8: their codes), and are written where they are: each has storage of its own.

mod append;
mod blocks;
mod gather;
mod place;

pub use append::{CacheAppend, reshape_and_cache};
pub use blocks::{copy_blocks, swap_blocks};
pub use gather::{CacheGather, gather_cache};
