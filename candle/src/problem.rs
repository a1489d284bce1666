//! flashtile's description of a call, from candle's layouts. What tensors hold is not looked at.

use candle_core::{DType, Layout, Result, Shape, Tensor};
use flashtile::{
    CausalAlignment, TensorLayout,
    serving::{
        BiasType, CacheLayout, CacheScales, MaskType, PageTable, PairLayout, ServingProblem,
    },
};

use crate::{attention::Attention, error::bad};

/// A call, described.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub problem: ServingProblem,
    pub dtype: DType,
    /// Shape of out, without strides.
    pub out: Shape,
    /// Shape of the log-sum-exp, contiguous.
    pub lse: Shape,
}

impl Task {
    /// Describes a call on tensors of such types and layouts, in the order q, k, v. Without a layout, out is contiguous.
    pub fn new(
        attention: &Attention,
        dtypes: [DType; 3],
        [q, k, v]: [&Layout; 3],
        out: Option<&Layout>,
        lse: bool,
    ) -> Result<Self> {
        let (dtype, narrow) = element(dtypes)?;
        let varlen_q = attention.q_starts.is_some();
        let q = queries("q", q, varlen_q)?;
        let [k, v] = match &attention.table {
            Some(_) => [page_keys("k", k)?, CacheLayout::from_tensor(dense("v", v)?)],
            None => {
                let varlen = attention.k_starts.is_some();
                let rows = |argument, layout| {
                    let layout = queries(argument, layout, varlen)?;
                    Ok::<_, candle_core::Error>(CacheLayout::from_tensor(layout))
                };
                [rows("k", k)?, rows("v", v)?]
            }
        };
        if let (Some(_), Some(size)) = (&attention.table, attention.page_size)
            && size != k.shape[1]
        {
            return Err(bad(
                "page_block_size",
                format!("{}, as k has rows in a page", k.shape[1]),
                size,
            ));
        }
        let batch = match &attention.q_starts {
            Some(starts) => sequences("seqlens_q", &starts.numbers)?,
            None => q.shape[0],
        };

        let mut problem = ServingProblem::new(dtype_of(dtype), batch, q, k, v)
            .scale(attention.softmax_scale)
            .splits(attention.splits)
            .lse(lse);
        problem.softcap = attention.softcap;
        problem = lengths(problem, attention, batch)?;
        problem = masks(problem, attention);
        problem = additions(problem, attention, dtypes[0])?;
        let scales = scales(attention.scales.as_ref(), Some(batch), k.shape[2])?;
        if narrow || scales != CacheScales::None {
            let kv_dtype = match narrow {
                true => flashtile::DType::E4m3,
                false => problem.dtype,
            };
            problem = problem.kv_dtype(kv_dtype, scales);
        }

        let [blocks, rows, heads, _] = q.shape;
        let dim = v.shape[3];
        let (out_shape, lse_shape) = match varlen_q {
            true => (Shape::from((rows, heads, dim)), Shape::from((heads, rows))),
            false => (
                Shape::from((blocks, rows, heads, dim)),
                Shape::from((blocks, heads, rows)),
            ),
        };
        if let Some(out) = out {
            if out.shape() != &out_shape {
                return Err(bad(
                    "out",
                    format!("shape {out_shape:?}"),
                    format!("shape {:?}", out.shape()),
                ));
            }
            problem = problem.out(queries("out", out, varlen_q)?);
        }
        Ok(Self {
            problem,
            dtype,
            out: out_shape,
            lse: lse_shape,
        })
    }

    /// The same, with an output without gaps.
    pub fn packed(&self) -> Self {
        let mut packed = self.clone();
        packed.problem.out = TensorLayout::contiguous(self.problem.out.shape);
        packed
    }

    /// The same as a problem of equally long sequences, if it is one: for kernels that know no others.
    #[cfg(any(feature = "cuda", test))]
    pub fn dense(&self) -> Option<flashtile::Problem> {
        use flashtile::{Problem, serving::Splits};

        let p = &self.problem;
        let varied = [p.q_lengths, p.k_lengths]
            .iter()
            .any(|l| l.starts || l.used);
        let added = p.alibi.is_some() || p.sink || p.bias.is_some();
        let masked = p.mask.is_some() || p.ranges.is_some();
        let narrow = p.kv_dtype != p.dtype;
        if varied || added || masked || narrow || p.pages.is_some() || p.splits != Splits::Auto {
            return None;
        }
        let tensor = |cache: &CacheLayout| {
            let [block, row, head] = cache.strides;
            TensorLayout {
                shape: cache.shape,
                strides: [block, row, head, cache.element_stride],
            }
        };
        let mut dense = Problem::new(p.dtype, p.q, tensor(&p.k), tensor(&p.v), p.out).lse(p.lse);
        dense.causal = p.causal;
        dense.window = p.window;
        dense.scale = p.scale;
        dense.softcap = p.softcap;
        Some(dense)
    }
}

/// The type of q, and whether k and v are e4m3 numbers; else they are as q.
fn element([q, k, v]: [DType; 3]) -> Result<(DType, bool)> {
    if !matches!(q, DType::F16 | DType::BF16 | DType::F32) {
        return Err(bad("q", "f16, bf16 or f32", q.as_str()));
    }
    let narrow = q != DType::F32 && matches!(k, DType::F8E4M3 | DType::U8);
    if k != q && !narrow {
        let narrow = match q {
            DType::F32 => "",
            _ => ", or f8e4m3, or u8 as its codes",
        };
        return Err(bad(
            "k",
            format!("{}, as q{narrow}", q.as_str()),
            k.as_str(),
        ));
    }
    if v != k {
        return Err(bad("v", format!("{}, as k", k.as_str()), v.as_str()));
    }
    Ok((q, narrow))
}

/// How many scales k and v have. Without a batch, sequences have none of their own.
pub(crate) fn scales(
    scales: Option<&[Tensor; 2]>,
    batch: Option<usize>,
    heads_kv: usize,
) -> Result<CacheScales> {
    let Some([k, v]) = scales else {
        return Ok(CacheScales::None);
    };
    let mut kinds = vec![
        (CacheScales::PerTensor, vec![1]),
        (CacheScales::PerHead, vec![heads_kv]),
    ];
    kinds.extend(batch.map(|batch| (CacheScales::PerSequence, vec![batch, heads_kv])));
    let found = kinds.iter().find(|(_, shape)| k.dims() == *shape);
    let Some((kind, shape)) = found else {
        let expected = match batch {
            Some(batch) => format!("shape [1], [{heads_kv}] or [{batch}, {heads_kv}]"),
            None => format!("shape [1] or [{heads_kv}]"),
        };
        return Err(bad("k_scale", expected, format!("shape {:?}", k.dims())));
    };
    for (argument, scale) in [("k_scale", k), ("v_scale", v)] {
        expect(argument, scale, shape, &[DType::F32])?;
    }
    Ok(*kind)
}

/// flashtile's name of a type that [`element`] lets pass.
pub(crate) fn dtype_of(dtype: DType) -> flashtile::DType {
    match dtype {
        DType::F16 => flashtile::DType::F16,
        DType::BF16 => flashtile::DType::Bf16,
        _ => flashtile::DType::F32,
    }
}

/// [batch, seqlen, heads, head_dim]; of sequences that follow each other [tokens, heads, head_dim], as one block.
pub(crate) fn queries(argument: &str, layout: &Layout, varlen: bool) -> Result<TensorLayout> {
    let layout = match varlen {
        false => dense(argument, layout)?,
        true => {
            let &[tokens, heads, dim] = layout.dims() else {
                return Err(rank(argument, "[tokens, heads, head_dim]", layout));
            };
            let [token, head, element] = strides(layout);
            TensorLayout {
                shape: [1, tokens, heads, dim],
                strides: [0, token, head, element],
            }
        }
    };
    match layout.strides[3] == 1 || layout.shape[3] <= 1 {
        true => Ok(layout),
        false => Err(bad(
            argument,
            "a last dimension without gaps, of stride 1",
            format!("strides {:?}", layout.strides),
        )),
    }
}

pub(crate) fn dense(argument: &str, layout: &Layout) -> Result<TensorLayout> {
    let &[a, b, c, d] = layout.dims() else {
        return Err(rank(argument, "four dimensions", layout));
    };
    Ok(TensorLayout {
        shape: [a, b, c, d],
        strides: strides(layout),
    })
}

/// Keys in pages: [pages, rows, heads, head_dim], or vLLM's [pages, heads, head_dim / x, rows, x].
pub(crate) fn page_keys(argument: &str, layout: &Layout) -> Result<CacheLayout> {
    let &[pages, heads, chunks, rows, chunk] = layout.dims() else {
        return Ok(CacheLayout::from_tensor(dense(argument, layout)?));
    };
    let [page, head, chunk_stride, row, element_stride] = strides(layout);
    Ok(CacheLayout {
        shape: [pages, rows, heads, chunks.saturating_mul(chunk)],
        strides: [page, row, head],
        chunk,
        chunk_stride,
        element_stride,
    })
}

/// Strides of a layout whose rank is known. One that no memory has is the largest there is, which flashtile refuses.
pub(crate) fn strides<const N: usize>(layout: &Layout) -> [i64; N] {
    let mut strides = [0; N];
    for (to, &from) in strides.iter_mut().zip(layout.stride()) {
        *to = i64::try_from(from).unwrap_or(i64::MAX);
    }
    strides
}

fn rank(argument: &str, expected: &str, layout: &Layout) -> candle_core::Error {
    bad(argument, expected, format!("shape {:?}", layout.shape()))
}

/// Number of sequences, from where they start.
pub(crate) fn sequences(argument: &str, starts: &Tensor) -> Result<usize> {
    match starts.dims() {
        &[count] if count > 0 => Ok(count - 1),
        found => Err(bad(
            argument,
            "shape [batch + 1]",
            format!("shape {found:?}"),
        )),
    }
}

/// Refuses another shape, gaps, and other types.
pub(crate) fn expect(
    argument: &str,
    tensor: &Tensor,
    shape: &[usize],
    dtypes: &[DType],
) -> Result<()> {
    if tensor.dims() != shape {
        return Err(bad(
            argument,
            format!("shape {shape:?}"),
            format!("shape {:?}", tensor.dims()),
        ));
    }
    if !tensor.is_contiguous() {
        return Err(bad(
            argument,
            "a contiguous tensor",
            format!("strides {:?}", tensor.stride()),
        ));
    }
    typed(argument, tensor, dtypes)
}

pub(crate) fn typed(argument: &str, tensor: &Tensor, dtypes: &[DType]) -> Result<()> {
    if dtypes.contains(&tensor.dtype()) {
        return Ok(());
    }
    let names: Vec<_> = dtypes.iter().map(|dtype| dtype.as_str()).collect();
    Err(bad(argument, names.join(" or "), tensor.dtype().as_str()))
}

/// Types of numbers that say where sequences and pages are.
pub(crate) const INDICES: [DType; 2] = [DType::U32, DType::I32];

fn lengths(
    mut problem: ServingProblem,
    attention: &Attention,
    batch: usize,
) -> Result<ServingProblem> {
    if let Some(starts) = &attention.q_starts {
        expect("seqlens_q", &starts.numbers, &[batch + 1], &INDICES)?;
        problem = problem.q_starts(starts.longest);
    }
    if let Some(starts) = &attention.k_starts {
        expect("seqlens_k", &starts.numbers, &[batch + 1], &INDICES)?;
        problem = problem.k_starts(starts.longest);
    }
    if let Some(used) = &attention.k_used {
        expect("seqused_k", &used.numbers, &[batch], &INDICES)?;
        problem = problem.k_used(used.longest);
    }
    if let Some(table) = &attention.table {
        let &[rows, entries] = table.dims() else {
            return Err(rank(
                "block_table",
                "shape [batch, entries]",
                table.layout(),
            ));
        };
        if rows != batch {
            return Err(bad(
                "block_table",
                format!("shape [{batch}, entries]"),
                format!("shape {:?}", table.dims()),
            ));
        }
        typed("block_table", table, &INDICES)?;
        problem = problem.pages(PageTable {
            entries,
            strides: strides(table.layout()),
        });
    }
    Ok(problem)
}

fn masks(mut problem: ServingProblem, attention: &Attention) -> ServingProblem {
    // More than there are keys is unbounded, as in candle-flash-attn.
    let longest = problem.k_lengths.longest;
    let bounded = |keys: Option<usize>| {
        let keys = keys.filter(|&keys| keys <= longest)?;
        u32::try_from(keys).ok()
    };
    let (left, right) = (
        bounded(attention.window_left),
        bounded(attention.window_right),
    );
    // A window that ends at the diagonal is a causal mask, for which kernels have code of their own.
    let (causal, right) = match right {
        Some(0) => (
            Some(attention.causal.unwrap_or(CausalAlignment::BottomRight)),
            None,
        ),
        right => (attention.causal, right),
    };
    problem.causal = causal;
    problem.window(left, right)
}

/// What is added to scores, and masks of pairs.
fn additions(
    mut problem: ServingProblem,
    attention: &Attention,
    dtype: DType,
) -> Result<ServingProblem> {
    let (batch, heads) = (problem.batch, problem.q.shape[2]);
    if let Some(slopes) = &attention.alibi {
        let by_sequence = slopes.rank() == 2;
        match by_sequence {
            true => expect("alibi_slopes", slopes, &[batch, heads], &[DType::F32])?,
            false => expect("alibi_slopes", slopes, &[heads], &[DType::F32])?,
        }
        problem = problem.alibi(by_sequence);
    }
    if let Some(logits) = &attention.sink {
        expect("sink", logits, &[heads], &[DType::F32])?;
        problem = problem.sink(true);
    }
    if let Some(bias) = &attention.bias {
        typed("bias", bias, &[DType::F32, dtype])?;
        let element = match bias.dtype() == dtype {
            true => BiasType::Same,
            false => BiasType::F32,
        };
        problem = problem.bias(pairs("bias", bias, element)?);
    }
    if let Some(mask) = &attention.mask {
        typed("mask", mask, &[DType::U8])?;
        problem = problem.mask(pairs("mask", mask, MaskType::Byte)?);
    }
    if let Some(ranges) = &attention.ranges {
        let count = match ranges.dims() {
            &[_, count, _] => count,
            _ => 0,
        };
        expect(
            "mm_prefix_ranges",
            ranges,
            &[batch, count, 2],
            &[DType::I32],
        )?;
        problem = problem.ranges(count);
    }
    Ok(problem)
}

fn pairs<T>(argument: &str, tensor: &Tensor, element: T) -> Result<PairLayout<T>> {
    let TensorLayout { shape, strides } = dense(argument, tensor.layout())?;
    Ok(PairLayout {
        element,
        shape,
        strides,
    })
}
