//! A case: everything that decides a result.

use flashtile::{
    ArchChoice, CausalAlignment, DType, DeviceInfo, Entry, Window,
    serving::{BiasType, CacheScales, MaskType, Splits},
};

use super::Built;

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
    /// Elements of queries and outputs.
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
    /// Elements between rows, where a tensor can have any (all but vLLM's caches).
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
    /// Lengths, starts, pages and ranges on the device are anything ([`Built::hostile`](super::Built::hostile)): all that counts is
    /// what is accessed.
    pub hostile: bool,
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
            hostile: false,
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

    /// The kernel that computes it.
    ///
    /// # Errors
    /// The library's: there is none, or the case is no problem.
    pub fn kernel(&self) -> flashtile::Result<&'static Entry> {
        let plan = Built::of(self).problem.plan(&DeviceInfo::emulator())?;
        Ok(&plan.variant().entry)
    }

    /// Bytes that running and judging the case takes, roughly; `None` past 64 bits. To be asked before anything is made of a case that a
    /// user typed.
    pub fn bytes(&self) -> Option<u64> {
        let product = |factors: &[usize]| {
            let mut factors = factors.iter();
            factors.try_fold(1u64, |product, &n| {
                product.checked_mul(u64::try_from(n).ok()?)
            })
        };
        let sum = |numbers: &[usize]| {
            let mut numbers = numbers.iter();
            numbers.try_fold(0usize, |sum, &n| sum.checked_add(n))
        };
        let batch = self.lengths.len();
        let (mut longest, mut all) = ([0usize; 2], [0usize; 2]);
        for length in &self.lengths {
            for which in 0..2 {
                longest[which] = longest[which].max(length[which]);
                all[which] = all[which].checked_add(length[which])?;
            }
        }
        let longest = [
            sum(&[longest[0], self.room])?,
            sum(&[longest[1], self.room])?,
        ];
        let heads = self.heads_kv.checked_mul(self.q_per_kv)?;
        let row = |dim| sum(&[dim, self.gap]);
        let page = match self.cache {
            Cache::Paged(rows) | Cache::PagedStarts(rows) => rows,
            _ => 1,
        };
        let widest = row(self.dims[0].max(self.dims[1]))?;
        let pages = sum(&[longest[1], page, 3])?.checked_mul(batch.checked_add(2)?)?;
        let mut elements = product(&[batch, longest[0], heads, widest, 2])?;
        elements = elements.checked_add(product(&[pages, self.heads_kv, widest, 2])?)?;
        // Parts of the keys, a pair of a query and a key each at worst.
        let pairs = product(&[batch, heads, longest[0], longest[1]])?;
        if self.splits != Splits::One {
            let parts = product(&[
                batch,
                heads,
                longest[0],
                longest[1].div_ceil(16).max(1),
                widest,
            ])?;
            elements = elements.checked_add(parts)?;
        }
        let ranges = product(&[batch, self.ranges])?;
        let elements = elements.checked_add(pairs)?.checked_add(ranges)?;
        // On the host and on the device, and in f32 and f64 for the judgement.
        elements.checked_mul(32).filter(|bytes| *bytes < 1 << 62)
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
