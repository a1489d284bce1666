//! The same without a device, in plain Rust.

use super::{
    check::{PlaceData, check_distinct, check_pairs},
    copy::CopyProblem,
    problem::{AppendProblem, GatherProblem, Place, RotaryPairs, Rows},
    rotary::table_of_angles,
    run::{CacheData, check_positions, tokens},
};
use crate::{
    DType, DeviceInfo, element,
    error::{Error, Result},
    extent::Extent,
    layout::TensorLayout,
};

/// As [`append`](super::append), on the CPU: the same bits, where no number is NaN.
///
/// # Errors
/// As [`append`](super::append), the device's own excepted.
pub fn append_cpu(
    problem: &AppendProblem,
    data: &CacheData<'_>,
    caches: [&mut [u8]; 2],
) -> Result<Vec<u8>> {
    problem.plan(&DeviceInfo::emulator())?;
    let rows = problem
        .place
        .rows(tokens(&problem.k), &problem.k.cache, &data.place)?;
    check_distinct(&rows)?;
    check_positions(problem, data, &rows)?;
    let (has, turns) = (problem.extents(), problem.rotary_extents());
    let k = has.k.of("k", data.k)?;
    let v = optional("v", has.v, data.v)?;
    let q = optional("q", turns.q, data.q)?;
    let cos = optional("cos", turns.table, data.cos)?;
    let sin = optional("sin", turns.table, data.sin)?;
    let [k_cache, v_cache] = caches;
    has.k_cache.of("k_cache", k_cache)?;
    optional("v_cache", has.v_cache, v_cache)?;

    // A row of keys or of queries, turned on its way. What is not turned is copied, whatever its bits are.
    let turn = |from: &[u8],
                layout: &TensorLayout,
                [batch, row, head]: [usize; 3],
                position: usize,
                to: &mut [u8],
                into: &dyn Fn(usize) -> usize| {
        let index = |d| layout.index([batch, row, head, d]);
        let dim = layout.shape[3];
        let values = (0..dim).map(|d| element::read(problem.dtype, from, index(d)));
        let mut values: Vec<f32> = values.collect();
        let turned = rotate(problem, [cos, sin], position, &mut values);
        for (d, value) in values.into_iter().enumerate() {
            match d < turned {
                true => element::write(problem.dtype, to, into(d), value),
                false => copy_element(problem.dtype, from, index(d), to, into(d)),
            }
        }
    };
    let positions = positions(problem, data, rows.len());
    let mut turned = vec![0; turns.q_out.map_or(0, |extent| extent.bytes())];
    for (token, (row, position)) in rows.iter().zip(positions).enumerate() {
        let [batch, at] = [
            token / problem.k.tensor.shape[1],
            token % problem.k.tensor.shape[1],
        ];
        if let Some(to) = *row {
            match position {
                Some(position) => {
                    for head in 0..problem.k.tensor.shape[2] {
                        let into = |d| problem.k.cache.index([to[0], to[1], head, d]);
                        let from = [batch, at, head];
                        turn(k, &problem.k.tensor, from, position, k_cache, &into);
                    }
                }
                None => into_cache(problem.dtype, &problem.k, k, k_cache, [batch, at], to),
            }
            if let Some(side) = &problem.v {
                into_cache(problem.dtype, side, v, v_cache, [batch, at], to);
            }
        }
        if let (Some(queries), Some(position)) =
            (problem.rotary.and_then(|rotary| rotary.queries), position)
        {
            for head in 0..queries.q.shape[2] {
                let into = |d| queries.out.index([batch, at, head, d]);
                turn(
                    q,
                    &queries.q,
                    [batch, at, head],
                    position,
                    &mut turned,
                    &into,
                );
            }
        }
    }
    Ok(turned)
}

/// The bytes of a tensor that a problem may not have.
fn optional<'a>(
    argument: &'static str,
    extent: Option<Extent>,
    slice: &'a [u8],
) -> Result<&'a [u8]> {
    extent.map_or(Ok(&[]), |extent| extent.of(argument, slice))
}

/// Turns a row's pairs, and returns how many elements that are.
fn rotate(
    problem: &AppendProblem,
    [cos, sin]: [&[u8]; 2],
    position: usize,
    values: &mut [f32],
) -> usize {
    let Some(rotary) = &problem.rotary else {
        return 0;
    };
    let pairs = rotary.rotary_dim / 2;
    let angles = table_of_angles(&rotary.table, pairs);
    let dtype = rotary.table.element.of(problem.dtype);
    for pair in 0..pairs {
        let at = angles.index([0, position, 0, pair]);
        let (cos, sin) = (element::read(dtype, cos, at), element::read(dtype, sin, at));
        let [first, second] = match rotary.pairs {
            RotaryPairs::Interleaved => [2 * pair, 2 * pair + 1],
            RotaryPairs::Halves => [pair, pairs + pair],
        };
        let (x, y) = (values[first], values[second]);
        // As the kernels do: one product, rounded, and one FMA.
        values[first] = x.mul_add(cos, -(y * sin));
        values[second] = y.mul_add(cos, x * sin);
    }
    rotary.rotary_dim
}

/// Each token's row of the tables; none without rotary embedding, and of what is no sequence's. The numbers have passed their checks.
fn positions(problem: &AppendProblem, data: &CacheData<'_>, tokens: usize) -> Vec<Option<usize>> {
    let mut positions = vec![None; tokens];
    let Some(rotary) = &problem.rotary else {
        return positions;
    };
    let explicit = rotary.positions.is_some();
    match &problem.place {
        Place::Slots => {
            for (position, &given) in positions.iter_mut().zip(data.positions) {
                *position = Some(given as usize);
            }
        }
        Place::Sequences(sequences) => {
            for sequence in 0..sequences.batch {
                let rows = problem.k.tensor.shape[1];
                let (begin, used, first) = sequences.span(sequence, rows, &data.place);
                for i in 0..used {
                    positions[begin + i] = Some(match explicit {
                        true => data.positions[begin + i] as usize,
                        false => first + i,
                    });
                }
            }
        }
    }
    positions
}

/// As [`gather`](super::gather), on the CPU.
///
/// # Errors
/// As [`gather`](super::gather), the device's own excepted.
pub fn gather_cpu(
    problem: &GatherProblem,
    place: &PlaceData<'_>,
    caches: [&[u8]; 2],
) -> Result<[Vec<u8>; 2]> {
    problem.plan(&DeviceInfo::emulator())?;
    let rows = problem
        .place
        .rows(tokens(&problem.k), &problem.k.cache, place)?;
    let element_bytes = problem.dtype.bytes();
    let gathered = |argument, side: Option<&Rows>, cache: &[u8]| {
        let Some(side) = side else {
            return Ok(Vec::new());
        };
        let cache = Extent::cache(&side.cache, element_bytes).of(argument, cache)?;
        let mut out = vec![0; Extent::tensor(&side.tensor, element_bytes).bytes()];
        for (token, row) in rows.iter().enumerate() {
            let [batch, at] = [token / side.tensor.shape[1], token % side.tensor.shape[1]];
            if let Some([block, row]) = *row {
                each_element(side, |head, d| {
                    let from = side.cache.index([block, row, head, d]);
                    let to = side.tensor.index([batch, at, head, d]);
                    copy_element(problem.dtype, cache, from, &mut out, to);
                });
            }
        }
        Ok(out)
    };
    let [k_cache, v_cache] = caches;
    Ok([
        gathered("k_cache", Some(&problem.k), k_cache)?,
        gathered("v_cache", problem.v.as_ref(), v_cache)?,
    ])
}

/// Copies blocks within a cache, as [`copy_blocks`](super::copy_blocks) does, on the CPU; or from another one.
///
/// # Errors
/// As [`copy_blocks`](super::copy_blocks), the device's own excepted.
pub fn copy_blocks_cpu(
    problem: &CopyProblem,
    pairs: &[[i64; 2]],
    src: Option<&[u8]>,
    dst: &mut [u8],
) -> Result<()> {
    problem.plan(&DeviceInfo::emulator())?;
    if src.is_none() && problem.src != problem.dst {
        return Err(Error::bad(
            "dst",
            format!("{:?}, since the caches are the same", problem.src),
            format!("{:?}", problem.dst),
        ));
    }
    check_pairs(pairs, problem, src.is_none())?;
    let bytes = problem.block_bytes;
    let (from, to) = (problem.src.extent(bytes), problem.dst.extent(bytes));
    if let Some(src) = src {
        from.of("src", src)?;
    }
    to.of("dst", dst)?;
    // Offsets of a block from the lowest byte, which both have been found to have.
    let offset = |extent: &Extent, block: i64, stride: i64| {
        extent.origin(0).wrapping_add_signed(block * stride) as usize
    };
    for &[read, written] in pairs {
        let at = offset(&from, read, problem.src.stride);
        let into = offset(&to, written, problem.dst.stride);
        match src {
            Some(src) => dst[into..into + bytes].copy_from_slice(&src[at..at + bytes]),
            None => dst.copy_within(at..at + bytes, into),
        }
    }
    Ok(())
}

fn into_cache(
    dtype: DType,
    side: &Rows,
    from: &[u8],
    cache: &mut [u8],
    [batch, at]: [usize; 2],
    [block, row]: [usize; 2],
) {
    each_element(side, |head, d| {
        let index = side.tensor.index([batch, at, head, d]);
        let to = side.cache.index([block, row, head, d]);
        copy_element(dtype, from, index, cache, to);
    });
}

fn each_element(side: &Rows, mut f: impl FnMut(usize, usize)) {
    let [_, _, heads, dim] = side.tensor.shape;
    for head in 0..heads {
        (0..dim).for_each(|d| f(head, d));
    }
}

/// Copies an element's bits.
fn copy_element(dtype: DType, from: &[u8], at: usize, to: &mut [u8], into: usize) {
    let bytes = dtype.bytes() as usize;
    to[into * bytes..][..bytes].copy_from_slice(&from[at * bytes..][..bytes]);
}
