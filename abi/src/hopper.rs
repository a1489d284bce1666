//! Tiles of the sm_90a tier, and where they lie in shared memory.
//!
//! A block has one warpgroup that loads (the producer) and several that compute (consumers), each with 64 query rows.

use crate::tile::{DType, TileShape};

/// Shared memory that one block may have on Hopper.
pub const SM90_SHARED_CAPACITY: u32 = 227 * 1024;

/// Query rows of a warpgroup.
pub const WARPGROUP_ROWS: u32 = 64;

/// Rows of k or v that have one scale at least: the keys of every tile of 8-bit elements divide them.
pub const SCALE_ROWS: u32 = 128;

/// Warps of the producer that transpose values of 8 bits.
pub const TRANSPOSERS: u32 = 3;

/// Threads of a warpgroup.
pub const WARPGROUP: u32 = 128;

/// Rows that the producer of a serving kernel copies at once: 8 of its threads have each.
pub const PRODUCER_ROWS: u32 = WARPGROUP / 8;

/// Most pieces of work of a block, which remembers with a bit of shared memory for each whether it must do it again. Where there are
/// more, there are more blocks.
pub const MOST_PIECES: u32 = 1024;

/// Bytes of a row of a swizzled block of columns: the most that divides a tile's row.
pub const fn swizzle_bytes(row_bytes: u32) -> u32 {
    if row_bytes.is_multiple_of(128) {
        128
    } else if row_bytes.is_multiple_of(64) {
        64
    } else {
        32
    }
}

/// Byte offsets into a block's shared memory. A tile is cut into blocks of columns, [`swizzle_bytes`] wide, one after another;
/// all offsets of tiles are multiples of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopperPlan {
    /// Q tiles [block_m / 64][64, head_dim_qk].
    pub q: u32,
    /// K tiles [stages][block_n, head_dim_qk].
    pub k: u32,
    /// Bytes of one K tile.
    pub k_stage: u32,
    /// V tiles [stages][block_n, head_dim_v]; of a latent tile, the K tiles' first blocks of columns.
    pub v: u32,
    /// Bytes from one V tile to the next.
    pub v_stage: u32,
    /// Transposed V tiles [stages][head_dim_v, block_n], of 8-bit elements.
    pub vt: u32,
    /// Output tiles [consumers][64, head_dim_v / v_splits]: over the Q tiles if there is no room of their own.
    pub out: u32,
    /// mbarriers, 8 bytes each, in the order of the sm_90a pipeline.
    pub barriers: u32,
    /// A bit for each of [`MOST_PIECES`].
    pub spoilt: u32,
    /// Bytes altogether.
    pub bytes: u32,
}

impl TileShape {
    /// The tile of the sm_90a tier for a dtype and a pair of padded head dimensions.
    pub const fn sm90(dtype: DType, head_dim_qk: u32, head_dim_v: u32) -> Self {
        let (warpgroups, block_n, stages, v_splits) = match (dtype, head_dim_qk, head_dim_v) {
            (DType::E4m3, 64, 64) => (2, 128, 3, 1),
            (DType::E4m3, 128, 128) => (2, 128, 3, 1),
            (DType::E4m3, 256, 256) => (2, 64, 2, 1),
            (_, 64, 64) => (2, 160, 3, 1),
            (_, 96, 96) => (2, 128, 2, 1),
            (_, 128, 128) => (2, 128, 2, 1),
            (_, 192, 128) => (2, 128, 2, 1),
            (_, 192, 192) => (2, 112, 2, 1),
            (_, 256, 256) => (2, 80, 2, 1),
            (_, 64, 256) => (2, 96, 2, 1),
            (_, 64, 512) => (2, 64, 2, 2),
            (_, 512, 512) => (2, 64, 1, 2),
            _ => panic!("no tile for these head dimensions"),
        };
        let tile = Self {
            dtype,
            kv_dtype: dtype,
            block_m: WARPGROUP_ROWS * warpgroups / v_splits,
            block_n,
            head_dim_qk,
            head_dim_v,
            warps: 4 * warpgroups,
            stages,
            min_blocks: 1,
            v_splits,
            key_splits: 1,
            latent: false,
        };
        assert!(tile.hopper_plan().bytes <= SM90_SHARED_CAPACITY);
        assert!(dtype.bytes() != 1 || SCALE_ROWS.is_multiple_of(block_n));
        tile
    }

    /// The tile of the sm_90a tier's serving kernels: that of the dense ones, but with keys that divide the rows its producer copies at
    /// once, and fewer where functions of pairs want registers.
    pub const fn serving_sm90(dtype: DType, head_dim_qk: u32, head_dim_v: u32) -> Self {
        let dense = Self::sm90(dtype, head_dim_qk, head_dim_v);
        let tile = Self {
            block_n: match head_dim_v {
                0..=64 => 128,
                65..=128 => 112,
                _ => 64,
            },
            stages: 2,
            ..dense
        };
        assert!(tile.block_n.is_multiple_of(PRODUCER_ROWS));
        // A lane of a warp of the producer has each of the rows that the warp copies.
        assert!(tile.block_n / PRODUCER_ROWS * (PRODUCER_ROWS / 4) <= 32);
        assert!(tile.hopper_plan().bytes <= SM90_SHARED_CAPACITY);
        tile
    }

    /// The tile of the sm_90a tier's kernels for latent caches: head dimensions as those of [`latent`](Self::latent). Two warpgroups have the same
    /// rows, and half of the output's columns each: 128 registers. Two tiles of keys are all that there is room for.
    pub const fn latent_sm90(dtype: DType) -> Self {
        let tile = Self {
            block_n: 64,
            warps: 8,
            v_splits: 2,
            key_splits: 1,
            ..Self::latent(dtype, WARPGROUP_ROWS)
        };
        assert!(tile.m_frags() == 1);
        assert!(tile.block_n.is_multiple_of(PRODUCER_ROWS));
        assert!(tile.hopper_plan().bytes <= SM90_SHARED_CAPACITY);
        tile
    }

    /// Warpgroups that compute.
    pub const fn consumers(&self) -> u32 {
        self.warps / 4
    }

    /// Where things lie in shared memory, in the sm_90a tier.
    pub const fn hopper_plan(&self) -> HopperPlan {
        let es = self.dtype.bytes();
        let q_bytes = self.block_m * self.head_dim_qk * es;
        let k_stage = self.block_n * self.head_dim_qk * es;
        // A tile is cut into blocks of columns: the first ones of keys are a tile of values.
        let v_stage = if self.latent {
            k_stage
        } else {
            self.block_n * self.head_dim_v * es
        };
        let out_bytes = self.block_m * self.head_dim_v * 2;
        let transposed = if es == 1 { self.stages } else { 0 };
        // Q: one full and one empty barrier; K, V, transposed V: one of each a stage.
        let rings = if self.latent { 1 } else { 2 };
        let barrier_bytes = (2 + 2 * rings * self.stages + 2 * transposed) * 8;
        let small = barrier_bytes + MOST_PIECES / 8;
        let k = q_bytes;
        let k_end = k + self.stages * k_stage;
        let (v, vt) = if self.latent {
            (k, k_end)
        } else {
            (k_end, k_end + self.stages * v_stage)
        };
        let v_end = vt + transposed * v_stage;
        let own_room = v_end + out_bytes + small <= SM90_SHARED_CAPACITY;
        let (out, end) = if own_room {
            (v_end, v_end + out_bytes)
        } else {
            assert!(out_bytes <= q_bytes);
            (0, v_end)
        };
        HopperPlan {
            q: 0,
            k,
            k_stage,
            v,
            v_stage,
            vt,
            out,
            barriers: end,
            spoilt: end + barrier_bytes,
            bytes: end + small,
        }
    }
}
