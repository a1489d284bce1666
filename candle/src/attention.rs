//! What is to be computed, beside the tensors themselves.

use std::sync::{Arc, Mutex};

use candle_core::{Result, Tensor, op::BackpropOp};
use flashtile::{CausalAlignment, serving::Splits};

use crate::{into, operation::Operation};

/// Attention with everything that flashtile knows: `softmax(mask(cap(softmax_scale * q k^T) + bias)) v`.
///
/// q is [batch, seqlen_q, heads_q, head_dim_qk], k [batch, seqlen_k, heads_kv, head_dim_qk] and v [batch, seqlen_k, heads_kv,
/// head_dim_v], of f16, bf16 or f32; under q of 16 bits also e4m3 ([`kv_scales`](Self::kv_scales)); out is as q, with head_dim_v. [`varlen`](Self::varlen), [`pages`](Self::pages) change that. heads_q
/// is a multiple of heads_kv. Any strides are taken as they are, if the last dimension has none. Tensors that say where sequences are
/// may be u32 or i32, and are contiguous.
///
/// On the CPU all numbers are checked. On a GPU nothing waits for the device: shapes, types and layouts are checked, numbers in device
/// memory only if [`checked`](Self::checked) says so. Kernels stay within the tensors whatever these numbers are.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// use flashtile_candle::{Attention, CausalAlignment};
///
/// # fn main() -> candle_core::Result<()> {
/// let q = Tensor::zeros((2, 3, 4, 32), DType::F16, &Device::Cpu)?;
/// let sink = Tensor::zeros(4, DType::F32, &Device::Cpu)?;
/// let attention = Attention::new(0.2).causal(CausalAlignment::BottomRight).sink(&sink);
/// let (out, lse) = attention.forward_with_lse(&q, &q, &q)?;
/// assert_eq!((out.dims(), lse.dims()), (&[2, 3, 4, 32][..], &[2, 4, 3][..]));
/// // The first query sees one key and the sink, with scores 0: ln 2.
/// assert!((lse.get(0)?.get(0)?.get(0)?.to_scalar::<f32>()? - 2f32.ln()).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Attention {
    pub(crate) softmax_scale: f32,
    pub(crate) causal: Option<CausalAlignment>,
    pub(crate) window_left: Option<usize>,
    pub(crate) window_right: Option<usize>,
    pub(crate) softcap: Option<f32>,
    pub(crate) alibi: Option<Tensor>,
    pub(crate) sink: Option<Tensor>,
    pub(crate) bias: Option<Tensor>,
    pub(crate) mask: Option<Tensor>,
    pub(crate) ranges: Option<Tensor>,
    pub(crate) q_starts: Option<Lengths>,
    pub(crate) k_starts: Option<Lengths>,
    pub(crate) k_used: Option<Lengths>,
    pub(crate) table: Option<Tensor>,
    pub(crate) page_size: Option<usize>,
    pub(crate) scales: Option<[Tensor; 2]>,
    pub(crate) checked: bool,
    pub(crate) splits: Splits,
}

/// A tensor that says how long sequences are, and the longest.
#[derive(Clone, Debug)]
pub(crate) struct Lengths {
    pub numbers: Tensor,
    pub longest: usize,
}

impl Attention {
    /// Full attention. `softmax_scale` is what scores are multiplied by: any finite number.
    pub fn new(softmax_scale: f32) -> Self {
        Self {
            softmax_scale,
            causal: None,
            window_left: None,
            window_right: None,
            softcap: None,
            alibi: None,
            sink: None,
            bias: None,
            mask: None,
            ranges: None,
            q_starts: None,
            k_starts: None,
            k_used: None,
            table: None,
            page_size: None,
            scales: None,
            checked: false,
            splits: Splits::Auto,
        }
    }

    /// A query sees no key past its diagonal. Bottom-right is what candle-flash-attn calls causal: the last query stands at the last key.
    #[must_use]
    pub fn causal(mut self, alignment: CausalAlignment) -> Self {
        self.causal = Some(alignment);
        self
    }

    /// A query sees so many keys before and after its diagonal; `None` is unbounded, and so is more than the longest sequence of keys.
    /// `right` of 0 is causal.
    #[must_use]
    pub fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        self.window_left = left;
        self.window_right = right;
        self
    }

    /// Scores become `cap * tanh(score / cap)`. Positive.
    #[must_use]
    pub fn softcap(mut self, cap: f32) -> Self {
        self.softcap = Some(cap);
        self
    }

    /// Adds `-slope * |distance|` to the scores: slopes f32, contiguous, `[heads_q]` or [batch, heads_q].
    #[must_use]
    pub fn alibi(mut self, slopes: &Tensor) -> Self {
        self.alibi = Some(slopes.clone());
        self
    }

    /// Adds a key that every query sees, whose value is 0: its logits f32, contiguous, `[heads_q]`. It counts in the log-sum-exp.
    #[must_use]
    pub fn sink(mut self, logits: &Tensor) -> Self {
        self.sink = Some(logits.clone());
        self
    }

    /// Adds a tensor to the scores: f32 or of q's type, [batch, heads_q, seqlen_q, seqlen_k] (the longest of each, if sequences differ)
    /// or 1 in any of these places. -inf hides a key.
    #[must_use]
    pub fn bias(mut self, bias: &Tensor) -> Self {
        self.bias = Some(bias.clone());
        self
    }

    /// Hides the keys where a tensor is 0: u8, shaped as a bias.
    #[must_use]
    pub fn mask(mut self, mask: &Tensor) -> Self {
        self.mask = Some(mask.clone());
        self
    }

    /// Queries inside a range see all keys of the range, whatever causal mask and window say: i32, contiguous, [batch, ranges, 2], first
    /// and last key, both included. One whose last is before its first is none.
    #[must_use]
    pub fn prefix_ranges(mut self, ranges: &Tensor) -> Self {
        self.ranges = Some(ranges.clone());
        self
    }

    /// Sequences of their own lengths follow each other: q, k and v are [tokens, heads, head_dim], and sequence `b` has tokens
    /// `seqlens[b]..seqlens[b + 1]`. Both have batch + 1 numbers, from 0, never decreasing. With [`pages`](Self::pages), k and v are in
    /// pages, and `seqlens_k` only say how long sequences are. The longest sequences are no longer than `max_seqlen_q` and
    /// `max_seqlen_k`. Rows of out past the last sequence are 0.
    #[must_use]
    pub fn varlen(
        self,
        seqlens_q: &Tensor,
        seqlens_k: &Tensor,
        max_seqlen_q: usize,
        max_seqlen_k: usize,
    ) -> Self {
        self.varlen_q(seqlens_q, max_seqlen_q)
            .varlen_k(seqlens_k, max_seqlen_k)
    }

    /// As [`varlen`](Self::varlen), of the queries alone.
    #[must_use]
    pub fn varlen_q(mut self, seqlens_q: &Tensor, max_seqlen_q: usize) -> Self {
        self.q_starts = Some(Lengths {
            numbers: seqlens_q.clone(),
            longest: max_seqlen_q,
        });
        self
    }

    /// As [`varlen`](Self::varlen), of the keys alone.
    #[must_use]
    pub fn varlen_k(mut self, seqlens_k: &Tensor, max_seqlen_k: usize) -> Self {
        self.k_starts = Some(Lengths {
            numbers: seqlens_k.clone(),
            longest: max_seqlen_k,
        });
        self
    }

    /// Only the first `seqused_k[b]` keys of sequence `b` count, at most `max_seqlen_k`: `[batch]`.
    #[must_use]
    pub fn seqused_k(mut self, seqused_k: &Tensor, max_seqlen_k: usize) -> Self {
        self.k_used = Some(Lengths {
            numbers: seqused_k.clone(),
            longest: max_seqlen_k,
        });
        self
    }

    /// Keys and values are in pages: [pages, rows, heads_kv, head_dim], rows being any number. Key `j` of sequence `b` is row `j % rows`
    /// of page `block_table[b, j / rows]`; the table is [batch, entries], u32 or i32, of any strides. [pages, heads_kv, rows, head_dim]
    /// in memory is a `transpose(1, 2)` of it.
    #[must_use]
    pub fn pages(mut self, block_table: &Tensor) -> Self {
        self.table = Some(block_table.clone());
        self
    }

    /// Keys and values are e4m3 numbers (f8e4m3, or u8: their codes) under queries of f16 or bf16, and mean what they are times these
    /// scales: f32, contiguous, positive and finite, `[1]`, `[heads_kv]` or [batch, heads_kv]. Without scales they mean themselves.
    #[must_use]
    pub fn kv_scales(mut self, k_scale: &Tensor, v_scale: &Tensor) -> Self {
        self.scales = Some([k_scale.clone(), v_scale.clone()]);
        self
    }

    /// Checks, on a GPU too, the numbers that say where sequences are: lengths, starts, tables of pages and ranges. They are copied to the
    /// host for that, which waits for the device, so it is for finding mistakes, and not for graph captures.
    #[must_use]
    pub fn checked(mut self, checked: bool) -> Self {
        self.checked = checked;
        self
    }

    /// How keys are split over a GPU's blocks. Results of [`Splits::One`] and [`Splits::Keys`] do not depend on the rest of the batch.
    #[must_use]
    pub fn splits(mut self, splits: Splits) -> Self {
        self.splits = splits;
        self
    }

    /// The output, in q's type.
    ///
    /// # Errors
    /// Names the argument that is wrong, what was expected and what was found.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        q.apply_op3(k, v, Operation::new(self.clone(), None))
    }

    /// The output, and the log-sum-exp of the scores: f32, natural logarithm, [batch, heads_q, seqlen_q]; with [`varlen`](Self::varlen)
    /// [heads_q, tokens]. -inf where a query sees no key. candle knows no gradient of the log-sum-exp: it counts as a constant.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn forward_with_lse(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let slot = Arc::new(Mutex::new(None));
        let out = q.apply_op3(k, v, Operation::new(self.clone(), Some(slot.clone())))?;
        let lse = slot
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .take();
        let (lse, shape) =
            lse.ok_or_else(|| candle_core::Error::msg("flash-attn left no log-sum-exp"))?;
        let lse = Tensor::from_storage(lse, shape, BackpropOp::none(), false);
        Ok((out, lse))
    }

    /// As [`Attention::forward`], into tensors of the caller's: `out` of any strides whose last dimension has none, `lse` contiguous. What
    /// lies between their elements stays as it is. They share no storage with other tensors of the call.
    ///
    /// # Errors
    /// As [`Attention::forward`]; and if a gradient would be lost, since candle does not track writes into tensors.
    pub fn forward_into(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        lse: Option<&Tensor>,
    ) -> Result<()> {
        into::forward(self, [q, k, v], out, lse)
    }

    /// Every tensor beside q, k and v, with its name.
    pub(crate) fn others(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        [
            ("alibi_slopes", self.alibi.as_ref()),
            ("sink", self.sink.as_ref()),
            ("bias", self.bias.as_ref()),
            ("mask", self.mask.as_ref()),
            ("mm_prefix_ranges", self.ranges.as_ref()),
            ("seqlens_q", self.q_starts.as_ref().map(|l| &l.numbers)),
            ("seqlens_k", self.k_starts.as_ref().map(|l| &l.numbers)),
            ("seqused_k", self.k_used.as_ref().map(|l| &l.numbers)),
            ("block_table", self.table.as_ref()),
            ("k_scale", self.scales.as_ref().map(|it| &it[0])),
            ("v_scale", self.scales.as_ref().map(|it| &it[1])),
        ]
        .into_iter()
        .filter_map(|(name, tensor)| Some((name, tensor?)))
    }
}
