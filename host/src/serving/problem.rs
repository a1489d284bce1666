//! What is to be computed, as plain data.

use flashtile_abi::DType;

use crate::{
    layout::TensorLayout,
    problem::{CausalAlignment, OutDType, Window},
};

/// Shape and strides of keys or values, [blocks, rows, heads, head_dim]. What a block is depends on the problem: a page, a sequence's
/// part of a cache, or all there is, with the sequences one after the other.
///
/// Strides count elements. Element `d` of a row is at `(d / x) * chunk_stride + (d % x) * element_stride`, `x` being the elements of 16
/// bytes: 8 of f16 and bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheLayout {
    /// Blocks, rows of a block, heads, head_dim.
    pub shape: [usize; 4],
    /// From one block, row and head to the next.
    pub strides: [i64; 3],
    /// From one 16-byte piece of a row to the next.
    pub chunk_stride: i64,
    /// From one element of a piece to the next.
    pub element_stride: i64,
}

/// How long sequences are and where they lie: what the device holds of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SequenceLengths {
    /// Whether there are `starts`, `i32[batch + 1]`: sequence `b` has the tokens `starts[b]..starts[b + 1]` of block 0 of its tensor;
    /// of keys in pages only the difference counts. From 0, never decreasing. (`cu_seqlens`)
    pub starts: bool,
    /// Whether there is `used`, `i32[batch]`: only so many tokens of each sequence count. (`seqused`)
    pub used: bool,
    /// The most tokens of a sequence: what the launch makes room for. Longer sequences are an error.
    pub longest: usize,
}

/// A table of pages, `i32` or `u32` `[batch, entries]`: row `j` of a sequence is row `j % page` of block `table[b, j / page]` of keys and
/// values, a page being as long as their blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageTable {
    /// Entries of a sequence.
    pub entries: usize,
    /// Entries from one sequence and from one entry to the next.
    pub strides: [i64; 2],
}

/// A function of pairs of a query and a key, [batch, heads_q, rows, keys], rows and keys counted from the start of their sequences:
/// each dimension is either that long or 1, which stands for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairLayout<T> {
    /// What an element is.
    pub element: T,
    /// Batch or 1, heads_q or 1, the longest sequence of queries or 1, the longest of keys or 1. Of bits, the last counts bits, and is
    /// not 1 for more than one key.
    pub shape: [usize; 4],
    /// Elements from one to the next in each dimension; of bits, words of 32 keys, the last being 1.
    pub strides: [i64; 4],
}

/// Element of a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BiasType {
    /// That of the queries.
    Same,
    /// f32.
    F32,
}

/// Element of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskType {
    /// A byte: 0 hides the key.
    Byte,
    /// A bit of a u32: key `j` is bit `j % 32` of word `j / 32`; 0 hides the key.
    Bit,
}

/// How many blocks share the keys of a tile of queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Splits {
    /// As many as fill the device, by the problem's sizes.
    #[default]
    Auto,
    /// One: results do not depend on what else is in the batch, nor on the device.
    One,
    /// One for every so many keys (rounded up to whole tiles): as [`Splits::One`], and long sequences still have many.
    Keys(usize),
}

/// One attention problem of an inference engine: for each sequence, `out = softmax(mask(cap(scale * q k^T) + bias)) v`, and its
/// log-sum-exp.
///
/// Plain data: nothing is checked until it is planned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServingProblem {
    /// Element type of q, k and v: f16 or bf16.
    pub dtype: DType,
    /// Element type of out.
    pub out_dtype: OutDType,
    /// Sequences.
    pub batch: usize,
    /// Queries [batch, rows, heads_q, head_dim_qk]; with `starts`, [1, tokens, heads_q, head_dim_qk].
    pub q: TensorLayout,
    /// Keys [blocks, rows, heads_kv, head_dim_qk]: a block is a page, if there are pages; with `starts`, there is one block; else one
    /// for each sequence.
    pub k: CacheLayout,
    /// Values [blocks, rows, heads_kv, head_dim_v].
    pub v: CacheLayout,
    /// Output, as the queries, of head_dim_v. Its elements must not overlap.
    pub out: TensorLayout,
    /// Of the queries.
    pub q_lengths: SequenceLengths,
    /// Of the keys.
    pub k_lengths: SequenceLengths,
    /// Where the keys of a sequence are, if they are in pages.
    pub pages: Option<PageTable>,
    /// Causal mask: query `i` of a sequence sees no key past its diagonal.
    pub causal: Option<CausalAlignment>,
    /// Sliding window around the diagonal. Its alignment is `causal`'s, or bottom-right.
    pub window: Window,
    /// Factor of the scores; default 1/sqrt(head_dim_qk).
    pub scale: Option<f32>,
    /// Soft cap of the scores, before anything is added to them.
    pub softcap: Option<f32>,
    /// ALiBi (arXiv:2108.12409): `slope * -|distance|` of the key from the query's diagonal is added. Slopes f32 [heads_q], or
    /// [batch, heads_q] if this is true.
    pub alibi: Option<bool>,
    /// Whether there are sinks, f32 [heads_q]: the logit of a key that every query sees, whose value is 0. It counts in the log-sum-exp.
    pub sink: bool,
    /// A tensor that is added to the scores.
    pub bias: Option<PairLayout<BiasType>>,
    /// A tensor that says which keys may be seen, beside causal mask and window.
    pub mask: Option<PairLayout<MaskType>>,
    /// How many ranges each sequence has, i32 [batch, ranges, 2]: first and last position, both included. Queries whose diagonal is in
    /// a range see all keys of it, whatever causal mask and window say. One that does not end after it starts is none.
    pub ranges: Option<usize>,
    /// Whether the log-sum-exp is wanted: f32 [batch, heads_q, rows]; with `starts`, [heads_q, tokens]. Natural logarithm, -inf where a
    /// query sees no key.
    pub lse: bool,
    /// How keys are split.
    pub splits: Splits,
}

impl CacheLayout {
    /// Without gaps, [blocks, rows, heads, head_dim].
    pub fn contiguous(shape: [usize; 4]) -> Self {
        Self::from_tensor(TensorLayout::contiguous(shape))
    }

    /// Without gaps, [blocks, heads, rows, head_dim] in memory.
    pub fn heads_first(shape: [usize; 4]) -> Self {
        Self::from_tensor(TensorLayout::heads_first(shape))
    }

    /// Of a tensor whose rows have no gaps.
    pub fn from_tensor(layout: TensorLayout) -> Self {
        let [block, row, head, _] = layout.strides;
        Self {
            shape: layout.shape,
            strides: [block, row, head],
            chunk_stride: PIECE,
            element_stride: 1,
        }
    }

    /// vLLM's keys: [blocks, heads, head_dim / 8, rows, 8] in memory, without gaps.
    pub fn chunked_keys(shape: [usize; 4]) -> Self {
        let [_, rows, heads, dim] = shape.map(|n| n as i64);
        let chunk = rows.saturating_mul(PIECE);
        let head = chunk.saturating_mul((dim + PIECE - 1) / PIECE);
        Self {
            shape,
            strides: [head.saturating_mul(heads), PIECE, head],
            chunk_stride: chunk,
            element_stride: 1,
        }
    }

    /// vLLM's values: [blocks, heads, head_dim, rows] in memory, without gaps.
    pub fn transposed(shape: [usize; 4]) -> Self {
        let [_, rows, heads, dim] = shape.map(|n| n as i64);
        let head = rows.saturating_mul(dim);
        Self {
            shape,
            strides: [head.saturating_mul(heads), 1, head],
            chunk_stride: rows.saturating_mul(PIECE),
            element_stride: rows,
        }
    }
}

/// Elements of 16 bytes.
const PIECE: i64 = 8;
