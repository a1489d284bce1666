//! Checks of a problem, each with its own message.

use flashtile_abi::{Band, DType};

use super::{
    layout::{CacheLayout, MaskType},
    problem::{CacheScales, SequenceLengths, ServingProblem},
};
use crate::{
    error::{Error, Result},
    layout::TensorLayout,
    plan::{check_cap, check_out_dtype, check_scale},
};

/// Sizes of a problem that passed its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub heads_q: usize,
    pub heads_kv: usize,
    pub head_dim_qk: usize,
    pub head_dim_v: usize,
}

/// Checks a problem without regard to devices, kernels and the numbers that say where sequences are.
pub(super) fn check(problem: &ServingProblem) -> Result<Sizes> {
    if problem.dtype == DType::E4m3 {
        return Err(Error::bad("dtype", "f16, bf16 or f32", "e4m3"));
    }
    let narrow = problem.kv_dtype == DType::E4m3 && problem.dtype != DType::F32;
    if problem.kv_dtype != problem.dtype && !narrow {
        return Err(Error::bad(
            "kv_dtype",
            match problem.dtype {
                DType::F32 => "f32, as the queries".into(),
                dtype => format!("{}, as the queries, or e4m3", dtype.as_str()),
            },
            problem.kv_dtype.as_str(),
        ));
    }
    if problem.kv_scales != CacheScales::None && !narrow {
        return Err(Error::bad(
            "k_scale",
            "no scales, since keys and values are not e4m3",
            format!("{:?}", problem.kv_scales),
        ));
    }
    check_out_dtype(problem.dtype, problem.out_dtype)?;
    let sizes = shapes(problem)?;
    layouts(problem)?;
    lengths(problem)?;
    pairs(problem, &sizes)?;
    check_scale(problem.softmax_scale())?;
    check_cap(problem.softcap)?;
    if problem
        .ranges
        .is_some_and(|count| i32::try_from(count).is_err())
    {
        return Err(Error::bad(
            "ranges",
            "fewer than 2^31 ranges of a sequence",
            format!("{:?}", problem.ranges),
        ));
    }
    if problem.lse {
        countable("lse", &problem.lse_shape(), 4)?;
    }
    Ok(sizes)
}

fn shapes(problem: &ServingProblem) -> Result<Sizes> {
    let [q_blocks, q_rows, heads_q, head_dim_qk] = problem.q.shape;
    let [blocks, rows, heads_kv, _] = problem.k.shape;
    let head_dim_v = problem.v.shape[3];
    for (argument, n, shape) in [
        ("q", heads_q, problem.q.shape),
        ("k", heads_kv, problem.k.shape),
    ] {
        if n == 0 {
            return Err(Error::bad(
                argument,
                "at least one head",
                format!("shape {shape:?}"),
            ));
        }
    }
    for (argument, dim) in [("q", head_dim_qk), ("v", head_dim_v)] {
        if dim == 0 {
            return Err(Error::bad(
                argument,
                "a head_dim of at least 1",
                "head_dim 0",
            ));
        }
    }
    if !heads_q.is_multiple_of(heads_kv) {
        return Err(Error::bad(
            "q",
            format!("a number of heads that is a multiple of k's {heads_kv}"),
            format!("{heads_q} heads"),
        ));
    }
    let wanted = match problem.q_lengths.starts {
        true => 1,
        false => problem.batch,
    };
    if q_blocks != wanted {
        return Err(Error::bad(
            "q",
            match problem.q_lengths.starts {
                true => "one block of tokens, [1, tokens, heads, head_dim], since sequences follow each other".into(),
                false => format!("{wanted} sequences, as the batch has"),
            },
            format!("shape {:?}", problem.q.shape),
        ));
    }
    let expect = |argument, found: [usize; 4], wanted: [usize; 4]| match found == wanted {
        true => Ok(()),
        false => Err(Error::bad(
            argument,
            format!("shape {wanted:?}"),
            format!("shape {found:?}"),
        )),
    };
    let k_blocks = match (problem.pages, problem.k_lengths.starts) {
        (Some(_), _) => blocks,
        (None, true) => 1,
        (None, false) => problem.batch,
    };
    expect(
        "k",
        problem.k.shape,
        [k_blocks, rows, heads_kv, head_dim_qk],
    )?;
    expect("v", problem.v.shape, [blocks, rows, heads_kv, head_dim_v])?;
    if problem.latent {
        latent(problem)?;
    }
    expect(
        "out",
        problem.out.shape,
        [q_blocks, q_rows, heads_q, head_dim_v],
    )?;
    Ok(Sizes {
        heads_q,
        heads_kv,
        head_dim_qk,
        head_dim_v,
    })
}

/// Checks that values can be the first elements of keys.
fn latent(problem: &ServingProblem) -> Result<()> {
    let (k, v) = (problem.k, problem.v);
    if v.shape[3] > k.shape[3] {
        return Err(Error::bad(
            "v",
            format!(
                "a head_dim of at most {}, since values are elements of keys",
                k.shape[3]
            ),
            format!("head_dim {}", v.shape[3]),
        ));
    }
    let whole = CacheLayout {
        shape: k.shape,
        ..v
    };
    if whole != k {
        return Err(Error::bad(
            "v",
            format!("k's layout, since values are elements of keys: {k:?}"),
            format!("{v:?}"),
        ));
    }
    // Elements of keys start at their lowest one, and so must values.
    if k.chunk_stride < 0 || k.element_stride < 0 {
        return Err(Error::bad(
            "k",
            "a row whose elements have strides that are not negative, since values are elements of keys",
            format!("strides {} and {}", k.chunk_stride, k.element_stride),
        ));
    }
    Ok(())
}

fn layouts(problem: &ServingProblem) -> Result<()> {
    let element = problem.dtype.bytes();
    problem.q.check("q", element)?;
    problem.k.check("k", problem.kv_dtype.bytes())?;
    problem.v.check("v", problem.kv_dtype.bytes())?;
    problem.out.check("out", problem.out_element().bytes())?;
    problem.out.check_distinct("out")?;
    let Some(pages) = problem.pages else {
        return Ok(());
    };
    if problem.k.shape[1] == 0 {
        return Err(Error::bad(
            "k",
            "pages of at least one row",
            format!("shape {:?}", problem.k.shape),
        ));
    }
    for (n, what) in [(problem.k.shape[0], "pages"), (problem.k.shape[1], "rows")] {
        if i32::try_from(n).is_err() {
            return Err(Error::bad(
                "k",
                format!("fewer than 2^31 {what}"),
                n.to_string(),
            ));
        }
    }
    pages.tensor(problem.batch).check("table", 4)
}

fn lengths(problem: &ServingProblem) -> Result<()> {
    if i32::try_from(problem.batch).is_err() {
        return Err(Error::bad(
            "batch",
            "fewer than 2^31 sequences",
            problem.batch.to_string(),
        ));
    }
    let sides: [(_, &SequenceLengths, _, _); 2] = [
        ("q", &problem.q_lengths, problem.q.shape[1], false),
        (
            "k",
            &problem.k_lengths,
            problem.k_room(),
            problem.pages.is_some(),
        ),
    ];
    for (argument, lengths, room, paged) in sides {
        let longest = lengths.longest;
        if longest > Band::MAX_SEQLEN as usize {
            return Err(Error::bad(
                argument,
                format!("a longest sequence of at most {} tokens", Band::MAX_SEQLEN),
                format!("{longest} tokens"),
            ));
        }
        if !paged && i32::try_from(room).is_err() {
            return Err(Error::bad(
                argument,
                "fewer than 2^31 tokens",
                format!("{room} tokens"),
            ));
        }
        if !lengths.starts && !lengths.used && problem.batch > 0 && room > longest {
            return Err(Error::bad(
                argument,
                format!("sequences of at most {longest} tokens, as the longest is said to have"),
                format!("sequences of {room} tokens"),
            ));
        }
    }
    Ok(())
}

fn pairs(problem: &ServingProblem, sizes: &Sizes) -> Result<()> {
    let whole = [
        problem.batch,
        sizes.heads_q,
        problem.q_lengths.longest,
        problem.k_lengths.longest,
    ];
    let check = |argument, shape: [usize; 4], tensor: TensorLayout, bytes| {
        if !shape.iter().zip(whole).all(|(&n, all)| n == 1 || n == all) {
            return Err(Error::bad(
                argument,
                format!("a shape that broadcasts to {whole:?}: each dimension that long or 1"),
                format!("shape {shape:?}"),
            ));
        }
        // Not the rows of a tensor: the last stride is free.
        let [a, b, c, d] = tensor.shape;
        let [of_a, of_b, of_c, of_d] = tensor.strides;
        CacheLayout {
            shape: [a, b, c, d],
            strides: [of_a, of_b, of_c],
            chunk: d.max(1),
            chunk_stride: 0,
            element_stride: of_d,
        }
        .check(argument, bytes)
    };
    if let Some(bias) = problem.bias {
        let bytes = problem.bias_element(bias.element).bytes();
        check("bias", bias.shape, bias.tensor(), bytes)?;
    }
    if let Some(mask) = problem.mask {
        check("mask", mask.shape, mask.tensor(), mask.element_bytes())?;
        if mask.element == MaskType::Bit {
            if mask.shape[3] != whole[3] {
                return Err(Error::bad(
                    "mask",
                    format!("a bit for each of {} keys", whole[3]),
                    format!("shape {:?}", mask.shape),
                ));
            }
            if mask.strides[3] != 1 && mask.shape[3] > 32 {
                return Err(Error::bad(
                    "mask",
                    "words of bits that follow each other, of stride 1",
                    format!("strides {:?}", mask.strides),
                ));
            }
        }
    }
    Ok(())
}

/// Refuses a contiguous tensor whose bytes cannot be counted.
fn countable(argument: &'static str, shape: &[usize], element_bytes: i64) -> Result<()> {
    let bytes = shape.iter().try_fold(element_bytes, |product, &n| {
        product.checked_mul(i64::try_from(n).ok()?)
    });
    match bytes {
        Some(_) => Ok(()),
        None => Err(Error::bad(
            argument,
            "a tensor whose bytes can be counted in 63 bits",
            format!("shape {shape:?}"),
        )),
    }
}
