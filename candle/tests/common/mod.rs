//! Attention in plain candle ops, and how far two f32 computations of it may be apart.

#![allow(dead_code)] // Each test file uses its part.

use candle_core::{D, DType, Device, Result, Tensor};

/// Attention of one sequence: f32, q [seqlen_q, heads_q, dim], k and v [seqlen_k, heads_kv, dim].
#[derive(Clone, Debug)]
pub struct Sequence {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

/// What is done with scores, of one sequence.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    pub scale: f32,
    pub softcap: Option<f32>,
    pub left: Option<usize>,
    pub right: Option<usize>,
    /// Query 0 stands at key 0.
    pub top_left: bool,
    /// By head.
    pub slopes: Option<Vec<f32>>,
    /// By head.
    pub sink: Option<Vec<f32>>,
    /// First and last key.
    pub ranges: Vec<(i32, i32)>,
    /// [heads_q, seqlen_q, seqlen_k], or broadcast.
    pub bias: Option<Tensor>,
}

impl Scores {
    /// Whether a query that stands at key `at` sees key `j`.
    fn sees(&self, at: i64, j: i64) -> bool {
        let inside = self.left.is_none_or(|left| j >= at - left as i64)
            && self.right.is_none_or(|right| j <= at + right as i64);
        let holds = |&(first, last): &(i32, i32)| {
            let range = i64::from(first)..=i64::from(last);
            range.contains(&at) && range.contains(&j)
        };
        inside || self.ranges.iter().any(holds)
    }
}

/// out [seqlen_q, heads_q, dim_v] and lse [heads_q, seqlen_q].
pub fn plain(s: &Sequence, scores: &Scores) -> Result<(Tensor, Tensor)> {
    let (queries, heads, _) = s.q.dims3()?;
    let (keys, heads_kv, _) = s.k.dims3()?;
    let dim_v = s.v.dim(2)?;
    if queries == 0 || keys == 0 && scores.sink.is_none() {
        let lse = Tensor::full(f32::NEG_INFINITY, (heads, queries), &Device::Cpu)?;
        return Ok((
            Tensor::zeros((queries, heads, dim_v), DType::F32, &Device::Cpu)?,
            lse,
        ));
    }
    let by_query_head = |x: &Tensor| {
        let (rows, _, dim) = x.dims3()?;
        x.unsqueeze(2)?
            .broadcast_as((rows, heads_kv, heads / heads_kv, dim))?
            .reshape((rows, heads, dim))?
            .transpose(0, 1)?
            .contiguous()
    };
    let (q, k, v) = (
        s.q.transpose(0, 1)?.contiguous()?,
        by_query_head(&s.k)?,
        by_query_head(&s.v)?,
    );
    let mut x = match keys {
        0 => Tensor::zeros((heads, queries, 0), DType::F32, &Device::Cpu)?,
        _ => (q.matmul(&k.t()?)? * f64::from(scores.scale))?,
    };
    if let Some(cap) = scores.softcap {
        let cap = f64::from(cap);
        x = ((x / cap)?.tanh()? * cap)?;
    }
    let offset = if scores.top_left {
        0
    } else {
        keys as i64 - queries as i64
    };
    let pairs = |f: &dyn Fn(i64, i64) -> f32| {
        let numbers = (0..queries as i64)
            .flat_map(|i| (0..keys as i64).map(move |j| (i + offset, j)))
            .map(|(at, j)| f(at, j))
            .collect::<Vec<_>>();
        Tensor::from_vec(numbers, (1, queries, keys), &Device::Cpu)
    };
    if let Some(slopes) = &scores.slopes {
        let slopes = Tensor::new(slopes.as_slice(), &Device::Cpu)?.reshape((heads, 1, 1))?;
        let distances = pairs(&|at, j| -((j - at).abs() as f32))?;
        x = (x + slopes.broadcast_mul(&distances)?)?;
    }
    if let Some(bias) = &scores.bias {
        x = x.broadcast_add(bias)?;
    }
    let hidden = pairs(&|at, j| {
        if scores.sees(at, j) {
            0.0
        } else {
            f32::NEG_INFINITY
        }
    })?;
    x = x.broadcast_add(&hidden)?;
    let v = match &scores.sink {
        None => v,
        Some(sink) => {
            let sink = Tensor::new(sink.as_slice(), &Device::Cpu)?.reshape((heads, 1, 1))?;
            x = Tensor::cat(
                &[x, sink.broadcast_as((heads, queries, 1))?.contiguous()?],
                2,
            )?;
            v.pad_with_zeros(1, 0, 1)?
        }
    };
    // A row that sees nothing has the maximum -inf: 0 instead makes its weights 0, not NaN.
    let max = x.max_keepdim(D::Minus1)?.maximum(f64::from(f32::MIN))?;
    let weights = x.broadcast_sub(&max)?.exp()?;
    let sum = weights.sum_keepdim(D::Minus1)?;
    let lse = (sum.log()? + max)?.squeeze(D::Minus1)?;
    let weights = weights.broadcast_div(&sum.maximum(f64::from(f32::MIN_POSITIVE))?)?;
    Ok((weights.matmul(&v)?.transpose(0, 1)?.contiguous()?, lse))
}

/// How far out and lse of two f32 computations of the same numbers may be apart, out rounded to `dtype` by one of them.
///
/// With u = 2^-24 and N the largest product of the norms of a query and a key times the scale: a score's sum of `dim` products is off by
/// at most `(dim + 4) u N`, in any order, its scale included; a cap by `8 u` of the cap, its tanh good to a few units; what is added to
/// the score, at most A, by `4 u (N + A)`, subtraction of the maximum by as much. Together E. Weights are off by a factor of 1 + E + 8 u, their sum of n by
/// n u more, and products and sums with values, at most V, by V times that and n u. The log-sum-exp is off by E + (n + 8) u and its own
/// rounding. Twice all of it, for two computations.
pub struct Apart {
    pub out: f64,
    pub out_relative: f64,
    pub lse: f64,
}

pub fn apart(s: &Sequence, scores: &Scores, dtype: DType) -> Result<Apart> {
    let norm = |x: &Tensor| largest(&x.sqr()?.sum(D::Minus1)?.sqrt()?);
    let (queries, keys, dim) = (s.q.dim(0)? as f64, s.k.dim(0)? as f64, s.q.dim(2)? as f64);
    let products = norm(&s.q)? * norm(&s.k)? * f64::from(scores.scale).abs();
    let most = |numbers: &Option<Vec<f32>>| {
        let numbers = numbers
            .iter()
            .flatten()
            .filter(|x| x.is_finite())
            .map(|x| f64::from(x.abs()));
        numbers.fold(0.0, f64::max)
    };
    // What is hidden by -inf counts for nothing.
    let bias = match &scores.bias {
        Some(bias) => largest(bias)?,
        None => 0.0,
    };
    let added = most(&scores.slopes) * (queries + keys) + most(&scores.sink) + bias;
    let unit = 2f64.powi(-24);
    let cap = f64::from(scores.softcap.unwrap_or(0.0));
    let score = unit * ((dim + 4.0) * products + 8.0 * cap + 8.0 * (products + added));
    let weight = score + 8.0 * unit;
    let values = largest(&s.v)?;
    Ok(Apart {
        out: 2.0 * values * (2.0 * weight + 3.0 * (keys + 2.0) * unit),
        out_relative: match dtype {
            DType::F16 => 2f64.powi(-11),
            DType::BF16 => 2f64.powi(-8),
            _ => 0.0,
        },
        lse: 2.0 * (score + (keys + 8.0) * unit + 4.0 * unit * (products + added)),
    })
}

/// All numbers of a tensor.
pub fn values(x: &Tensor) -> Result<Vec<f32>> {
    match x.elem_count() {
        // candle panics here if an offset is left over.
        0 => Ok(Vec::new()),
        _ => x.to_dtype(DType::F32)?.flatten_all()?.to_vec1(),
    }
}

/// Cases without files of seeds.
pub fn cases(cases: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config {
        cases,
        failure_persistence: None,
        ..Default::default()
    }
}

/// The largest absolute value, infinities left out.
fn largest(x: &Tensor) -> Result<f64> {
    let numbers = values(x)?;
    let finite = numbers.iter().filter(|x| x.is_finite());
    Ok(finite.fold(0.0, |max, x| f64::max(max, f64::from(x.abs()))))
}

/// Panics where out or lse are farther from the plain computation than they may be.
pub fn check(s: &Sequence, scores: &Scores, out: &Tensor, lse: Option<&Tensor>) -> Result<()> {
    let bound = apart(s, scores, out.dtype())?;
    let (plain_out, plain_lse) = plain(s, scores)?;
    assert_eq!(out.dims(), plain_out.dims());
    // The smallest numbers of f16 have no relative precision.
    let tiny = 2f64.powi(-25);
    for (index, (found, expected)) in values(out)?
        .into_iter()
        .zip(values(&plain_out)?)
        .enumerate()
    {
        let expected = f64::from(expected);
        let error = (f64::from(found) - expected).abs();
        let limit = bound.out + bound.out_relative * (expected.abs() + bound.out) + tiny;
        assert!(
            error <= limit,
            "out[{index}]: {found}, not {expected}: {error:e} past {limit:e}"
        );
    }
    if let Some(lse) = lse {
        assert_eq!(lse.dims(), plain_lse.dims());
        for (index, (found, expected)) in values(lse)?
            .into_iter()
            .zip(values(&plain_lse)?)
            .enumerate()
        {
            let error = match found == expected {
                true => 0.0,
                false => f64::from((found - expected).abs()),
            };
            assert!(
                error <= bound.lse,
                "lse[{index}]: {found}, not {expected}: {error:e} past {:e}",
                bound.lse
            );
        }
    }
    Ok(())
}

/// Numbers in [-1, 1) from a seed, rounded to a type and returned as f32.
pub fn numbers(seed: u64, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let values = (0..shape.iter().product::<usize>()).map(|_| {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    });
    let values: Vec<f32> = values.collect();
    Tensor::from_vec(values, shape, &Device::Cpu)?
        .to_dtype(dtype)?
        .to_dtype(DType::F32)
}

/// A sequence of such numbers.
pub fn sequence(
    seed: u64,
    dtype: DType,
    (queries, keys): (usize, usize),
    (heads_q, heads_kv): (usize, usize),
    (dim_qk, dim_v): (usize, usize),
) -> Result<Sequence> {
    Ok(Sequence {
        q: (numbers(seed, &[queries, heads_q, dim_qk], DType::F32)? * 3.0)?
            .to_dtype(dtype)?
            .to_dtype(DType::F32)?,
        k: numbers(seed + 1, &[keys, heads_kv, dim_qk], dtype)?,
        v: numbers(seed + 2, &[keys, heads_kv, dim_v], dtype)?,
    })
}
