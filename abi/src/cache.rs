//! Rows in and out of caches of keys and values: appending, gathering, and copies of whole blocks.

use crate::{
    divide::Divisor,
    params::{ScaleView, TensorView},
    serving::{CacheView, Lengths, Pages},
    tile::DType,
    variant::{Arch, Entry},
};

/// Rotary position embedding (arXiv:2104.09864): pair `i` of a row is turned by the angle whose cosine and sine are element `i` of a
/// table's row for the token's position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RotaryView {
    /// Device address of the cosines [table_rows, pairs]: f32 with [`flags::TABLE_F32`], else of the kernel's type.
    pub cos: u64,
    /// Device address of the sines, as the cosines.
    pub sin: u64,
    /// Bytes from one position to the next.
    pub row_stride: i64,
    /// Device address of the tokens' positions, by token: i64 with [`flags::POSITIONS_I64`], else i32. 0: a token's position is its row
    /// in its sequence's cache.
    pub positions: u64,
    /// Positions that the tables have. A token at another one is skipped.
    pub table_rows: u32,
    /// Pairs of a row: half of the elements that are turned. 0: none are.
    pub pairs: u32,
}

/// What one launch of an appending or gathering kernel moves: the only parameter, passed by value.
///
/// The numbers on the device may be anything: a token whose row is not in the cache is skipped by an appending kernel, and is zeros to a
/// gathering one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RowsParams {
    /// Keys outside of the cache [batch, rows, heads_kv, head_dim_qk]; sequences that follow each other are one batch.
    pub k: TensorView,
    /// Values [batch, rows, heads_kv, head_dim_v].
    pub v: TensorView,
    /// Queries that are turned with the keys [batch, rows, heads_q, head_dim_qk]. Not of gathering kernels; so the next one.
    pub q: TensorView,
    /// Where they go: as the queries, or the same memory.
    pub q_out: TensorView,
    /// Keys in the cache.
    pub k_cache: CacheView,
    /// Values in the cache.
    pub v_cache: CacheView,
    /// Which tokens are whose; unused with slots. `longest` is unused.
    pub lengths: Lengths,
    /// Pages of the cache. Without a table, block `b` is sequence `b`'s. `page` and `blocks` are the cache's in any case.
    pub pages: Pages,
    /// Device address of `i32[batch]`: row of the sequence's cache that its first token has. 0: row 0.
    pub first: u64,
    /// Device address of `i64` by token: row `slot % page` of block `slot / page`; negative: none. 0: rows follow from `lengths`.
    pub slots: u64,
    /// Scales of the keys' cache, by sequence and key head: of e4m3 caches. `shift` is unused.
    pub k_scale: ScaleView,
    /// Scales of the values' cache, as those of keys.
    pub v_scale: ScaleView,
    /// Of appending kernels.
    pub rotary: RotaryView,
    /// Rows of one batch of the tensors.
    pub rows: Divisor,
    /// Blocks of one token: enough for a thread for each unit. Grid = parts * tokens.
    pub parts: Divisor,
    /// Units of one head of keys or queries: see [`row_units`].
    pub key_units: Divisor,
    /// Units of one head of values.
    pub value_units: Divisor,
    /// Query heads; 0 if queries are not wanted.
    pub heads_q: u32,
    /// Key heads.
    pub heads_kv: u32,
    /// Value heads: as many, or 0 if values are not wanted.
    pub heads_v: u32,
    /// Elements of a key or query.
    pub head_dim_qk: u32,
    /// Elements of a value.
    pub head_dim_v: u32,
    /// Sequences.
    pub batch: u32,
    /// Rows of the cache that a sequence can have; with slots, that there are.
    pub capacity: u32,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// Bits of [`RowsParams::flags`] and [`BlocksParams::flags`].
pub mod flags {
    /// Rows of k go in whole pieces of 16 bytes: address, strides and the bytes of a row are multiples of 16, elements follow each other,
    /// and no unit begins inside a piece.
    pub const K_PIECES: u32 = 1 << 0;
    /// As [`K_PIECES`], of v.
    pub const V_PIECES: u32 = 1 << 1;
    /// As [`K_PIECES`], of q.
    pub const Q_PIECES: u32 = 1 << 2;
    /// As [`K_PIECES`], of q_out.
    pub const Q_OUT_PIECES: u32 = 1 << 3;
    /// As [`K_PIECES`], of the keys' cache; of e4m3, in pieces of 8 bytes.
    pub const K_CACHE_PIECES: u32 = 1 << 4;
    /// As [`K_CACHE_PIECES`], of the values' cache.
    pub const V_CACHE_PIECES: u32 = 1 << 5;
    /// As [`K_PIECES`], of both tables.
    pub const TABLE_PIECES: u32 = 1 << 6;
    /// The tables are f32.
    pub const TABLE_F32: u32 = 1 << 7;
    /// Positions are i64.
    pub const POSITIONS_I64: u32 = 1 << 8;
    /// Pairs are elements 2i and 2i + 1 (GPT-J); else i and i + pairs (GPT-NeoX).
    pub const INTERLEAVED: u32 = 1 << 9;
    /// Blocks are copied in pieces of 16 bytes: addresses, strides and the bytes of a block are multiples of 16.
    pub const BLOCK_PIECES: u32 = 1 << 10;
    /// Numbers of blocks are i64; else i32.
    pub const PAIRS_I64: u32 = 1 << 11;
}

/// Elements of a unit of a row that is not turned, and pairs of one that is.
pub const UNIT: u32 = 8;

/// Units of a row of `head_dim` elements, of which the first `pairs` pairs are turned: those of the pairs first. A thread has one.
pub const fn row_units(head_dim: u32, pairs: u32) -> u32 {
    pairs.div_ceil(UNIT) + (head_dim - 2 * pairs).div_ceil(UNIT)
}

/// Addresses of two caches, of which blocks of one are copied into the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CachePair {
    /// Device address of block 0 of the cache that is read.
    pub src: u64,
    /// Of the cache that is written. It may be the same.
    pub dst: u64,
}

/// Caches of one launch of a copying kernel, at most.
pub const MAX_CACHES: usize = 128;

/// Bytes of a block of a cache that one thread block copies.
pub const COPY_BYTES: u32 = THREADS * 16 * 4;

/// What one launch of a copying kernel moves: the only parameter, passed by value. A pair of numbers of which one is no block is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct BlocksParams {
    /// Device address of [count, 2] numbers of blocks: which to read, which to write.
    pub pairs: u64,
    /// Bytes of a block, which follow each other.
    pub block_bytes: u64,
    /// Bytes from one block to the next, where they are read.
    pub src_stride: i64,
    /// The same where they are written.
    pub dst_stride: i64,
    /// Blocks of a cache that is read.
    pub src_blocks: u32,
    /// Blocks of a cache that is written.
    pub dst_blocks: u32,
    /// Pairs of numbers.
    pub count: Divisor,
    /// Thread blocks of a block of a cache, each with [`COPY_BYTES`] of it. Grid = parts * count * caches.
    pub parts: Divisor,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Unused.
    pub padding: u32,
    /// The caches, as many as the grid says.
    pub caches: [CachePair; MAX_CACHES],
}

impl Default for BlocksParams {
    fn default() -> Self {
        Self {
            pairs: 0,
            block_bytes: 0,
            src_stride: 0,
            dst_stride: 0,
            src_blocks: 0,
            dst_blocks: 0,
            count: Divisor::default(),
            parts: Divisor::default(),
            flags: 0,
            padding: 0,
            caches: [CachePair::default(); MAX_CACHES],
        }
    }
}

crate::serving::as_bytes! { RowsParams BlocksParams }

/// What a kernel does with caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheWork {
    /// Writes new rows of keys and values, and turns keys and queries.
    Append,
    /// Reads rows of keys and values.
    Gather,
    /// Copies blocks.
    CopyBlocks,
}

impl CacheWork {
    /// Name as in a variant's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Gather => "gather",
            Self::CopyBlocks => "copy_blocks",
        }
    }
}

/// A kernel for caches. Its [`Entry`] is what it dereferences to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheVariant {
    /// The entry point.
    pub entry: Entry,
    /// What it does.
    pub work: CacheWork,
    /// Type of the elements, where it computes with them.
    pub dtype: Option<DType>,
    /// Type of the caches' elements, where it is another one.
    pub kv: Option<DType>,
}

impl core::ops::Deref for CacheVariant {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// Threads of a block.
pub const THREADS: u32 = 128;

/// Calls `$callback! { (name Work DType? DType of the cache?) ... }`: the kernels for caches. Those without a type move elements of 16
/// bits, or bytes.
#[macro_export]
macro_rules! for_each_cache_variant {
    ($callback:ident) => {
        $callback! {
            (append_f16_sm80 Append F16)
            (append_bf16_sm80 Append Bf16)
            (append_f16_e4m3_sm80 Append F16 E4m3)
            (append_bf16_e4m3_sm80 Append Bf16 E4m3)
            (gather_sm80 Gather)
            (gather_f16_e4m3_sm80 Gather F16 E4m3)
            (gather_bf16_e4m3_sm80 Gather Bf16 E4m3)
            (copy_blocks_sm80 CopyBlocks)
        }
    };
}

macro_rules! dtype {
    () => {
        None
    };
    ($dtype:ident) => {
        Some(DType::$dtype)
    };
}
macro_rules! table {
    ($(($name:ident $work:ident $($dtype:ident $($kv:ident)?)?))*) => {
        const VARIANTS: &[CacheVariant] = &[$(CacheVariant {
            entry: Entry {
                name: stringify!($name),
                arch: Arch::Sm80,
                threads: THREADS,
                min_blocks: 8,
                shared_bytes: 0,
            },
            work: CacheWork::$work,
            dtype: dtype!($($dtype)?),
            kv: dtype!($($($kv)?)?),
        }),*];
    };
}
for_each_cache_variant!(table);

/// Every kernel for caches.
pub const fn cache_variants() -> &'static [CacheVariant] {
    VARIANTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_blocks_have_no_padding() {
        let divisor = size_of::<Divisor>();
        assert_eq!(
            size_of::<RowsParams>(),
            4 * size_of::<TensorView>()
                + 2 * size_of::<CacheView>()
                + size_of::<Lengths>()
                + size_of::<Pages>()
                + 2 * 8
                + 2 * size_of::<ScaleView>()
                + (4 * 8 + 2 * 4)
                + 4 * divisor
                + 8 * 4
        );
        assert_eq!(
            size_of::<BlocksParams>(),
            4 * 8 + 4 * 4 + 2 * divisor + MAX_CACHES * 16
        );
        // What every driver takes.
        assert!(size_of::<BlocksParams>() <= 4096);
    }

    #[test]
    fn a_name_says_what_its_variant_is() {
        for variant in cache_variants() {
            let [dtype, kv] = [variant.dtype, variant.kv].map(|it| it.map_or("", DType::as_str));
            let parts = [variant.work.as_str(), dtype, kv, "sm80"];
            let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            assert_eq!(variant.name, parts.join("_"));
        }
    }

    #[test]
    fn units_cover_a_row() {
        for (dim, pairs) in (1u32..70).flat_map(|dim| (0..=dim / 2).map(move |pairs| (dim, pairs)))
        {
            let turned = pairs.div_ceil(UNIT);
            let rest = row_units(dim, pairs) - turned;
            assert!(rest * UNIT >= dim - 2 * pairs && (rest == 0) == (dim == 2 * pairs));
        }
    }
}
