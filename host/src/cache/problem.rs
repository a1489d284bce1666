//! What is to be moved, as plain data.

use flashtile_abi::DType;

use crate::{
    layout::TensorLayout,
    serving::{CacheLayout, CacheScales, PageTable},
};

/// Keys or values, outside of the cache and in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// Outside: [batch, rows, heads_kv, head_dim]; sequences that follow each other are one batch.
    pub tensor: TensorLayout,
    /// In the cache: [blocks, rows, heads_kv, head_dim].
    pub cache: CacheLayout,
}

/// Which row of the cache is a token's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Each token has a slot: `i64` by token. Slot `s` is row `s % rows` of block `s / rows`, of blocks of so many rows; -1 is none
    /// (padding). (`slot_mapping`)
    Slots,
    /// They follow from lengths of sequences.
    Sequences(Sequences),
}

/// Sequences whose tokens have successive rows of the cache. Token `i` of sequence `b` has row `first[b] + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sequences {
    /// How many there are.
    pub batch: usize,
    /// Whether there are `starts`, `i32[batch + 1]`: sequence `b` has the tokens `starts[b]..starts[b + 1]` of the one batch of the
    /// tensors; from 0, never decreasing. Else each sequence is a batch of them. (`cu_seqlens`)
    pub starts: bool,
    /// Whether there is `used`, `i32[batch]`: only so many tokens of each sequence count. The others are left alone. (`seqused`)
    pub used: bool,
    /// Whether there is `first`, `i32[batch]`: the row of the first token. When rows are appended, the tokens that the cache holds
    /// already. Else it is 0.
    pub first: bool,
    /// Where the rows are, if they are in pages. Else block `b` of the cache is sequence `b`'s.
    pub pages: Option<PageTable>,
}

/// Type of numbers on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IndexType {
    /// i32.
    I32,
    /// i64.
    I64,
}

impl IndexType {
    /// Bytes of a number.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// Which elements of a row are a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotaryPairs {
    /// `2 i` and `2 i + 1`: GPT-J's.
    Interleaved,
    /// `i` and `i + rotary_dim / 2`: GPT-NeoX's, Llama's.
    Halves,
}

/// Element of the tables of cosines and sines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TableType {
    /// That of the keys.
    Same,
    /// f32.
    F32,
}

impl TableType {
    /// The element type beside such keys.
    pub fn of(self, keys: DType) -> DType {
        match self {
            Self::Same => keys,
            Self::F32 => DType::F32,
        }
    }
}

/// Tables of cosines and sines, [positions, rotary_dim / 2] each, in one layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RotaryTable {
    /// What an element is.
    pub element: TableType,
    /// Positions. A token at another one is left alone: its key, value and query.
    pub positions: usize,
    /// Elements from one position to the next. (`rotary_dim` where sines follow the cosines of a position.)
    pub stride: i64,
}

/// Queries that are turned as the keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QueryRows {
    /// Queries [batch, rows, heads_q, head_dim], batch and rows being those of the keys.
    pub q: TensorLayout,
    /// Where they go: the same shape. The same layout at the same address, or memory that does not overlap.
    pub out: TensorLayout,
}

/// Rotary position embedding (arXiv:2104.09864): a pair (x, y) of a row at position `p` becomes (x cos - y sin, y cos + x sin), `cos` and
/// `sin` being the pair's elements of the tables' row `p`. Computed in f32, rounded once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rotary {
    /// Elements that are turned: the first so many of each row, an even number. The others are copied.
    pub rotary_dim: usize,
    /// Which of them are pairs.
    pub pairs: RotaryPairs,
    /// The tables.
    pub table: RotaryTable,
    /// Whether there are positions, by token. Else a token's position is its row in its sequence; with slots, they are needed.
    pub positions: Option<IndexType>,
    /// Queries, if they are turned too.
    pub queries: Option<QueryRows>,
}

/// New keys and values that go into a cache. A token whose row the cache does not have is left alone. Two tokens with the same row: one of
/// them, or a mixture of both, is found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AppendProblem {
    /// Type of the elements: f16 or bf16.
    pub dtype: DType,
    /// Type of the caches' elements: the same, or e4m3. What goes into such a cache is divided by its scale and rounded to the nearest, ties
    /// to even; what is larger than 448 becomes that (vLLM's `kv_cache_dtype="fp8"`). Keys that are turned are rounded but this once.
    pub kv_dtype: DType,
    /// How many scales keys and values have. Only e4m3 caches have any. With slots, sequences have none of their own.
    pub kv_scales: CacheScales,
    /// Keys.
    pub k: Rows,
    /// Values: as many rows and heads as keys, in as many blocks. None where one cache has all (as with MLA).
    pub v: Option<Rows>,
    /// Where they go.
    pub place: Place,
    /// How keys, and queries, are turned.
    pub rotary: Option<Rotary>,
}

/// Keys and values that are read from a cache. A token whose row the cache does not have is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GatherProblem {
    /// Type of the elements: f16 or bf16.
    pub dtype: DType,
    /// Type of the caches' elements: the same, or e4m3. Those become the numbers that they mean, times their scale.
    pub kv_dtype: DType,
    /// As [`AppendProblem::kv_scales`].
    pub kv_scales: CacheScales,
    /// Keys.
    pub k: Rows,
    /// Values: as many rows and heads as keys, in as many blocks.
    pub v: Option<Rows>,
    /// Where they are.
    pub place: Place,
}
