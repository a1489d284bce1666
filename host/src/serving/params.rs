//! From a problem to the parameters of its kernel.

use flashtile_abi::{
    Band, Divisor, LseView, ServingParams, TensorView,
    serving::{
        CacheView, HeadView, Lengths, Pages, PairView, PartialView, RangeView,
        flags::{BIAS_F32, BOTTOM_RIGHT, MASK_BITS, MODIFIED, OUT_F32},
    },
};

use super::{
    layout::{BiasType, CacheLayout, MaskType},
    problem::{SequenceLengths, ServingProblem},
    tiling::Tiling,
    validate::Sizes,
};
use crate::{
    DType,
    error::{Error, Result},
    layout::TensorLayout,
    plan::{band_of, view},
    problem::CausalAlignment,
};

/// Parameters with addresses 0 and no alignment flags.
pub(super) fn params(
    problem: &ServingProblem,
    sizes: &Sizes,
    tiling: &Tiling,
) -> Result<ServingParams> {
    let element = problem.dtype.bytes();
    let count = |argument, n: usize| {
        u32::try_from(n).map_err(|_| Error::bad(argument, "fewer than 2^32 heads", n.to_string()))
    };
    let heads_q = count("q", sizes.heads_q)?;
    let heads_kv = count("k", sizes.heads_kv)?;
    let lse = LseView {
        ptr: 0,
        // An overflowing LSE was refused, if it is wanted at all.
        batch_stride: match problem.q.shape[0] > 1 {
            true => (problem.q.shape[1] as i64 * 4).wrapping_mul(sizes.heads_q as i64),
            false => 0,
        },
        head_stride: problem.q.shape[1] as i64 * 4,
    };
    let scores = scores(problem)?;
    let mut flags = scores.flags;
    if problem.out_element() == DType::F32 {
        flags |= OUT_F32;
    }
    if problem.causal != Some(CausalAlignment::TopLeft) {
        flags |= BOTTOM_RIGHT;
    }
    // Relative to the diagonal: of one query and one key.
    let band = Band {
        seqlen_k: 0,
        ..band_of(problem.causal, problem.window, 1, 1)
    };
    let pages = problem.pages.map_or(Pages::default(), |pages| {
        let table = view(&pages.tensor(problem.batch), 4);
        Pages {
            table: 0,
            sequence_stride: table.batch_stride,
            entry_stride: table.row_stride,
            page: Divisor::new(problem.k.shape[1] as u32),
            blocks: problem.k.shape[0] as u32,
        }
    });
    let lengths = |lengths: &SequenceLengths, room: usize| Lengths {
        starts: 0,
        used: 0,
        tokens: i32::try_from(room).unwrap_or(i32::MAX),
        longest: lengths.longest as i32,
    };
    let ranges = problem.ranges.unwrap_or(0);
    let scales = problem.kv_scales.view(sizes.heads_kv);
    Ok(ServingParams {
        q: view(&problem.q, element),
        k: cache_view("k", &problem.k, problem.kv_dtype.bytes())?,
        v: cache_view("v", &problem.v, problem.kv_dtype.bytes())?,
        out: view(&problem.out, problem.out_element().bytes()),
        lse,
        partial: partial(problem, lse),
        q_lengths: lengths(&problem.q_lengths, problem.q.shape[1]),
        k_lengths: lengths(&problem.k_lengths, problem.k_room()),
        pages,
        k_scale: scales,
        v_scale: scales,
        alibi: HeadView {
            ptr: 0,
            batch_stride: match problem.alibi {
                Some(true) => i64::from(heads_q) * 4,
                _ => 0,
            },
        },
        sink: HeadView::default(),
        bias: problem.bias.map_or(PairView::default(), |bias| {
            let bytes = problem.bias_element(bias.element).bytes();
            pair_view(&bias.tensor(), bytes)
        }),
        mask: problem.mask.map_or(PairView::default(), |mask| {
            pair_view(&mask.tensor(), mask.element_bytes())
        }),
        ranges: RangeView {
            ptr: 0,
            batch_stride: ranges as i64 * 8,
            count: ranges as u32,
            padding: 0,
        },
        band,
        heads_q,
        heads_kv,
        q_per_kv: Divisor::new(heads_q / heads_kv),
        m_blocks: tiling.m_blocks,
        splits: tiling.splits,
        split_keys: tiling.split_keys,
        head_dim_qk: sizes.head_dim_qk as u32,
        head_dim_v: sizes.head_dim_v as u32,
        exponent_scale: scores.exponent_scale,
        softmax_scale: scores.softmax_scale,
        softcap: scores.softcap,
        cap_scale: scores.cap_scale,
        flags,
    })
}

/// What becomes of products.
struct Scores {
    exponent_scale: f32,
    softmax_scale: f32,
    softcap: f32,
    cap_scale: f32,
    flags: u32,
}

fn scores(problem: &ServingProblem) -> Result<Scores> {
    let scale = problem.softmax_scale();
    // A ratio too small for a normal f32 (scale 0 included) caps nothing: tanh is the identity there.
    let cap = problem
        .softcap
        .filter(|&cap| (f64::from(scale) / f64::from(cap)).abs() >= f64::from(f32::MIN_POSITIVE));
    let cap_scale = cap.map_or(0.0, |cap| f64::from(scale) / f64::from(cap)) as f32;
    if !cap_scale.is_finite() {
        return Err(Error::bad(
            "softcap",
            format!("a number by which scale {scale} can be divided"),
            problem.softcap.unwrap_or_default().to_string(),
        ));
    }
    let direct = (f64::from(scale) * std::f64::consts::LOG2_E) as f32;
    let modified = cap.is_some()
        || problem.alibi.is_some()
        || problem.bias.is_some()
        || problem.mask.is_some()
        || scale <= 0.0
        || !direct.is_normal();
    let mut flags = 0;
    if modified {
        flags |= MODIFIED;
    }
    if problem
        .bias
        .is_some_and(|bias| bias.element == BiasType::F32)
    {
        flags |= BIAS_F32;
    }
    if problem
        .mask
        .is_some_and(|mask| mask.element == MaskType::Bit)
    {
        flags |= MASK_BITS;
    }
    Ok(Scores {
        exponent_scale: match modified {
            true => std::f32::consts::LOG2_E,
            false => direct,
        },
        softmax_scale: scale,
        softcap: cap.unwrap_or(0.0),
        cap_scale,
        flags,
    })
}

/// Shape of one part's outputs: kernels write them by 16 bytes, four numbers.
pub(super) fn partial_shape(problem: &ServingProblem) -> [usize; 4] {
    let [blocks, rows, heads, dim] = problem.out.shape;
    [blocks, rows, heads, dim.next_multiple_of(4)]
}

/// Partial results: outputs [splits, blocks, rows, heads, head_dim_v], log-sum-exps as the whole's for each split.
fn partial(problem: &ServingProblem, lse: LseView) -> PartialView {
    let shape = partial_shape(problem);
    let layout = TensorLayout::contiguous(shape);
    let rows = |factors: &[usize]| {
        factors
            .iter()
            .fold(4i64, |bytes, &n| bytes.wrapping_mul(n as i64))
    };
    PartialView {
        out: view(&layout, 4),
        out_stride: rows(&shape),
        lse,
        lse_stride: rows(&shape[..3]),
    }
}

/// Byte strides of a checked cache; 0 for a dimension that never steps.
pub(crate) fn cache_view(
    argument: &'static str,
    layout: &CacheLayout,
    element: u32,
) -> Result<CacheView> {
    let bytes = i64::from(element);
    let [blocks, rows, heads, dim] = layout.shape;
    // Elements of the pieces that kernels know.
    let piece = 16 / element as usize;
    let chunk_stride = match (dim <= piece, layout.is_even()) {
        (true, _) if dim <= layout.chunk => 0,
        (_, true) => layout.element_stride.saturating_mul(piece as i64),
        (_, false) if layout.chunk == piece => layout.chunk_stride,
        _ => {
            return Err(Error::bad(
                argument,
                format!("rows of pieces of {piece} elements, or pieces that follow each other"),
                format!("{layout:?}"),
            ));
        }
    };
    let stride = |extent: usize, stride: i64| match extent > 1 {
        true => stride.wrapping_mul(bytes),
        false => 0,
    };
    Ok(CacheView {
        ptr: 0,
        block_stride: stride(blocks, layout.strides[0]),
        row_stride: stride(rows, layout.strides[1]),
        head_stride: stride(heads, layout.strides[2]),
        chunk_stride: chunk_stride.wrapping_mul(bytes),
        // An element without a neighbour is as good as contiguous.
        element_stride: match dim.min(layout.chunk) > 1 {
            true => layout.element_stride.wrapping_mul(bytes),
            false => bytes,
        },
    })
}

/// Byte strides of a function of pairs; 0 for a dimension of one element.
fn pair_view(tensor: &TensorLayout, element_bytes: u32) -> PairView {
    let TensorView {
        batch_stride,
        // A tensor's second dimension is its rows; a pair's, its heads.
        row_stride: of_heads,
        head_stride: of_rows,
        ..
    } = view(tensor, element_bytes);
    PairView {
        ptr: 0,
        batch_stride,
        head_stride: of_heads,
        row_stride: of_rows,
        key_stride: match tensor.shape[3] > 1 {
            true => tensor.strides[3].wrapping_mul(i64::from(element_bytes)),
            false => 0,
        },
    }
}
