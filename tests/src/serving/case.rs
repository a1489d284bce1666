//! A case: everything that decides a result.

use flashtile::{
    ArchChoice, CausalAlignment, DType, Window,
    serving::{BiasType, CacheScales, MaskType, Splits},
};

/// How queries lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// [batch, rows, heads, head_dim], each sequence as long as its room.
    Dense,
    /// So, but only some rows count.
    DenseUsed,
    /// One after the other.
    Packed,
    /// So, with room between them.
    PackedUsed,
}

/// Where keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// [batch, rows, heads, head_dim], each sequence as long as its room.
    Dense,
    /// So, but only some rows count.
    DenseUsed,
    /// One after the other.
    Packed,
    /// So, with room between them.
    PackedUsed,
    /// In pages of so many rows; lengths are `used`.
    Paged(usize),
    /// So; lengths are differences of `starts`.
    PagedStarts(usize),
}

/// The order of a cache's dimensions in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheOrder {
    /// (blocks, rows, heads, dim)
    RowsFirst,
    /// (blocks, heads, rows, dim)
    HeadsFirst,
    /// vLLM's: keys (blocks, heads, dim/8, rows, 8), values (blocks, heads, dim, rows).
    Chunked,
}

/// What is added to scores. `whole` says which of batch, heads, rows and keys it has in full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bias {
    /// Its elements.
    pub element: BiasType,
    /// Dimensions that are not 1.
    pub whole: [bool; 4],
}

/// Which keys may be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskCase {
    /// Its elements.
    pub element: MaskType,
    /// Dimensions that are not 1.
    pub whole: [bool; 4],
}

/// A problem of an inference engine, with what its tensors are made of.
#[derive(Clone, Debug, PartialEq)]
pub struct ServingCase {
    /// Elements.
    pub dtype: DType,
    /// Keys and values are e4m3, with so many scales.
    pub kv_scales: Option<CacheScales>,
    /// Outputs are f32.
    pub wide_out: bool,
    /// Key/value heads.
    pub heads_kv: usize,
    /// Query heads for each.
    pub q_per_kv: usize,
    /// head_dim_qk and head_dim_v.
    pub dims: [usize; 2],
    /// Values are the first elements of keys.
    pub latent: bool,
    /// Queries and keys of each sequence. (With dense queries or keys, all are as long as the first.)
    pub lengths: Vec<[usize; 2]>,
    /// More than the longest that the problem makes room for.
    pub room: usize,
    /// How queries lie.
    pub queries: Queries,
    /// Where keys are.
    pub cache: Cache,
    /// In which order.
    pub order: CacheOrder,
    /// Elements between rows of queries, and bytes before the tensors.
    pub gap: usize,
    /// Causal mask.
    pub causal: Option<CausalAlignment>,
    /// Window.
    pub window: Window,
    /// Factor of the scores.
    pub scale: Option<f32>,
    /// Their cap.
    pub softcap: Option<f32>,
    /// Slopes, of each sequence if true.
    pub alibi: Option<bool>,
    /// Sinks.
    pub sink: bool,
    /// Bias.
    pub bias: Option<Bias>,
    /// Mask.
    pub mask: Option<MaskCase>,
    /// Ranges of each sequence.
    pub ranges: usize,
    /// How keys are split.
    pub splits: Splits,
    /// Which tier.
    pub arch: ArchChoice,
    /// Factor of the elements of queries and keys: at 10, one key takes almost all of each row.
    pub spread: f32,
    /// Of all numbers.
    pub seed: u64,
    /// By which number the first sequence's elements are drawn.
    pub first: usize,
}

impl ServingCase {
    /// Plain attention of so many queries and keys, one head.
    pub fn new(dtype: DType, lengths: &[[usize; 2]], dim: usize) -> Self {
        Self {
            dtype,
            kv_scales: None,
            wide_out: false,
            heads_kv: 1,
            q_per_kv: 1,
            dims: [dim; 2],
            latent: false,
            lengths: lengths.to_vec(),
            room: 0,
            queries: Queries::Packed,
            cache: Cache::Packed,
            order: CacheOrder::RowsFirst,
            gap: 0,
            causal: None,
            window: Window::default(),
            scale: None,
            softcap: None,
            alibi: None,
            sink: false,
            bias: None,
            mask: None,
            ranges: 0,
            splits: Splits::One,
            arch: ArchChoice::Auto,
            spread: 1.0,
            seed: 0,
            first: 0,
        }
    }

    /// Query heads.
    pub fn heads_q(&self) -> usize {
        self.heads_kv * self.q_per_kv
    }

    /// Queries and keys of a sequence.
    pub fn lengths_of(&self, b: usize) -> [usize; 2] {
        [
            match self.queries {
                Queries::Dense => self.lengths[0][0],
                _ => self.lengths[b][0],
            },
            match self.cache {
                Cache::Dense => self.lengths[0][1],
                _ => self.lengths[b][1],
            },
        ]
    }

    /// Queries and keys that the problem makes room for.
    pub fn longest(&self) -> [usize; 2] {
        let of = |which: usize| {
            let all = (0..self.lengths.len()).map(|b| self.lengths_of(b)[which]);
            all.max().unwrap_or(0)
        };
        [of(0) + self.room, of(1) + self.room]
    }

    /// A case of one of its sequences alone. Of what differs from sequence to sequence, it has the same queries, keys and values.
    pub fn alone(&self, b: usize) -> Self {
        Self {
            lengths: vec![self.lengths_of(b)],
            first: self.first + b,
            ..self.clone()
        }
    }
}
