//! Tile shapes and the shared-memory plans that follow from them.

use crate::{serving::Sharing, variant::ScoreModKind};

/// Element type of q, k and v.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single precision; products are made of three tf32 products each.
    F32,
    /// 8-bit floating point with 4 exponent and 3 fraction bits, no infinities, largest number 448 (OCP FP8). With scales.
    E4m3,
}

impl DType {
    /// Every element type.
    pub const ALL: [Self; 4] = [Self::F16, Self::Bf16, Self::F32, Self::E4m3];

    /// Bytes of one element.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::E4m3 => 1,
        }
    }

    /// Name as in a variant's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::E4m3 => "e4m3",
        }
    }
}

/// Shared memory that one block may have on every GPU since Ampere (sm_86 and sm_89 are the tightest).
pub const SM80_SHARED_CAPACITY: u32 = 99 * 1024;

/// Shape of the work of one thread block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileShape {
    /// Element type of queries and output; of keys and values too, but where `kv_dtype` says otherwise.
    pub dtype: DType,
    /// Element type of keys and values in shared memory.
    pub kv_dtype: DType,
    /// Query rows of a block.
    pub block_m: u32,
    /// Key rows of a tile.
    pub block_n: u32,
    /// head_dim_qk, padded.
    pub head_dim_qk: u32,
    /// head_dim_v, padded.
    pub head_dim_v: u32,
    /// Warps of a block that compute. Each owns block_m * v_splits / warps query rows.
    pub warps: u32,
    /// Tiles of K and of V in shared memory: one is computed on while the others arrive.
    pub stages: u32,
    /// Blocks that should be resident on one multiprocessor; ptxas limits registers to fit.
    pub min_blocks: u32,
    /// Warpgroups that share query rows, each with its part of v's columns (sm_90a tier; else 1).
    pub v_splits: u32,
    /// Warps that share query rows, each with its part of a tile's keys (decode and latent; else 1).
    pub key_splits: u32,
    /// Values are the first head_dim_v columns of keys (MLA's latent cache), and lie in shared memory once. Warps that share query rows
    /// have each its part of the columns of the output, over all keys of the tile. Those of the sm_80 tier have each its part of the keys
    /// for the scores, and probabilities pass through shared memory; those of the sm_90a tier compute all scores.
    pub latent: bool,
}

/// Byte offsets into a block's shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedPlan {
    /// Q tile [block_m, head_dim_qk]; the epilogue stages the output in the same rows.
    pub q: u32,
    /// K tiles [stages][block_n, head_dim_qk].
    pub k: u32,
    /// Bytes of one K tile.
    pub k_stage: u32,
    /// V tiles [stages][block_n, head_dim_v]; of a latent tile, the K tiles.
    pub v: u32,
    /// Bytes of one V tile.
    pub v_stage: u32,
    /// Of a latent tile: probabilities [block_m, block_n].
    pub p: u32,
    /// Of a latent tile: a number for each row and part of the keys, f32 [key_splits, block_m].
    pub rows: u32,
    /// Bytes altogether.
    pub bytes: u32,
}

impl TileShape {
    /// The tile for a dtype, a pair of padded head dimensions and what happens to scores.
    ///
    /// The 16-bit tiles give each warp 32 query rows as long as the output fits in registers
    /// (head_dim_v <= 128), so that each K and V fragment read from shared memory feeds two matrix
    /// products; beyond that, 16. The keys of a tile are as many as the registers left can hold scores
    /// of without spilling, fewer where capping needs registers too. Everything fits in
    /// [`SM80_SHARED_CAPACITY`].
    pub const fn sm80(
        dtype: DType,
        head_dim_qk: u32,
        head_dim_v: u32,
        score_mod: ScoreModKind,
    ) -> Self {
        let caps = !matches!(score_mod, ScoreModKind::None);
        let (block_m, block_n, warps, min_blocks) = match (dtype, head_dim_qk, head_dim_v) {
            (DType::F32, 256, _) => (32, 16, 2, 1),
            (DType::F32, ..) => (64, 32, 4, 1),
            (_, _, 0..=64) => (128, 64, 4, 2),
            (_, 0..=96, 0..=96) if caps => (128, 32, 4, 2),
            (_, 0..=128, 0..=128) if caps => (64, 64, 4, 2),
            (_, 0..=96, 0..=96) => (128, 64, 4, 2),
            (_, 0..=128, 0..=128) => (128, 48, 4, 2),
            (_, _, 0..=128) => (128, 32, 4, 2),
            (_, _, 0..=192) => (128, 32, 8, 1),
            (_, _, _) => (64, 32, 4, 2),
        };
        let tile = Self {
            dtype,
            kv_dtype: dtype,
            block_m,
            block_n,
            head_dim_qk,
            head_dim_v,
            warps,
            stages: 2,
            min_blocks,
            v_splits: 1,
            key_splits: 1,
            latent: false,
        };
        assert!(tile.shared().bytes <= SM80_SHARED_CAPACITY);
        assert!(tile.block_m.is_multiple_of(16 * tile.warps));
        assert!(tile.block_n.is_multiple_of(16));
        // Each warp's epilogue stages its rows of the output in the room of its own queries.
        assert!(tile.head_dim_v <= tile.head_dim_qk);
        tile
    }

    /// The tile of a serving kernel.
    ///
    /// Where warps share the rows, they are the dense kernels' tiles that leave registers for capping. Where they share the keys,
    /// each has 16 of a tile: fewer would not fill the tensor core's step, and more only lengthen the rest at the end. Those of
    /// [`Sharing::Columns`] are [`latent`](Self::latent), here of 16 rows.
    pub const fn serving(
        sharing: Sharing,
        dtype: DType,
        kv_dtype: DType,
        head_dim_qk: u32,
        head_dim_v: u32,
    ) -> Self {
        let rows = Self::sm80(
            dtype,
            head_dim_qk,
            head_dim_v,
            ScoreModKind::OptionalSoftcap,
        );
        let is_e4m3 = matches!(kv_dtype, DType::E4m3);
        let warps = if head_dim_qk <= 128 { 4 } else { 2 };
        let mut tile = match sharing {
            // Masks, pages and packed heads need a few registers more than the dense kernel has left with 64 keys; so do 8-bit keys and
            // values, of which 128 threads copy 32 rows of 64 bytes at once.
            Sharing::Rows if rows.block_n == 64 && (rows.head_dim_v <= 64 || is_e4m3) => Self {
                block_n: if is_e4m3 && rows.head_dim_v <= 64 {
                    32
                } else {
                    48
                },
                ..rows
            },
            Sharing::Rows if rows.head_dim_qk > rows.head_dim_v => Self {
                block_m: 64,
                ..rows
            },
            Sharing::Rows => rows,
            Sharing::Columns => return Self::latent(dtype, 16),
            Sharing::Keys => Self {
                block_m: 16,
                block_n: 16 * warps,
                warps,
                min_blocks: 2,
                key_splits: warps,
                ..rows
            },
        };
        tile.kv_dtype = kv_dtype;
        assert!(tile.shared().bytes <= SM80_SHARED_CAPACITY);
        assert!(tile.m_frags() * 16 * tile.warps == tile.block_m * tile.key_splits);
        tile
    }

    /// The tile of a serving kernel for a latent cache: head dimensions 576 and 512 (DeepSeek-V2, arXiv:2405.04434, section 2.1), and so many
    /// rows.
    ///
    /// 16 rows fit in the shared memory of every GPU. 64 take Hopper's, and each key that is read feeds four times as many products:
    /// with 64 heads or more the tensor cores are the limit, not memory. The output of 32 rows is spread over four warps: 128 registers.
    pub const fn latent(dtype: DType, block_m: u32) -> Self {
        let (block_n, row_groups) = match block_m {
            16 => (32, 1),
            _ => (64, 2),
        };
        let tile = Self {
            dtype,
            kv_dtype: dtype,
            block_m,
            block_n,
            head_dim_qk: 576,
            head_dim_v: 512,
            warps: 4 * row_groups,
            stages: 2,
            min_blocks: if block_m == 16 { 2 } else { 1 },
            v_splits: 1,
            key_splits: 4,
            latent: true,
        };
        assert!(block_m != 16 || tile.shared().bytes <= SM80_SHARED_CAPACITY);
        assert!(tile.shared().bytes <= crate::hopper::SM90_SHARED_CAPACITY);
        assert!(tile.m_frags() * 16 * tile.warps == tile.block_m * tile.key_splits);
        tile
    }

    /// Keys of a tile whose scores one warp computes.
    pub const fn warp_keys(&self) -> u32 {
        self.block_n / self.key_splits
    }

    /// Keys of a tile whose values one warp weighs.
    pub const fn weighed_keys(&self) -> u32 {
        if self.latent {
            self.block_n
        } else {
            self.warp_keys()
        }
    }

    /// Columns of the output, padded, that one warp has.
    pub const fn warp_columns(&self) -> u32 {
        if self.latent {
            self.head_dim_v / self.key_splits / self.v_splits
        } else {
            self.head_dim_v / self.v_splits
        }
    }

    /// Threads of a block.
    pub const fn threads(&self) -> u32 {
        self.warps * 32
    }

    /// Fragments of 16 query rows that one warp owns.
    pub const fn m_frags(&self) -> u32 {
        self.block_m * self.key_splits * self.v_splits / (16 * self.warps)
    }

    /// Where things lie in shared memory.
    pub const fn shared(&self) -> SharedPlan {
        let kv_bytes = self.kv_dtype.bytes();
        let q_bytes = self.block_m * self.head_dim_qk * self.dtype.bytes();
        let k_stage = self.block_n * self.head_dim_qk * kv_bytes;
        let v_stage = self.block_n * self.head_dim_v * kv_bytes;
        let k = q_bytes;
        let after_k = k + self.stages * k_stage;
        if self.latent {
            let p_bytes = self.block_m * self.block_n * self.dtype.bytes();
            return SharedPlan {
                q: 0,
                k,
                k_stage,
                v: k,
                v_stage: k_stage,
                p: after_k,
                rows: after_k + p_bytes,
                bytes: after_k + p_bytes + self.key_splits * self.block_m * 4,
            };
        }
        let bytes = after_k + self.stages * v_stage;
        let joined = k + self.join_bytes();
        let bytes = if joined > bytes { joined } else { bytes };
        SharedPlan {
            q: 0,
            k,
            k_stage,
            v: after_k,
            v_stage,
            p: bytes,
            rows: bytes,
            bytes,
        }
    }

    /// Bytes of a row of a warp's outputs, f32, where warps that share rows join them: 32 more than the row has, so that eight rows'
    /// pairs lie in different banks.
    pub const fn join_row_bytes(&self) -> u32 {
        self.head_dim_v * 4 + 32
    }

    /// Bytes of the outputs of all warps that share rows, in the room of keys and values.
    const fn join_bytes(&self) -> u32 {
        match self.key_splits {
            1 => 0,
            warps => warps * self.block_m * self.join_row_bytes(),
        }
    }
}
