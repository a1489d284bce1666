//! Checks of a problem, each with its own message.

use flashtile_abi::{Band, DType, params::WIDEST_QUICK_CAP, variants};

use crate::{
    error::{Error, Result},
    layout::TensorLayout,
    plan::scales,
    problem::{OutDType, Problem, Shape},
};

/// Longest grid in x.
pub(crate) const MAX_GRID: u64 = (1 << 31) - 1;

/// Largest head_dim that any kernel has. What a tier has is a question of its own (`choose`).
const MAX_HEAD_DIM: u32 = {
    let (all, mut widest, mut at) = (variants(), 0, 0);
    while at < all.len() {
        let tile = &all[at].tile;
        let wider = if tile.head_dim_qk > tile.head_dim_v {
            tile.head_dim_qk
        } else {
            tile.head_dim_v
        };
        if wider > widest {
            widest = wider;
        }
        at += 1;
    }
    widest
};

/// Checks everything but the numbers of the softmax, and returns the sizes.
pub(crate) fn check_shapes(problem: &Problem) -> Result<Shape> {
    let shape = problem.shape();
    let Shape {
        batch,
        seqlen_q,
        seqlen_k,
        heads_q,
        heads_kv,
        head_dim_qk,
        head_dim_v,
    } = shape;
    let expect = |argument, layout: &TensorLayout, wanted: [usize; 4]| {
        if layout.shape == wanted {
            Ok(())
        } else {
            Err(Error::bad(
                argument,
                format!("shape {wanted:?}"),
                format!("shape {:?}", layout.shape),
            ))
        }
    };
    if heads_q == 0 {
        return Err(Error::bad(
            "q",
            "at least one head",
            format!("shape {:?}", problem.q.shape),
        ));
    }
    if heads_kv == 0 {
        return Err(Error::bad(
            "k",
            "at least one head",
            format!("shape {:?}", problem.k.shape),
        ));
    }
    let dim = |argument, found: usize| {
        if found == 0 || found > MAX_HEAD_DIM as usize {
            Err(Error::bad(
                argument,
                format!("a head_dim between 1 and {MAX_HEAD_DIM}"),
                format!("head_dim {found}"),
            ))
        } else {
            Ok(())
        }
    };
    dim("q", head_dim_qk)?;
    dim("v", head_dim_v)?;
    expect("k", &problem.k, [batch, seqlen_k, heads_kv, head_dim_qk])?;
    expect("v", &problem.v, [batch, seqlen_k, heads_kv, head_dim_v])?;
    expect("out", &problem.out, [batch, seqlen_q, heads_q, head_dim_v])?;
    if !heads_q.is_multiple_of(heads_kv) {
        return Err(Error::bad(
            "q",
            format!("a number of heads that is a multiple of k's {heads_kv}"),
            format!("{heads_q} heads"),
        ));
    }
    for (argument, seqlen) in [("q", seqlen_q), ("k", seqlen_k)] {
        if seqlen > Band::MAX_SEQLEN as usize {
            return Err(Error::bad(
                argument,
                format!("a sequence of at most {} tokens", Band::MAX_SEQLEN),
                format!("{seqlen} tokens"),
            ));
        }
    }
    let element = problem.dtype.bytes();
    problem.q.check("q", element)?;
    problem.k.check("k", element)?;
    problem.v.check("v", element)?;
    problem.out.check("out", problem.out_element().bytes())?;
    problem.out.check_distinct("out")?;
    check_out_dtype(problem.dtype, problem.out_dtype)?;
    scales::check(problem)?;
    if problem.lse {
        let bytes = problem.lse_shape().iter().try_fold(4i64, |product, &n| {
            product.checked_mul(i64::try_from(n).ok()?)
        });
        if bytes.is_none() {
            return Err(Error::bad(
                "lse",
                "a tensor whose bytes can be counted in 63 bits",
                format!("shape {:?}", problem.lse_shape()),
            ));
        }
    }
    Ok(shape)
}

/// Refuses an output type that no kernel writes for such inputs.
pub(crate) fn check_out_dtype(inputs: DType, out_dtype: OutDType) -> Result<()> {
    let out = out_dtype.of(inputs);
    let written = [OutDType::Same, OutDType::F32].map(|out| out.of(inputs));
    if written.contains(&out) || inputs == DType::E4m3 {
        return Ok(());
    }
    let [same, wide] = written.map(DType::as_str);
    let expected = match same == wide {
        true => same.into(),
        false => format!("{same} or {wide}"),
    };
    Err(Error::bad(
        "out_dtype",
        format!("{expected}, since the inputs are {}", inputs.as_str()),
        out.as_str(),
    ))
}

/// Blocks of the grid: `m_blocks * heads_q * batch`, or why there cannot be so many.
pub(crate) fn grid_blocks(shape: &Shape, m_blocks: u64) -> Result<u32> {
    let blocks = u64::try_from(shape.heads_q)
        .ok()
        .and_then(|heads| m_blocks.checked_mul(heads))
        .and_then(|n| n.checked_mul(u64::try_from(shape.batch).ok()?));
    match blocks {
        Some(blocks) if blocks <= MAX_GRID => Ok(blocks as u32),
        _ => Err(Error::bad(
            "q",
            format!("at most {MAX_GRID} blocks of queries over all heads and batches"),
            format!(
                "{m_blocks} blocks in each of {} heads in each of {} batches",
                shape.heads_q, shape.batch
            ),
        )),
    }
}

/// Refuses a factor of scores that is no number.
pub(crate) fn check_scale(scale: f32) -> Result<()> {
    match scale.is_finite() {
        true => Ok(()),
        false => Err(Error::bad("scale", "a finite number", scale.to_string())),
    }
}

/// Refuses a cap that is none.
pub(crate) fn check_cap(softcap: Option<f32>) -> Result<()> {
    match softcap {
        Some(cap) if !(cap.is_finite() && cap > 0.0) => Err(Error::bad(
            "softcap",
            "a positive finite number",
            cap.to_string(),
        )),
        _ => Ok(()),
    }
}

/// Constants of the softmax as the kernels take them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Softmax {
    /// As [`flashtile_abi::AttentionParams::exponent_scale`].
    pub exponent_scale: f32,
    /// As [`flashtile_abi::AttentionParams::cap_scale`].
    pub cap_scale: f32,
    /// The scale is negative.
    pub negate_q: bool,
    /// Scores are capped.
    pub capped: bool,
    /// And so wide that kernels take a longer way.
    pub wide_cap: bool,
}

/// Checks scale and softcap and folds them together.
pub(crate) fn softmax(problem: &Problem) -> Result<Softmax> {
    let scale = problem.softmax_scale();
    check_scale(scale)?;
    check_cap(problem.softcap)?;
    if let Some(cap) = problem.softcap
        && problem.dtype == DType::E4m3
        && cap > WIDEST_QUICK_CAP
    {
        return Err(Error::bad(
            "softcap",
            format!("at most {WIDEST_QUICK_CAP} with e4m3 elements"),
            cap.to_string(),
        ));
    }
    let log2_e = std::f64::consts::LOG2_E;
    let magnitude = f64::from(scale).abs();
    // A ratio too small for a normal f32 (scale 0 included) caps nothing: tanh is the identity there.
    let cap = problem
        .softcap
        .map(f64::from)
        .filter(|cap| magnitude / cap >= f64::from(f32::MIN_POSITIVE));
    let (exponent, cap_scale) = match cap {
        Some(cap) => (cap * log2_e, magnitude / cap),
        None => (magnitude * log2_e, 0.0),
    };
    let (exponent, cap_scale) = (exponent as f32, cap_scale as f32);
    if !exponent.is_finite() {
        let (argument, found) = match cap {
            Some(cap) => ("softcap", cap as f32),
            None => ("scale", scale),
        };
        return Err(Error::bad(
            argument,
            "a number that stays finite when multiplied by log2(e)",
            found.to_string(),
        ));
    }
    if !cap_scale.is_finite() {
        return Err(Error::bad(
            "softcap",
            format!("a number by which scale {scale} can be divided"),
            problem.softcap.unwrap_or_default().to_string(),
        ));
    }
    Ok(Softmax {
        // The kernels want it positive. Scores times the smallest normal number weigh alike.
        exponent_scale: exponent.max(f32::MIN_POSITIVE),
        cap_scale,
        negate_q: scale < 0.0,
        capped: cap.is_some(),
        wide_cap: cap.is_some_and(|cap| cap > f64::from(WIDEST_QUICK_CAP)),
    })
}
