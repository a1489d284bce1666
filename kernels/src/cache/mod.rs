//! Caches of keys and values: [`append`] writes rows, [`gather`] reads them, [`blocks`] copies whole blocks.
//!
//! Each thread has one unit of one row and no loop, so that a launch for a single token uses many threads too. [`place`] says which row
//! of the cache is a token's, [`row`] where a row's elements are, [`unit`] what they mean, [`rotary`] turns them. [`instances`] holds the
//! entry points.
//!
//! Only bytes move (elements of 16 bits), but for rows that are turned, and those of e4m3 caches: f32, rounded once.

pub mod append;
pub mod blocks;
pub mod gather;
#[cfg(all(target_arch = "nvptx64", flashtile_arch = "sm_80"))]
pub mod instances;
pub mod place;
pub mod rotary;
pub mod row;
pub mod unit;
