//! What is to be computed, as plain data.

use flashtile_abi::{Algorithm, DType};

use crate::{
    layout::TensorLayout,
    scales::{ScaledTensor, Scales},
};

/// Where the diagonal of causal masks and windows lies if there are more keys than queries, or fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CausalAlignment {
    /// The last query's diagonal is the last key: query `i` stands at key
    /// `i + seqlen_k - seqlen_q`. FlashAttention's convention since 2.1.
    #[default]
    BottomRight,
    /// The first query's diagonal is the first key: query `i` stands at key `i`.
    TopLeft,
}

/// How far a query sees from its diagonal, in keys. `None` is unbounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Keys before the diagonal.
    pub left: Option<u32>,
    /// Keys after the diagonal.
    pub right: Option<u32>,
}

/// Which kernel tier to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ArchChoice {
    /// The best tier that has a kernel for the problem and runs on the device.
    #[default]
    Auto,
    /// mma.sync, ldmatrix, cp.async: every GPU since Ampere.
    Sm80,
    /// wgmma, TMA, mbarrier: Hopper.
    Sm90a,
}

/// Element type of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OutDType {
    /// That of q, k and v; bf16 if theirs is 8-bit.
    #[default]
    Same,
    /// f32.
    F32,
    /// f16. Inputs are f16, or 8-bit.
    F16,
    /// bf16. Inputs are bf16, or 8-bit.
    Bf16,
}

impl OutDType {
    /// The element type of the output of such inputs.
    pub fn of(self, inputs: DType) -> DType {
        match (self, inputs) {
            (Self::F32, _) => DType::F32,
            (Self::F16, _) => DType::F16,
            (Self::Bf16, _) | (Self::Same, DType::E4m3) => DType::Bf16,
            (Self::Same, _) => inputs,
        }
    }
}

/// One attention problem: `out = softmax(mask(cap(scale * q k^T))) v`, and its log-sum-exp.
///
/// Tensors of 8-bit elements (e4m3) have scales: what is meant by an element of q, k or v is the element times the scale of
/// its tensor, head or block of rows.
///
/// Plain data: nothing is checked until [`Problem::plan`]. Fields may be set directly or through
/// the methods of the same names.
///
/// ```
/// use flashtile::{CausalAlignment, DType, Problem, Shape};
///
/// let shape = Shape { batch: 2, seqlen_q: 100, seqlen_k: 300, heads_q: 8, heads_kv: 2, head_dim_qk: 64, head_dim_v: 64 };
/// let problem = Problem::contiguous(DType::Bf16, shape)
///     .causal(CausalAlignment::BottomRight)
///     .window(Some(128), None)
///     .softcap(30.0)
///     .lse(true);
/// assert_eq!(problem.q.shape, [2, 100, 8, 64]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// Element type of q, k and v.
    pub dtype: DType,
    /// Element type of out.
    pub out_dtype: OutDType,
    /// How many scales q, k and v have. Only tensors of 8-bit elements have any.
    pub scales: Scales,
    /// Queries [batch, seqlen_q, heads_q, head_dim_qk].
    pub q: TensorLayout,
    /// Keys [batch, seqlen_k, heads_kv, head_dim_qk].
    pub k: TensorLayout,
    /// Values [batch, seqlen_k, heads_kv, head_dim_v].
    pub v: TensorLayout,
    /// Output [batch, seqlen_q, heads_q, head_dim_v]. Its elements must not overlap.
    pub out: TensorLayout,
    /// Whether the log-sum-exp [batch, heads_q, seqlen_q] is wanted: f32, natural logarithm,
    /// contiguous, -inf where a query sees no key.
    pub lse: bool,
    /// Causal mask: query `i` sees no key past its diagonal.
    pub causal: Option<CausalAlignment>,
    /// Sliding window around the diagonal. Its alignment is `causal`'s, or bottom-right.
    /// With `causal`, `right` is at most 0.
    pub window: Window,
    /// Factor of the scores; default 1/sqrt(head_dim_qk). Any finite number, negative and 0 included.
    pub scale: Option<f32>,
    /// Soft cap `c` of the scores: `c * tanh(score / c)` (Gemma 2, arXiv:2408.00118, section 2). Positive; at most 256 with 8-bit elements.
    pub softcap: Option<f32>,
    /// Which algorithm.
    pub algorithm: Algorithm,
    /// Which tier.
    pub arch: ArchChoice,
}

/// Sizes of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Independent sequences.
    pub batch: usize,
    /// Queries per sequence.
    pub seqlen_q: usize,
    /// Keys per sequence.
    pub seqlen_k: usize,
    /// Query heads; a multiple of `heads_kv`.
    pub heads_q: usize,
    /// Key/value heads. 1 is multi-query attention, fewer than `heads_q` is grouped-query attention.
    pub heads_kv: usize,
    /// Elements of a query and of a key.
    pub head_dim_qk: usize,
    /// Elements of a value and of an output row.
    pub head_dim_v: usize,
}

impl Problem {
    /// Unmasked attention over tensors of any layout: fused algorithm, default scale, no LSE.
    pub fn new(
        dtype: DType,
        q: TensorLayout,
        k: TensorLayout,
        v: TensorLayout,
        out: TensorLayout,
    ) -> Self {
        Self {
            dtype,
            out_dtype: OutDType::Same,
            scales: Scales::default(),
            q,
            k,
            v,
            out,
            lse: false,
            causal: None,
            window: Window::default(),
            scale: None,
            softcap: None,
            algorithm: Algorithm::Fused,
            arch: ArchChoice::Auto,
        }
    }

    /// Unmasked attention over contiguous tensors [batch, seqlen, heads, head_dim].
    pub fn contiguous(dtype: DType, shape: Shape) -> Self {
        let s = shape;
        let layout = |seqlen, heads, dim| TensorLayout::contiguous([s.batch, seqlen, heads, dim]);
        Self::new(
            dtype,
            layout(s.seqlen_q, s.heads_q, s.head_dim_qk),
            layout(s.seqlen_k, s.heads_kv, s.head_dim_qk),
            layout(s.seqlen_k, s.heads_kv, s.head_dim_v),
            layout(s.seqlen_q, s.heads_q, s.head_dim_v),
        )
    }

    /// Sets the output's element type.
    #[must_use]
    pub fn out_dtype(mut self, out_dtype: OutDType) -> Self {
        self.out_dtype = out_dtype;
        self
    }

    /// Sets how many scales q, k and v have.
    #[must_use]
    pub fn scales(mut self, scales: Scales) -> Self {
        self.scales = scales;
        self
    }

    /// Sets whether the log-sum-exp is wanted.
    #[must_use]
    pub fn lse(mut self, wanted: bool) -> Self {
        self.lse = wanted;
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

    /// Chooses the algorithm.
    #[must_use]
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Chooses the tier.
    #[must_use]
    pub fn arch(mut self, arch: ArchChoice) -> Self {
        self.arch = arch;
        self
    }

    /// The sizes, as `q`, `k` and `v` state them. Consistent only if [`Problem::plan`] accepts the problem.
    pub fn shape(&self) -> Shape {
        Shape {
            batch: self.q.shape[0],
            seqlen_q: self.q.shape[1],
            seqlen_k: self.k.shape[1],
            heads_q: self.q.shape[2],
            heads_kv: self.k.shape[2],
            head_dim_qk: self.q.shape[3],
            head_dim_v: self.v.shape[3],
        }
    }

    /// Whether there is a causal mask or a window.
    pub(crate) fn is_masked(&self) -> bool {
        self.causal.is_some() || self.window != Window::default()
    }

    /// The factor of the scores: `scale`, or 1/sqrt(head_dim_qk).
    pub fn softmax_scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| default_scale(self.q.shape[3]))
    }

    /// Element type of out.
    pub fn out_element(&self) -> DType {
        self.out_dtype.of(self.dtype)
    }

    /// The inputs that may have scales, in the order q, k, v: what the library calls their scales, the tensor, and how many there are.
    pub(crate) fn scaled(&self) -> [ScaledTensor<'_>; 3] {
        let scaled = |argument, tensor, layout| ScaledTensor {
            argument,
            tensor,
            layout,
        };
        [
            scaled("q_scale", &self.q, self.scales.q),
            scaled("k_scale", &self.k, self.scales.k),
            scaled("v_scale", &self.v, self.scales.v),
        ]
    }

    /// Shape of the log-sum-exp: batch, heads_q, seqlen_q.
    pub fn lse_shape(&self) -> [usize; 3] {
        [self.q.shape[0], self.q.shape[2], self.q.shape[1]]
    }
}

/// 1/sqrt(head_dim_qk).
pub(crate) fn default_scale(head_dim_qk: usize) -> f32 {
    (1.0 / (head_dim_qk as f64).sqrt()) as f32
}
