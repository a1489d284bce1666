//! What is to be computed, as plain data.

use flashtile_abi::{DType, ScaleView};

use super::{
    inputs::count,
    layout::{BiasType, CacheLayout, MaskType, PageTable, PairLayout},
};
use crate::{
    error::{Error, Result},
    layout::TensorLayout,
    problem::{self, ArchChoice, CausalAlignment, OutDType, Shape, Window},
    scales::first_unusable,
};

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

/// How many blocks share the keys of a tile of queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Splits {
    /// As many as fill the device, by the problem's sizes.
    #[default]
    Auto,
    /// One: results do not depend on what else is in the batch, nor on the device's size, as long as the longest sequence of queries is one
    /// for the same kernels: `longest * heads_q / heads_kv` is at most 16, or more; on Hopper, at most 64 or more.
    One,
    /// One for every so many keys (rounded up to whole tiles), two at least: as [`Splits::One`], and long sequences still have many.
    Keys(usize),
}

/// One attention problem of an inference engine: for each sequence, `out = softmax(mask(cap(scale * q k^T) + alibi + bias)) v`, and
/// its log-sum-exp.
///
/// Only rows that belong to a sequence's `used` queries are written, whatever room out and log-sum-exp have besides.
///
/// Plain data: nothing is checked until it is planned or computed. Fields may be set directly or through the methods of the same names.
///
/// ```
/// use flashtile::{CausalAlignment, DType, TensorLayout};
/// use flashtile::serving::{CacheLayout, PageTable, ServingProblem, Splits};
///
/// // One new token for each of 8 sequences; their keys and values in 512 pages of 16 tokens, at most 100 pages each.
/// let (q, cache) = ([8, 1, 32, 128], [512, 16, 8, 128]);
/// let problem = ServingProblem::new(
///     DType::Bf16,
///     8,
///     TensorLayout::contiguous(q),
///     CacheLayout::contiguous(cache),
///     CacheLayout::contiguous(cache),
/// )
/// .pages(PageTable::contiguous(100))
/// .k_used(1600)
/// .causal(CausalAlignment::BottomRight)
/// .splits(Splits::Keys(512));
/// assert_eq!(problem.out.shape, q);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServingProblem {
    /// Element type of q, k and v: f16 or bf16; on the CPU f32 too.
    pub dtype: DType,
    /// Element type of k and v: `dtype`, or e4m3 under 16-bit queries.
    pub kv_dtype: DType,
    /// How many scales k and v have. Only e4m3 ones have any.
    pub kv_scales: CacheScales,
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
    /// Values are the first head_dim_v elements of keys: there is no tensor of values, no address and no scales of theirs. `v` is the
    /// layout of that part of `k`. (MLA with the up-projections absorbed, DeepSeek-V2, arXiv:2405.04434, section 2.1: 512 elements of latent, and
    /// 64 of rotary position.)
    pub latent: bool,
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
    /// Sliding window around the diagonal. Its alignment is `causal`'s, or bottom-right. With `causal`, `right` is at most 0.
    pub window: Window,
    /// Factor of the scores; default 1/sqrt(head_dim_qk). Any finite number, negative and 0 included.
    pub scale: Option<f32>,
    /// Soft cap of the scores, before anything is added to them.
    pub softcap: Option<f32>,
    /// ALiBi (arXiv:2108.12409): `slope * -|distance|` of the key from the query's diagonal is added. Slopes f32 `[heads_q]`, or
    /// [batch, heads_q] if this is true.
    pub alibi: Option<bool>,
    /// Whether there are sinks, f32 `[heads_q]`: the logit of a key that every query sees, whose value is 0. It counts in the log-sum-exp,
    /// which is the sink where a query sees no other key. -inf is none.
    pub sink: bool,
    /// A tensor that is added to the scores. -inf hides the key.
    pub bias: Option<PairLayout<BiasType>>,
    /// A tensor that says which keys may be seen, beside causal mask and window.
    pub mask: Option<PairLayout<MaskType>>,
    /// How many ranges each sequence has, i32 [batch, ranges, 2]: first and last position, both included. Queries that stand at a key of
    /// a range see all keys of it, whatever causal mask and window say; `mask` hides keys there too. One whose last is before its first
    /// is none.
    pub ranges: Option<usize>,
    /// Whether the log-sum-exp is wanted: f32 [batch, heads_q, rows]; with `starts`, [heads_q, tokens]. Natural logarithm, -inf where a
    /// query sees no key.
    pub lse: bool,
    /// How keys are split.
    pub splits: Splits,
    /// Which tier. On Hopper that of sm_90a has kernels for more than 64 queries of a sequence, counted for all heads that share keys; over latent
    /// caches of more than 256 elements for more than 16.
    pub arch: ArchChoice,
}

/// How many scales keys have, and values as many: f32, positive and finite. What is meant by an element is the element times its scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheScales {
    /// None: elements mean themselves.
    #[default]
    None,
    /// A single one: `[1]`. (Each layer of a model is a problem of its own.)
    PerTensor,
    /// One for each key/value head: `[heads_kv]`.
    PerHead,
    /// One for each head of each sequence: [batch, heads_kv].
    PerSequence,
}

impl CacheScales {
    /// How many there are.
    pub fn count(self, batch: usize, heads_kv: usize) -> usize {
        match self {
            Self::None => 0,
            Self::PerTensor => 1,
            Self::PerHead => heads_kv,
            Self::PerSequence => batch.saturating_mul(heads_kv),
        }
    }

    /// Numbers from one sequence and from one head to the next.
    pub(crate) fn strides(self, heads_kv: usize) -> [usize; 2] {
        match self {
            Self::None | Self::PerTensor => [0, 0],
            Self::PerHead => [0, 1],
            Self::PerSequence => [heads_kv, 1],
        }
    }

    /// As kernels take them, but for the address.
    pub(crate) fn view(self, heads_kv: usize) -> ScaleView {
        let [batch_stride, head_stride] = self.strides(heads_kv).map(|n| n as i64 * 4);
        ScaleView {
            batch_stride,
            head_stride,
            ..ScaleView::default()
        }
    }

    /// Refuses other than so many scales, and those that are not positive and finite.
    pub(crate) fn check(argument: &'static str, wanted: usize, scales: &[f32]) -> Result<()> {
        count(argument, wanted, scales.len())?;
        match first_unusable(scales) {
            None => Ok(()),
            Some(at) => Err(Error::bad(
                argument,
                "positive finite numbers",
                scales[at].to_string(),
            )),
        }
    }
}

impl SequenceLengths {
    /// Every sequence has so many tokens, and all count.
    pub fn uniform(tokens: usize) -> Self {
        Self {
            starts: false,
            used: false,
            longest: tokens,
        }
    }
}

impl ServingProblem {
    /// Unmasked attention over `batch` sequences as long as their tensors, default scale, contiguous output, no log-sum-exp.
    pub fn new(
        dtype: DType,
        batch: usize,
        q: TensorLayout,
        k: CacheLayout,
        v: CacheLayout,
    ) -> Self {
        let [blocks, rows, heads, _] = q.shape;
        Self {
            dtype,
            kv_dtype: dtype,
            kv_scales: CacheScales::None,
            out_dtype: OutDType::Same,
            batch,
            q,
            k,
            v,
            latent: false,
            out: TensorLayout::contiguous([blocks, rows, heads, v.shape[3]]),
            q_lengths: SequenceLengths::uniform(rows),
            k_lengths: SequenceLengths::uniform(k.shape[1]),
            pages: None,
            causal: None,
            window: Window::default(),
            scale: None,
            softcap: None,
            alibi: None,
            sink: false,
            bias: None,
            mask: None,
            ranges: None,
            lse: false,
            splits: Splits::Auto,
            arch: ArchChoice::Auto,
        }
    }

    /// Unmasked attention over contiguous tensors [batch, seqlen, heads, head_dim].
    pub fn contiguous(dtype: DType, shape: Shape) -> Self {
        let s = shape;
        Self::new(
            dtype,
            s.batch,
            TensorLayout::contiguous([s.batch, s.seqlen_q, s.heads_q, s.head_dim_qk]),
            CacheLayout::contiguous([s.batch, s.seqlen_k, s.heads_kv, s.head_dim_qk]),
            CacheLayout::contiguous([s.batch, s.seqlen_k, s.heads_kv, s.head_dim_v]),
        )
    }

    /// Unmasked attention over `shape.batch` sequences that follow each other in tensors [tokens, heads, head_dim] without gaps, of
    /// `shape.seqlen_q` tokens of queries and `shape.seqlen_k` of keys altogether. The longest sequences have so many tokens of
    /// queries and of keys. (varlen)
    pub fn varlen(dtype: DType, shape: Shape, longest_q: usize, longest_k: usize) -> Self {
        let one = Shape { batch: 1, ..shape };
        let mut problem = Self::contiguous(dtype, one)
            .q_starts(longest_q)
            .k_starts(longest_k);
        problem.batch = shape.batch;
        problem
    }

    /// Attention over a latent cache: values are the first `head_dim_v` elements of keys. Otherwise as [`new`](Self::new).
    ///
    /// ```
    /// use flashtile::{DType, TensorLayout};
    /// use flashtile::serving::{CacheLayout, PageTable, ServingProblem};
    ///
    /// // DeepSeek-V3's decode: 128 heads of queries, one of keys; 512 pages of 64 tokens.
    /// let q = TensorLayout::contiguous([8, 1, 128, 576]);
    /// let cache = CacheLayout::contiguous([512, 64, 1, 576]);
    /// let problem = ServingProblem::latent(DType::Bf16, 8, q, cache, 512)
    ///     .pages(PageTable::contiguous(100))
    ///     .k_used(6400)
    ///     .scale(1.0 / (192.0f32).sqrt());
    /// assert_eq!(problem.out.shape, [8, 1, 128, 512]);
    /// ```
    pub fn latent(
        dtype: DType,
        batch: usize,
        q: TensorLayout,
        k: CacheLayout,
        head_dim_v: usize,
    ) -> Self {
        let [blocks, rows, heads, _] = k.shape;
        let v = CacheLayout {
            shape: [blocks, rows, heads, head_dim_v],
            ..k
        };
        Self {
            latent: true,
            ..Self::new(dtype, batch, q, k, v)
        }
    }

    /// Sets the output's layout.
    #[must_use]
    pub fn out(mut self, out: TensorLayout) -> Self {
        self.out = out;
        self
    }

    /// Sets the output's element type.
    #[must_use]
    pub fn out_dtype(mut self, out_dtype: OutDType) -> Self {
        self.out_dtype = out_dtype;
        self
    }

    /// Keys and values are of another type than queries: e4m3, with so many scales.
    #[must_use]
    pub fn kv_dtype(mut self, dtype: DType, scales: CacheScales) -> Self {
        self.kv_dtype = dtype;
        self.kv_scales = scales;
        self
    }

    /// Queries follow each other: there are starts.
    #[must_use]
    pub fn q_starts(mut self, longest: usize) -> Self {
        self.q_lengths.starts = true;
        self.q_lengths.longest = longest;
        self
    }

    /// Only some queries of each sequence count.
    #[must_use]
    pub fn q_used(mut self, longest: usize) -> Self {
        self.q_lengths.used = true;
        self.q_lengths.longest = longest;
        self
    }

    /// Keys follow each other, or, in pages, are as many as differences of starts say.
    #[must_use]
    pub fn k_starts(mut self, longest: usize) -> Self {
        self.k_lengths.starts = true;
        self.k_lengths.longest = longest;
        self
    }

    /// Only some keys of each sequence count.
    #[must_use]
    pub fn k_used(mut self, longest: usize) -> Self {
        self.k_lengths.used = true;
        self.k_lengths.longest = longest;
        self
    }

    /// Keys and values are in pages. Unless lengths have been set before, sequences are as long as their pages.
    #[must_use]
    pub fn pages(mut self, pages: PageTable) -> Self {
        self.pages = Some(pages);
        if !(self.k_lengths.starts || self.k_lengths.used) {
            self.k_lengths.longest = pages.entries.saturating_mul(self.k.shape[1]);
        }
        self
    }

    /// Adds a causal mask.
    #[must_use]
    pub fn causal(mut self, alignment: CausalAlignment) -> Self {
        self.causal = Some(alignment);
        self
    }

    /// Adds a sliding window; `None` is unbounded.
    #[must_use]
    pub fn window(mut self, left: Option<u32>, right: Option<u32>) -> Self {
        self.window = Window { left, right };
        self
    }

    /// Sets the factor of the scores.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Caps the scores.
    #[must_use]
    pub fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// Adds ALiBi, with slopes of each sequence or shared by all.
    #[must_use]
    pub fn alibi(mut self, by_sequence: bool) -> Self {
        self.alibi = Some(by_sequence);
        self
    }

    /// Sets whether there are sinks.
    #[must_use]
    pub fn sink(mut self, present: bool) -> Self {
        self.sink = present;
        self
    }

    /// Adds a bias.
    #[must_use]
    pub fn bias(mut self, bias: PairLayout<BiasType>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Adds a mask.
    #[must_use]
    pub fn mask(mut self, mask: PairLayout<MaskType>) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Adds so many ranges of each sequence.
    #[must_use]
    pub fn ranges(mut self, count: usize) -> Self {
        self.ranges = Some(count);
        self
    }

    /// Sets whether the log-sum-exp is wanted.
    #[must_use]
    pub fn lse(mut self, wanted: bool) -> Self {
        self.lse = wanted;
        self
    }

    /// Sets how keys are split.
    #[must_use]
    pub fn splits(mut self, splits: Splits) -> Self {
        self.splits = splits;
        self
    }

    /// Chooses the tier.
    #[must_use]
    pub fn arch(mut self, arch: ArchChoice) -> Self {
        self.arch = arch;
        self
    }

    /// The factor of the scores: `scale`, or 1/sqrt(head_dim_qk).
    pub fn softmax_scale(&self) -> f32 {
        self.scale
            .unwrap_or_else(|| problem::default_scale(self.q.shape[3]))
    }

    /// Element type of out.
    pub fn out_element(&self) -> DType {
        self.out_dtype.of(self.dtype)
    }

    /// Element type of the bias, if there is one.
    pub(super) fn bias_element(&self, element: BiasType) -> DType {
        match element {
            BiasType::Same => self.dtype,
            BiasType::F32 => DType::F32,
        }
    }

    /// Shape of the log-sum-exp: batch (1 if queries have starts), heads_q, rows.
    pub fn lse_shape(&self) -> [usize; 3] {
        [self.q.shape[0], self.q.shape[2], self.q.shape[1]]
    }

    /// Tokens of keys that there is room for in a sequence: without starts, its length if all count.
    pub(super) fn k_room(&self) -> usize {
        match self.pages {
            Some(pages) => pages.entries.saturating_mul(self.k.shape[1]),
            None => self.k.shape[1],
        }
    }
}
