//! Caches of keys and values in device memory: new rows written into them, with rotary position embedding on the way
//! ([`AppendProblem`]: what other libraries call `reshape_and_cache`), rows read from them ([`GatherProblem`]: `gather_kv_cache`), and
//! whole blocks copied within a cache or from one to another ([`CopyProblem`]: `copy_blocks`, `swap_blocks`).
//!
//! Each problem is plain data, is planned once, and its plan is launched as often as needed: without allocation, without waiting, without
//! reading what the device holds, so that launches can be captured in CUDA graphs. What the device's memory says (lengths, slots, tables,
//! positions, numbers of blocks) may then change between launches. It may be anything: what lies outside of a cache is neither read nor
//! written. Where the host has the same numbers, it can check them beforehand: [`Place::rows`], [`check_slots`], [`check_pairs`].
//!
//! [`append_cpu`], [`gather_cpu`] and [`copy_blocks_cpu`] do the same without a device.
//!
//! Blocks between host and device are the driver's business (`cuMemcpyHtoDAsync` and its like): a block without gaps is one copy.
//!
//! ```
//! # #[cfg(feature = "emulator")] {
//! use flashtile::{DType, EmulatorDevice, TensorLayout};
//! use flashtile::cache::{AppendProblem, CacheData, PlaceData, Place, Rows, append};
//! use flashtile::serving::{CacheLayout, CacheScales};
//!
//! // Two tokens of one head of 8 elements, into a cache of 3 pages of 4 rows.
//! let rows = Rows {
//!     tensor: TensorLayout::contiguous([1, 2, 1, 8]),
//!     cache: CacheLayout::contiguous([3, 4, 1, 8]),
//! };
//! let problem = AppendProblem {
//!     dtype: DType::F16,
//!     kv_dtype: DType::F16,
//!     kv_scales: CacheScales::None,
//!     k: rows,
//!     v: None,
//!     place: Place::Slots,
//!     rotary: None,
//! };
//! let k: Vec<u8> = (0..32).collect();
//! let mut cache = vec![0; 3 * 4 * 16];
//! let data = CacheData { k: &k, place: PlaceData { slots: &[5, -1], ..PlaceData::default() }, ..CacheData::default() };
//! append(&EmulatorDevice::new(), &problem, &data, [&mut cache, &mut []])?;
//! // Slot 5 is row 1 of page 1. The other token is padding.
//! assert_eq!(cache[5 * 16..6 * 16], k[..16]);
//! assert!(cache[6 * 16..].iter().all(|&byte| byte == 0));
//! # }
//! # Ok::<(), flashtile::Error>(())
//! ```

mod address;
mod check;
mod checked;
mod copy;
mod cpu;
mod layout;
mod plan;
mod problem;
mod rotary;
mod rows;
mod run;

pub use check::{PlaceData, check_pairs, check_slots};
pub use copy::{BlocksLayout, CopyPlan, CopyProblem};
pub use cpu::{append_cpu, copy_blocks_cpu, gather_cpu};
pub use flashtile_abi::{
    BlocksParams, CacheVariant, CacheWork, RowsParams,
    cache::{CachePair, cache_variants},
};
pub use plan::{AppendPlan, GatherPlan, RotaryPointers, RowsPointers};
pub use problem::{
    AppendProblem, GatherProblem, IndexType, Place, QueryRows, Rotary, RotaryPairs, RotaryTable,
    Rows, Sequences, TableType,
};
pub use run::{CacheData, append, copy_blocks, gather};
