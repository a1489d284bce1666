//! Copies of whole blocks.

use flashtile_abi::{
    Arch, BlocksParams, CacheVariant, CacheWork, DType, Divisor,
    cache::{COPY_BYTES, CachePair, MAX_CACHES, flags},
};

use super::{
    plan::{MAX_GRID, config, variant},
    problem::IndexType,
};
use crate::{
    device::{Device, DeviceInfo, Stream},
    error::{Error, Result},
    extent::Extent,
    serving::CacheLayout,
};

/// Where the blocks of a cache are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlocksLayout {
    /// Blocks.
    pub blocks: usize,
    /// Bytes from one block to the next.
    pub stride: i64,
}

/// Copies of blocks within a cache or between two, in as many caches of one shape as there are: the layers of a model, their keys and their
/// values. (`copy_blocks`, `swap_blocks`)
///
/// Numbers of blocks are on the device, [pairs, 2]: which block is read, and which one it is written to. A pair of which one is no block is
/// skipped. All pairs of all caches are copied at the same time, so a block that is written twice, or read and written, holds some mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CopyProblem {
    /// Pairs of numbers of blocks.
    pub pairs: usize,
    /// What the numbers are.
    pub index: IndexType,
    /// Bytes of a block, which has no gaps.
    pub block_bytes: usize,
    /// Caches that are read.
    pub src: BlocksLayout,
    /// Caches that are written. They may be the same.
    pub dst: BlocksLayout,
}

/// How blocks are copied, decided once for every launch of the same problem.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopyPlan {
    problem: CopyProblem,
    variant: &'static CacheVariant,
    params: BlocksParams,
    /// Thread blocks of one cache.
    blocks: u32,
}

impl CopyProblem {
    /// Copies within caches of this layout.
    ///
    /// # Errors
    /// [`Error::BadInput`] if a block has gaps, or its first element is not its lowest.
    pub fn within(
        dtype: DType,
        cache: &CacheLayout,
        pairs: usize,
        index: IndexType,
    ) -> Result<Self> {
        cache.check("cache", dtype.bytes())?;
        let elements = cache.check_dense("cache")?;
        let bytes = dtype.bytes() as usize;
        let layout = BlocksLayout {
            blocks: cache.shape[0],
            stride: cache.strides[0].wrapping_mul(bytes as i64),
        };
        Ok(Self {
            pairs,
            index,
            block_bytes: elements * bytes,
            src: layout,
            dst: layout,
        })
    }

    /// The numbers of blocks.
    pub(crate) fn pairs_extent(&self) -> Extent {
        Extent::numbers(self.pairs.saturating_mul(2), self.index.bytes())
    }

    /// Checks the problem. Touches no device.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong; [`Error::NoDevice`] a device that cannot run the kernels.
    pub fn plan(&self, device: &DeviceInfo) -> Result<CopyPlan> {
        device.supports(Arch::Sm80)?;
        for (argument, layout) in [("src", &self.src), ("dst", &self.dst)] {
            layout.offsets(argument, self.block_bytes)?;
        }
        if self.dst.blocks > 1
            && (self.dst.stride.unsigned_abs() as u128) < self.block_bytes as u128
        {
            return Err(Error::bad(
                "dst",
                "blocks that do not overlap",
                format!(
                    "stride {} of blocks of {} bytes",
                    self.dst.stride, self.block_bytes
                ),
            ));
        }
        let parts = (self.block_bytes as u64).div_ceil(u64::from(COPY_BYTES));
        let blocks = parts.checked_mul(self.pairs as u64);
        let blocks = blocks.filter(|&n| n <= MAX_GRID).ok_or_else(|| {
            Error::bad(
                "pairs",
                format!("at most {MAX_GRID} pieces of {COPY_BYTES} bytes to be copied in a cache"),
                format!("{} pairs of {parts}", self.pairs),
            )
        })?;
        Ok(CopyPlan {
            problem: *self,
            variant: variant(CacheWork::CopyBlocks, None, None),
            blocks: blocks as u32,
            params: BlocksParams {
                block_bytes: self.block_bytes as u64,
                src_stride: self.src.stride,
                dst_stride: self.dst.stride,
                src_blocks: self.src.blocks as u32,
                dst_blocks: self.dst.blocks as u32,
                // Where there is none, nothing is launched.
                count: Divisor::new(self.pairs.min(MAX_GRID as usize) as u32),
                parts: Divisor::new(parts as u32),
                flags: match self.index {
                    IndexType::I32 => 0,
                    IndexType::I64 => flags::PAIRS_I64,
                },
                ..BlocksParams::default()
            },
        })
    }
}

impl BlocksLayout {
    /// Its bytes; the layout has passed its checks.
    pub(crate) fn extent(&self, block_bytes: usize) -> Extent {
        let is_empty = self.blocks == 0 || block_bytes == 0;
        Extent::new(self.offsets("", block_bytes).ok(), is_empty, 1)
    }

    /// Offsets of the lowest and the highest byte from the first of block 0.
    pub(super) fn offsets(&self, argument: &'static str, block_bytes: usize) -> Result<(i64, i64)> {
        let offsets = || {
            let last = i64::try_from(block_bytes.saturating_sub(1)).ok()?;
            let reach = i64::try_from(self.blocks.saturating_sub(1))
                .ok()?
                .checked_mul(self.stride)?;
            let high = reach.max(0).checked_add(last)?;
            high.checked_sub(reach.min(0))?;
            Some((reach.min(0), high))
        };
        let counted = self.blocks as u64 <= MAX_GRID;
        offsets().filter(|_| counted).ok_or_else(|| {
            Error::bad(
                argument,
                format!("at most {MAX_GRID} blocks, whose bytes can be counted in 63 bits"),
                format!("{self:?}, blocks of {block_bytes} bytes"),
            )
        })
    }
}

impl CopyPlan {
    /// The problem.
    pub fn problem(&self) -> &CopyProblem {
        &self.problem
    }

    /// The kernel: for [`Device::load`].
    pub fn variant(&self) -> &'static CacheVariant {
        self.variant
    }

    /// Enqueues the copies on a stream: one kernel for every 128 caches, or fewer if they have very many blocks to copy. Does not allocate
    /// and does not wait, so that the call can be captured in a CUDA graph (call [`Device::load`] beforehand).
    ///
    /// `pairs` is the device address of the numbers of blocks; `caches` are the device addresses of the caches' first blocks: what is read,
    /// and what is written, which may be the same.
    ///
    /// # Errors
    /// [`Error::BadInput`] for an address that is 0, not aligned to its numbers, or from which a cache would leave the address space; whatever
    /// the device says.
    ///
    /// # Safety
    /// Every address must be that of device memory which holds what the problem says, stays allocated until the kernels have finished, and
    /// is neither written (what is read) nor accessed at all (what is written) by anything else meanwhile; different caches do not overlap.
    /// `stream` must be a live stream of the device. What the memory holds does not matter.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        pairs: u64,
        caches: &[CachePair],
    ) -> Result<()> {
        let CopyProblem {
            src,
            dst,
            block_bytes,
            ..
        } = self.problem;
        if self.blocks == 0 || src.blocks == 0 || dst.blocks == 0 {
            return Ok(());
        }
        self.problem.pairs_extent().check("pairs", pairs)?;
        let mut params = self.params;
        params.pairs = pairs;
        let sizes = [block_bytes as u64, src.stride as u64, dst.stride as u64];
        let mut pieces = sizes.iter().all(|n| n.is_multiple_of(16));
        for cache in caches {
            for (argument, layout, ptr) in [("src", src, cache.src), ("dst", dst, cache.dst)] {
                layout.extent(block_bytes).check(argument, ptr)?;
                pieces &= ptr.is_multiple_of(16);
            }
        }
        if pieces {
            params.flags |= flags::BLOCK_PIECES;
        }
        let most = (MAX_GRID / u64::from(self.blocks)).min(MAX_CACHES as u64) as usize;
        for some in caches.chunks(most) {
            params.caches[..some.len()].copy_from_slice(some);
            let config = config(self.variant, self.blocks * some.len() as u32);
            // SAFETY: the caller vouches for the addresses and the stream; the parameters are those of the variant's entry point, and the
            // grid has as many caches as they do.
            unsafe { device.launch(self.variant, &config, params.as_bytes(), stream)? };
        }
        Ok(())
    }
}
