//! The functions of candle-flash-attn 0.11, with its names, arguments and meaning.

use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};
use flashtile::CausalAlignment;

use crate::{attention::Attention, operation::Operation};

/// Attention over tensors [batch, seqlen, heads, head_dim], as an operation of candle's. [`Attention`] can say more.
pub struct FlashAttn {
    /// What scores are multiplied by.
    pub softmax_scale: f32,
    /// Slopes of ALiBi, f32 `[heads_q]` or [batch, heads_q].
    pub alibi_slopes: Option<Tensor>,
    /// Keys that a query sees before its diagonal.
    pub window_size_left: Option<usize>,
    /// Keys that a query sees after its diagonal; 0 is causal.
    pub window_size_right: Option<usize>,
    /// Soft cap of the scores; 0 is none.
    pub softcap: Option<f32>,
}

impl FlashAttn {
    fn attention(&self) -> Attention {
        attention(
            self.softmax_scale,
            self.alibi_slopes.as_ref(),
            (self.window_size_left, self.window_size_right),
            self.softcap,
        )
    }
}

impl CustomOp3 for FlashAttn {
    fn name(&self) -> &'static str {
        "flash-attn"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Operation::new(self.attention(), None).cpu_fwd(q, q_l, k, k_l, v, v_l)
    }

    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_l: &Layout,
        k: &CudaStorage,
        k_l: &Layout,
        v: &CudaStorage,
        v_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Operation::new(self.attention(), None).cuda_fwd(q, q_l, k, k_l, v, v_l)
    }
}

/// What all functions have in common, in candle-flash-attn's terms.
fn attention(
    softmax_scale: f32,
    alibi_slopes: Option<&Tensor>,
    (window_size_left, window_size_right): (Option<usize>, Option<usize>),
    softcap: Option<f32>,
) -> Attention {
    let mut attention = Attention::new(softmax_scale).window(window_size_left, window_size_right);
    attention.alibi = alibi_slopes.cloned();
    attention.softcap = softcap.filter(|&cap| cap != 0.0);
    attention
}

/// The window that candle-flash-attn makes of a causal mask.
fn causal_window(causal: bool) -> (Option<usize>, Option<usize>) {
    (None, causal.then_some(0))
}

/// Attention, full or causal (the last query at the last key).
///
/// q is [batch, seqlen_q, heads_q, head_dim], k and v [batch, seqlen_k, heads_kv, head_dim] (that of v may differ), out as q.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
pub fn flash_attn(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    attention(softmax_scale, None, causal_window(causal), None).forward(q, k, v)
}

/// Attention in a sliding window: so many keys before and after the query's
/// diagonal; `None` is unbounded, `None, Some(0)` causal.
///
/// q is [batch, seqlen_q, heads_q, head_dim], k and v [batch, seqlen_k, heads_kv, head_dim] (that of v may differ), out as q.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    attention(
        softmax_scale,
        None,
        (window_size_left, window_size_right),
        None,
    )
    .forward(q, k, v)
}

/// Attention with ALiBi, full or causal. Slopes are f32, `[heads_q]` or [batch, heads_q].
///
/// q is [batch, seqlen_q, heads_q, head_dim], k and v [batch, seqlen_k, heads_kv, head_dim] (that of v may differ), out as q.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    attention(
        softmax_scale,
        Some(alibi_slopes),
        causal_window(causal),
        None,
    )
    .forward(q, k, v)
}

/// Attention with ALiBi in a sliding window: so many keys before and after the query's
/// diagonal; `None` is unbounded, `None, Some(0)` causal.
/// Slopes are f32, `[heads_q]` or [batch, heads_q].
///
/// q is [batch, seqlen_q, heads_q, head_dim], k and v [batch, seqlen_k, heads_kv, head_dim] (that of v may differ), out as q.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
pub fn flash_attn_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    attention(
        softmax_scale,
        Some(alibi_slopes),
        (window_size_left, window_size_right),
        None,
    )
    .forward(q, k, v)
}

/// Attention with or without ALiBi, in a sliding window: so many keys before and after the query's
/// diagonal; `None` is unbounded, `None, Some(0)` causal. Scores become
/// `softcap * tanh(score / softcap)` before ALiBi; 0 is no cap.
///
/// q is [batch, seqlen_q, heads_q, head_dim], k and v [batch, seqlen_k, heads_kv, head_dim] (that of v may differ), out as q.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's.
pub fn flash_attn_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    attention(
        softmax_scale,
        alibi_slopes,
        (window_size_left, window_size_right),
        Some(softcap),
    )
    .forward(q, k, v)
}

/// Attention over sequences that follow each other, full or causal (the last query at the last key).
///
/// q is [tokens_q, heads_q, head_dim], k and v [tokens_k, heads_kv, head_dim] (that of v may differ), out as q. Sequence `b` has tokens
/// `seqlens[b]..seqlens[b + 1]`, of u32 or i32: see [`Attention::varlen`].
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's.
pub fn flash_attn_varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    attention(softmax_scale, None, causal_window(causal), None)
        .varlen(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
        .forward(q, k, v)
}

/// Attention over sequences that follow each other in a sliding window: so many keys before and after the query's
/// diagonal; `None` is unbounded, `None, Some(0)` causal.
///
/// q is [tokens_q, heads_q, head_dim], k and v [tokens_k, heads_kv, head_dim] (that of v may differ), out as q. Sequence `b` has tokens
/// `seqlens[b]..seqlens[b + 1]`, of u32 or i32: see [`Attention::varlen`].
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's.
pub fn flash_attn_varlen_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    attention(
        softmax_scale,
        None,
        (window_size_left, window_size_right),
        None,
    )
    .varlen(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
    .forward(q, k, v)
}

/// Attention over keys and values in pages, in a sliding window: so many keys before and after the query's diagonal; `None` is
/// unbounded, `None, Some(0)` causal.
///
/// q is [tokens_q, heads_q, head_dim]; k and v are [pages, page_block_size, heads_kv, head_dim], pages being of any size. `seqlens_q` and
/// `seqlens_k` are as in [`flash_attn_varlen`]; of keys only their differences count. Key `j` of sequence `b` is row
/// `j % page_block_size` of page `block_table[b, j / page_block_size]`; the table is [batch, entries], u32 or i32, of any strides.
/// `mm_prefix_ranges`, i32 [batch, ranges, 2], are first and last key of ranges whose queries see all of the range.
/// `softcap` of 0 is none.
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's.
pub fn flash_attn_varlen_paged_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    block_table: &Tensor,
    mm_prefix_ranges: Option<&Tensor>,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    page_block_size: usize,
    softcap: Option<f32>,
) -> Result<Tensor> {
    let mut attention = attention(
        softmax_scale,
        None,
        (window_size_left, window_size_right),
        softcap,
    )
    .varlen(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
    .pages(block_table);
    attention.ranges = mm_prefix_ranges.cloned();
    attention.page_size = Some(page_block_size);
    attention.forward(q, k, v)
}

/// Attention over sequences that follow each other with ALiBi, full or causal. Slopes are f32, `[heads_q]` or [batch, heads_q].
///
/// q is [tokens_q, heads_q, head_dim], k and v [tokens_k, heads_kv, head_dim] (that of v may differ), out as q. Sequence `b` has tokens
/// `seqlens[b]..seqlens[b + 1]`, of u32 or i32: see [`Attention::varlen`].
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's.
pub fn flash_attn_varlen_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    attention(
        softmax_scale,
        Some(alibi_slopes),
        causal_window(causal),
        None,
    )
    .varlen(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
    .forward(q, k, v)
}

/// Attention over sequences that follow each other with ALiBi in a sliding window: so many keys before and after the query's
/// diagonal; `None` is unbounded, `None, Some(0)` causal.
/// Slopes are f32, `[heads_q]` or [batch, heads_q].
///
/// q is [tokens_q, heads_q, head_dim], k and v [tokens_k, heads_kv, head_dim] (that of v may differ), out as q. Sequence `b` has tokens
/// `seqlens[b]..seqlens[b + 1]`, of u32 or i32: see [`Attention::varlen`].
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's.
pub fn flash_attn_varlen_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    attention(
        softmax_scale,
        Some(alibi_slopes),
        (window_size_left, window_size_right),
        None,
    )
    .varlen(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
    .forward(q, k, v)
}

/// Attention over sequences that follow each other with or without ALiBi, in a sliding window: so many keys before and after the query's
/// diagonal; `None` is unbounded, `None, Some(0)` causal. Scores become
/// `softcap * tanh(score / softcap)` before ALiBi; 0 is no cap.
///
/// q is [tokens_q, heads_q, head_dim], k and v [tokens_k, heads_kv, head_dim] (that of v may differ), out as q. Sequence `b` has tokens
/// `seqlens[b]..seqlens[b + 1]`, of u32 or i32: see [`Attention::varlen`].
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
#[allow(clippy::too_many_arguments)] // candle-flash-attn's.
pub fn flash_attn_varlen_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    attention(
        softmax_scale,
        alibi_slopes,
        (window_size_left, window_size_right),
        Some(softcap),
    )
    .varlen(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k)
    .forward(q, k, v)
}

/// The next token, or the next few, of each sequence over its cache in pages, causal: with split keys, so that a GPU is full at any batch.
/// candle-flash-attn has no such function.
///
/// q is [batch, seqlen_q, heads_q, head_dim]; k and v are [pages, rows, heads_kv, head_dim], pages being of any size; `block_table` is
/// [batch, entries]. Sequence `b` has `seqlens_k[b]` keys in its pages, those of its new tokens included, and at most `max_seqlen_k`.
/// For windows, caps, sinks and the rest see [`Attention::seqused_k`] and [`Attention::pages`].
///
/// # Errors
/// Names the argument that is wrong, what was expected and what was found.
pub fn flash_attn_decode(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    block_table: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_k: usize,
    softmax_scale: f32,
) -> Result<Tensor> {
    Attention::new(softmax_scale)
        .causal(CausalAlignment::BottomRight)
        .seqused_k(seqlens_k, max_seqlen_k)
        .pages(block_table)
        .forward(q, k, v)
}
