//! From rows to a launch: checks, the grid, the parameters.

use flashtile_abi::{
    Arch, CacheVariant, CacheWork, DType, RowsParams,
    cache::{THREADS, cache_variants},
};

use super::{
    problem::{AppendProblem, GatherProblem},
    rotary,
    rows::{Moved, RowsExtents},
};
use crate::{
    device::{Device, DeviceInfo, LaunchConfig, Stream},
    error::{Error, Result},
};

/// Longest grid in x, and more than any count that a kernel divides.
pub(super) const MAX_GRID: u64 = (1 << 31) - 1;

/// Device addresses of rows and of what says where they go. Tensors' and caches' are those of element [0, 0, 0, 0]; what the problem does
/// not have is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowsPointers {
    /// Keys outside of the cache.
    pub k: u64,
    /// Values outside of the cache.
    pub v: u64,
    /// Keys in the cache.
    pub k_cache: u64,
    /// Values in the cache.
    pub v_cache: u64,
    /// Scales of the keys' cache: [`AppendProblem::kv_scales`].
    pub k_scale: u64,
    /// Scales of the values' cache.
    pub v_scale: u64,
    /// `i64` by token: [`Place::Slots`](super::Place::Slots).
    pub slots: u64,
    /// `i32[batch + 1]`: [`Sequences::starts`](super::Sequences::starts).
    pub starts: u64,
    /// `i32[batch]`: [`Sequences::used`](super::Sequences::used).
    pub used: u64,
    /// `i32[batch]`: [`Sequences::first`](super::Sequences::first).
    pub first: u64,
    /// `i32` or `u32` [batch, entries]: [`Sequences::pages`](super::Sequences::pages).
    pub table: u64,
}

/// Device addresses of what turns keys and queries; all 0 without [`AppendProblem::rotary`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RotaryPointers {
    /// Cosines, at position 0.
    pub cos: u64,
    /// Sines, at position 0.
    pub sin: u64,
    /// Positions by token: [`Rotary::positions`](super::Rotary::positions).
    pub positions: u64,
    /// Queries: [`Rotary::queries`](super::Rotary::queries).
    pub q: u64,
    /// Where they go.
    pub q_out: u64,
}

/// How new rows go into a cache, decided once for every launch of the same problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AppendPlan {
    problem: AppendProblem,
    rows: RowsPlan,
}

/// How rows are read from a cache, decided once for every launch of the same problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatherPlan {
    problem: GatherProblem,
    rows: RowsPlan,
}

impl AppendProblem {
    /// Checks the problem. Touches no device.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong; [`Error::NoDevice`] a device that cannot run the kernels.
    pub fn plan(&self, device: &DeviceInfo) -> Result<AppendPlan> {
        device.supports(Arch::Sm80)?;
        let moved = self.moved();
        moved.check()?;
        self.k.cache.check_distinct("k_cache")?;
        if let Some(v) = &self.v {
            v.cache.check_distinct("v_cache")?;
        }
        if let Some(rotary) = &self.rotary {
            rotary.check(self)?;
        }
        let params = moved.params(self.rotary.as_ref())?;
        let rows = RowsPlan::new(params, CacheWork::Append, &moved)?;
        Ok(AppendPlan {
            problem: *self,
            rows,
        })
    }

    /// The problem has passed its checks.
    pub(crate) fn extents(&self) -> RowsExtents {
        self.moved().extents()
    }

    fn moved(&self) -> Moved<'_> {
        Moved {
            dtype: self.dtype,
            kv_dtype: self.kv_dtype,
            kv_scales: self.kv_scales,
            k: &self.k,
            v: self.v.as_ref(),
            place: &self.place,
        }
    }
}

impl GatherProblem {
    /// Checks the problem. Touches no device.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong; [`Error::NoDevice`] a device that cannot run the kernels.
    pub fn plan(&self, device: &DeviceInfo) -> Result<GatherPlan> {
        device.supports(Arch::Sm80)?;
        let moved = self.moved();
        moved.check()?;
        self.k.tensor.check_distinct("k")?;
        if let Some(v) = &self.v {
            v.tensor.check_distinct("v")?;
        }
        let params = moved.params(None)?;
        let rows = RowsPlan::new(params, CacheWork::Gather, &moved)?;
        Ok(GatherPlan {
            problem: *self,
            rows,
        })
    }

    /// The problem has passed its checks.
    pub(crate) fn extents(&self) -> RowsExtents {
        self.moved().extents()
    }

    fn moved(&self) -> Moved<'_> {
        Moved {
            dtype: self.dtype,
            kv_dtype: self.kv_dtype,
            kv_scales: self.kv_scales,
            k: &self.k,
            v: self.v.as_ref(),
            place: &self.place,
        }
    }
}

impl AppendPlan {
    /// The problem.
    pub fn problem(&self) -> &AppendProblem {
        &self.problem
    }

    /// The kernel: for [`Device::load`].
    pub fn variant(&self) -> &'static CacheVariant {
        self.rows.variant
    }

    /// Grid and block.
    pub fn config(&self) -> &LaunchConfig {
        &self.rows.config
    }

    /// The kernel's parameters for these addresses.
    ///
    /// # Errors
    /// [`Error::BadInput`] for an address that is 0 although the problem has such a tensor, that is not 0 although it has none, that is no
    /// multiple of the element's size, or from which the tensor would leave the address space; for queries that overlap where they go.
    pub fn params(&self, rows: &RowsPointers, rotary: &RotaryPointers) -> Result<RowsParams> {
        let mut params = self.rows.params;
        self.problem.moved().addresses(&mut params, rows)?;
        rotary::addresses(&self.problem, &mut params, rotary)?;
        Ok(params)
    }

    /// Enqueues the kernel on a stream. Does not allocate and does not wait, so that the call can be captured in a CUDA graph (call
    /// [`Device::load`] beforehand).
    ///
    /// # Errors
    /// As [`AppendPlan::params`], and whatever the device says.
    ///
    /// # Safety
    /// Every address must be that of device memory which holds what the problem says, stays allocated until the kernel has finished, and is
    /// neither written (what the kernel reads) nor accessed at all (caches, the queries' output) by anything else meanwhile; caches overlap
    /// nothing else. `stream` must be a live stream of the device. What the memory holds does not matter.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        rows: &RowsPointers,
        rotary: &RotaryPointers,
    ) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let params = self.params(rows, rotary)?;
        // SAFETY: the caller's promise.
        unsafe { self.enqueue(device, stream, &params) }
    }

    /// Enqueues the kernel with its parameters.
    ///
    /// # Safety
    /// As [`AppendPlan::launch`]; the parameters are this plan's.
    pub(super) unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        params: &RowsParams,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses and the stream; the plan's geometry keeps the kernel within the tensors.
        unsafe { self.rows.launch(device, stream, params) }
    }
}

impl GatherPlan {
    /// The problem.
    pub fn problem(&self) -> &GatherProblem {
        &self.problem
    }

    /// The kernel: for [`Device::load`].
    pub fn variant(&self) -> &'static CacheVariant {
        self.rows.variant
    }

    /// Grid and block.
    pub fn config(&self) -> &LaunchConfig {
        &self.rows.config
    }

    /// The kernel's parameters for these addresses.
    ///
    /// # Errors
    /// As [`AppendPlan::params`].
    pub fn params(&self, rows: &RowsPointers) -> Result<RowsParams> {
        let mut params = self.rows.params;
        self.problem.moved().addresses(&mut params, rows)?;
        Ok(params)
    }

    /// Enqueues the kernel on a stream. Does not allocate and does not wait, so that the call can be captured in a CUDA graph (call
    /// [`Device::load`] beforehand). Rows of the tensors that are no sequence's are left alone.
    ///
    /// # Errors
    /// As [`GatherPlan::params`], and whatever the device says.
    ///
    /// # Safety
    /// As [`AppendPlan::launch`], the tensors being what is written.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        rows: &RowsPointers,
    ) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let params = self.params(rows)?;
        // SAFETY: the caller's promise.
        unsafe { self.enqueue(device, stream, &params) }
    }

    /// Enqueues the kernel with its parameters.
    ///
    /// # Safety
    /// As [`GatherPlan::launch`]; the parameters are this plan's.
    pub(super) unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        params: &RowsParams,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses and the stream; the plan's geometry keeps the kernel within the tensors.
        unsafe { self.rows.launch(device, stream, params) }
    }
}

/// A kernel for rows, and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RowsPlan {
    variant: &'static CacheVariant,
    config: LaunchConfig,
    params: RowsParams,
}

impl RowsPlan {
    fn new(params: RowsParams, work: CacheWork, moved: &Moved<'_>) -> Result<Self> {
        let blocks = moved.tokens()? * u64::from(params.parts.divisor);
        if blocks > MAX_GRID {
            return Err(Error::bad(
                "k",
                format!("at most {MAX_GRID} units of {THREADS} times 16 bytes over all tokens"),
                format!("{blocks}"),
            ));
        }
        let kv = Some(moved.kv_dtype).filter(|&kv| kv != moved.dtype);
        let variant = variant(work, Some(moved.dtype), kv);
        Ok(Self {
            variant,
            config: config(variant, blocks as u32),
            params,
        })
    }

    fn is_empty(&self) -> bool {
        self.config.grid[0] == 0
    }

    /// # Safety
    /// As [`AppendPlan::launch`].
    unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        params: &RowsParams,
    ) -> Result<()> {
        // SAFETY: the caller's promise; the parameters are those of the variant's entry point.
        unsafe { device.launch(self.variant, &self.config, params.as_bytes(), stream) }
    }
}

/// The kernel for some work on elements of this type, or of any, and caches of that one, if it is another.
pub(super) fn variant(
    work: CacheWork,
    dtype: Option<DType>,
    kv: Option<DType>,
) -> &'static CacheVariant {
    let all = cache_variants();
    let fits = |it: &&CacheVariant| {
        it.work == work && it.kv == kv && (it.dtype.is_none() || it.dtype == dtype)
    };
    // The first is never taken: each work has a kernel of every type that plans let through.
    all.iter().find(fits).unwrap_or(&all[0])
}

/// A launch of so many blocks.
pub(super) fn config(variant: &CacheVariant, blocks: u32) -> LaunchConfig {
    LaunchConfig {
        grid: [blocks, 1, 1],
        block: [variant.threads, 1, 1],
        shared_bytes: variant.shared_bytes,
        cluster: 1,
    }
}
