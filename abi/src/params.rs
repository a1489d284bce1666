//! The parameter block that every attention kernel takes by value.

use crate::mask::Band;

/// A tensor [batch, seqlen, heads, head_dim] in device memory. The last dimension is contiguous,
/// the other strides are arbitrary (zero and negative ones included), in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TensorView {
    /// Device address of element [0, 0, 0, 0].
    pub ptr: u64,
    /// Bytes from one batch to the next.
    pub batch_stride: i64,
    /// Bytes from one row (token) to the next.
    pub row_stride: i64,
    /// Bytes from one head to the next.
    pub head_stride: i64,
}

/// Log-sum-exp [batch, heads_q, seqlen_q] in device memory: f32, natural logarithm, rows contiguous.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LseView {
    /// Device address, or 0 if it is not wanted.
    pub ptr: u64,
    /// Bytes from one batch to the next.
    pub batch_stride: i64,
    /// Bytes from one head to the next.
    pub head_stride: i64,
}

/// What one launch of an attention kernel computes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct AttentionParams {
    /// Queries [batch, seqlen_q, heads_q, head_dim_qk].
    pub q: TensorView,
    /// Keys [batch, seqlen_k, heads_kv, head_dim_qk].
    pub k: TensorView,
    /// Values [batch, seqlen_k, heads_kv, head_dim_v].
    pub v: TensorView,
    /// Output [batch, seqlen_q, heads_q, head_dim_v]; f32 if [`flags::OUT_F32`] is set, else the inputs' dtype.
    pub out: TensorView,
    /// Log-sum-exp of the scaled, capped and masked scores.
    pub lse: LseView,
    /// Which keys each query attends; holds seqlen_k.
    pub band: Band,
    /// Queries per sequence, at least 1 (the host answers empty problems itself).
    pub seqlen_q: i32,
    /// Blocks of `block_m` queries: ceil(seqlen_q / block_m). Grid = m_blocks * heads_q * batch.
    pub m_blocks: u32,
    /// Query heads.
    pub heads_q: u32,
    /// Query heads that share one key/value head: heads_q / heads_kv.
    pub q_per_kv: u32,
    /// Elements of a query or key that exist; the tile pads the rest with zeros.
    pub head_dim_qk: u32,
    /// Elements of a value that exist; the tile pads the rest with zeros.
    pub head_dim_v: u32,
    /// Factor from (capped) score to the exponent of two: softmax_scale * log2(e), or
    /// softcap * log2(e) where scores are capped. Positive and finite.
    pub exponent_scale: f32,
    /// softmax_scale / softcap; a score becomes tanh(score * cap_scale). 0 if scores are not capped.
    pub cap_scale: f32,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// Bits of [`AttentionParams::flags`].
pub mod flags {
    /// q's address and strides are multiples of 16 bytes: rows are read with 16-byte asynchronous copies.
    pub const Q_ALIGNED: u32 = 1 << 0;
    /// As [`Q_ALIGNED`], for k.
    pub const K_ALIGNED: u32 = 1 << 1;
    /// As [`Q_ALIGNED`], for v.
    pub const V_ALIGNED: u32 = 1 << 2;
    /// out's address and strides are multiples of 16 bytes.
    pub const OUT_ALIGNED: u32 = 1 << 3;
    /// out is f32 whatever the inputs are.
    pub const OUT_F32: u32 = 1 << 4;
    /// out is f16, where the inputs are 8-bit; else it is bf16.
    pub const OUT_F16: u32 = 1 << 6;
    /// softmax_scale is negative: the kernel negates q, and `exponent_scale` is made of its magnitude.
    pub const NEGATE_Q: u32 = 1 << 5;
    /// softcap is more than [`WIDEST_QUICK_CAP`](super::WIDEST_QUICK_CAP).
    pub const WIDE_CAP: u32 = 1 << 7;
}

/// The largest softcap of which fused kernels with 16-bit elements compute tanh the quick way, whose error is 6 * 2^-23, absolute: times
/// this cap it is less than 2^-12, what rounding to f16 can do to a probability. With 8-bit elements, the largest at all.
pub const WIDEST_QUICK_CAP: f32 = 256.0;

/// A tensor map: what the copy engine knows of a tensor, as `cuTensorMapEncodeTiled` writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TensorMap(pub [u64; 16]);

/// Scales of a tensor of 8-bit elements, f32 in device memory: element times scale is the number that is meant. Scales of
/// successive blocks of rows are contiguous.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ScaleView {
    /// Device address, or 0 if all scales are 1.
    pub ptr: u64,
    /// Bytes from one batch to the next.
    pub batch_stride: i64,
    /// Bytes from one head to the next.
    pub head_stride: i64,
    /// Row `r` has the scale of block `r >> shift`. 31: one scale a head.
    pub shift: u32,
    /// Unused.
    pub padding: u32,
}

/// How the blocks of a launch share its work. A piece of work is one tile of rows of one group of heads; pieces have
/// numbers, and each block takes every so manyth of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Schedule {
    /// Pieces of work, each for a whole cluster.
    pub pieces: u32,
    /// Most pieces of one cluster: pieces / clusters, rounded up; at most
    /// [`MOST_PIECES`](crate::hopper::MOST_PIECES).
    pub rounds: u32,
    /// Groups of heads, over all batches.
    pub groups: u32,
    /// Groups that are worked on together, so that the keys and values in use fit in the L2 cache.
    pub section: u32,
    /// Query heads that share the rows of a tile, as a power of two: row `r` is query `r >> pack` of head `r % 2^pack` of
    /// its group. (PackGQA)
    pub pack: u32,
    /// Packed rows of a group: seqlen_q * 2^pack.
    pub rows: i32,
    /// Unused.
    pub padding: u32,
    /// Blocks of a cluster, 1 or 2. Two take neighbouring tiles of one group, and share its keys and values.
    pub cluster: u32,
}

/// What one launch of a kernel of the sm_90a tier computes: the only parameter, passed by value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct HopperParams {
    /// Queries as [head_dim_qk, 2^pack heads, seqlen_q, groups, batch], a box being 64 packed rows.
    pub q_map: TensorMap,
    /// Keys as [head_dim_qk, 1, seqlen_k, heads_kv, batch], a box being a tile's rows (or a block's part of them).
    pub k_map: TensorMap,
    /// Values, as the keys.
    pub v_map: TensorMap,
    /// Output, as the queries. Unused if it is f32.
    pub out_map: TensorMap,
    /// Scales of q, by query head. For 8-bit elements; else unused. So the next two.
    pub q_scale: ScaleView,
    /// Scales of k, by key/value head.
    pub k_scale: ScaleView,
    /// Scales of v, by key/value head.
    pub v_scale: ScaleView,
    /// Everything else. `m_blocks` counts tiles of packed rows.
    pub attention: AttentionParams,
    /// Who does what.
    pub schedule: Schedule,
}

impl HopperParams {
    /// The parameters as the bytes a launch passes.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: the struct is repr(C), made of integers and floats only, without padding (the
        // test below adds the fields up), and the slice borrows self.
        unsafe {
            core::slice::from_raw_parts((self as *const Self).cast::<u8>(), size_of::<Self>())
        }
    }
}

impl AttentionParams {
    /// The block as the bytes a launch passes.
    pub fn as_bytes(&self) -> &[u8] {
        // SAFETY: the struct is repr(C), made of integers and floats only, without padding (the
        // test below adds the fields up), and the slice borrows self.
        unsafe {
            core::slice::from_raw_parts((self as *const Self).cast::<u8>(), size_of::<Self>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_block_has_no_padding() {
        let views = 4 * size_of::<TensorView>() + size_of::<LseView>();
        let words = size_of::<Band>() + 9 * 4;
        assert_eq!(size_of::<AttentionParams>(), views + words);
        assert_eq!(align_of::<AttentionParams>(), 8);
        let parts = 4 * size_of::<TensorMap>()
            + 3 * size_of::<ScaleView>()
            + size_of::<AttentionParams>()
            + size_of::<Schedule>();
        assert_eq!(size_of::<HopperParams>(), parts);
    }
}
