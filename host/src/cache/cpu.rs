//! The same without a device, in plain Rust.

use super::{
    check::{PlaceData, check_distinct, check_pairs},
    copy::CopyProblem,
    problem::{AppendProblem, GatherProblem, Place, RotaryPairs, Rows},
    rotary::table_of_angles,
    run::{CacheData, check_positions, check_scales, tokens},
};
use crate::{
    DType, DeviceInfo, element,
    error::{Error, Result},
    extent::Extent,
    layout::TensorLayout,
    serving::CacheScales,
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
    let scales = [data.k_scale, data.v_scale];
    check_scales(&has, scales)?;
    let [k_scale, v_scale] = scales.map(|scales| ScaleOf {
        scales,
        layout: problem.kv_scales,
        heads: problem.k.tensor.shape[2],
    });
    let cached = problem.kv_dtype;
    let k = has.k.of("k", data.k)?;
    let v = optional("v", has.v, data.v)?;
    let q = optional("q", turns.q, data.q)?;
    let cos = optional("cos", turns.table, data.cos)?;
    let sin = optional("sin", turns.table, data.sin)?;
    let [k_cache, v_cache] = caches;
    has.k_cache.of("k_cache", k_cache)?;
    optional("v_cache", has.v_cache, v_cache)?;

    // A row, turned on its way if it has a position. What is neither turned nor of another type is copied, whatever its bits are.
    let move_row = |from: &[u8],
                    layout: &TensorLayout,
                    [batch, row, head]: [usize; 3],
                    position: Option<usize>,
                    (dtype, scale): (DType, f32),
                    to: &mut [u8],
                    into: &dyn Fn(usize) -> usize| {
        let index = |d| layout.index([batch, row, head, d]);
        let dim = layout.shape[3];
        if position.is_none() && dtype == problem.dtype {
            return (0..dim).for_each(|d| copy_element(dtype, from, index(d), to, into(d)));
        }
        let values = (0..dim).map(|d| element::read(problem.dtype, from, index(d)));
        let mut values: Vec<f32> = values.collect();
        let turned = position.map_or(0, |at| rotate(problem, [cos, sin], at, &mut values));
        for (d, value) in values.into_iter().enumerate() {
            match d < turned || dtype != problem.dtype {
                true => element::write(dtype, to, into(d), value / scale),
                false => copy_element(dtype, from, index(d), to, into(d)),
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
            let sequence = sequence_of(
                &problem.place,
                problem.k.tensor.shape[1],
                &data.place,
                token,
            );
            for head in 0..problem.k.tensor.shape[2] {
                let into = |d| problem.k.cache.index([to[0], to[1], head, d]);
                let (from, as_what) = ([batch, at, head], (cached, k_scale.of(sequence, head)));
                move_row(
                    k,
                    &problem.k.tensor,
                    from,
                    position,
                    as_what,
                    k_cache,
                    &into,
                );
                if let Some(side) = &problem.v {
                    let into = |d| side.cache.index([to[0], to[1], head, d]);
                    let as_what = (cached, v_scale.of(sequence, head));
                    move_row(v, &side.tensor, from, None, as_what, v_cache, &into);
                }
            }
        }
        if let (Some(queries), Some(position)) =
            (problem.rotary.and_then(|rotary| rotary.queries), position)
        {
            for head in 0..queries.q.shape[2] {
                let into = |d| queries.out.index([batch, at, head, d]);
                let (from, as_what) = ([batch, at, head], (problem.dtype, 1.0));
                move_row(
                    q,
                    &queries.q,
                    from,
                    Some(position),
                    as_what,
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

/// As [`gather`](super::gather), on the CPU: the same bits, where no number is NaN.
///
/// # Errors
/// As [`gather`](super::gather), the device's own excepted.
pub fn gather_cpu(
    problem: &GatherProblem,
    place: &PlaceData<'_>,
    caches: [&[u8]; 2],
    scales: [&[f32]; 2],
) -> Result<[Vec<u8>; 2]> {
    problem.plan(&DeviceInfo::emulator())?;
    let rows = problem
        .place
        .rows(tokens(&problem.k), &problem.k.cache, place)?;
    check_scales(&problem.extents(), scales)?;
    let (dtype, cached) = (problem.dtype, problem.kv_dtype);
    let gathered = |argument, side: Option<&Rows>, cache: &[u8], scales| {
        let Some(side) = side else {
            return Ok(Vec::new());
        };
        let scale = ScaleOf {
            scales,
            layout: problem.kv_scales,
            heads: side.tensor.shape[2],
        };
        let cache = Extent::cache(&side.cache, cached.bytes()).of(argument, cache)?;
        let mut out = vec![0; Extent::tensor(&side.tensor, dtype.bytes()).bytes()];
        for (token, row) in rows.iter().enumerate() {
            let [batch, at] = [token / side.tensor.shape[1], token % side.tensor.shape[1]];
            if let Some([block, row]) = *row {
                let sequence = sequence_of(&problem.place, side.tensor.shape[1], place, token);
                each_element(side, |head, d| {
                    let from = side.cache.index([block, row, head, d]);
                    let to = side.tensor.index([batch, at, head, d]);
                    if cached == dtype {
                        return copy_element(dtype, cache, from, &mut out, to);
                    }
                    let number = element::read(cached, cache, from) * scale.of(sequence, head);
                    element::write(dtype, &mut out, to, number);
                });
            }
        }
        Ok(out)
    };
    let [k_cache, v_cache] = caches;
    Ok([
        gathered("k_cache", Some(&problem.k), k_cache, scales[0])?,
        gathered("v_cache", problem.v.as_ref(), v_cache, scales[1])?,
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

fn each_element(side: &Rows, mut f: impl FnMut(usize, usize)) {
    let [_, _, heads, dim] = side.tensor.shape;
    for head in 0..heads {
        (0..dim).for_each(|d| f(head, d));
    }
}

/// A cache's scales, which have passed their checks.
struct ScaleOf<'a> {
    scales: &'a [f32],
    layout: CacheScales,
    heads: usize,
}

impl ScaleOf<'_> {
    fn of(&self, sequence: usize, head: usize) -> f32 {
        let [of_sequence, of_head] = self.layout.strides(self.heads);
        let at = sequence * of_sequence + head * of_head;
        self.scales.get(at).copied().unwrap_or(1.0)
    }
}

/// The sequence of a token that is some sequence's; 0 with slots.
fn sequence_of(place: &Place, rows: usize, data: &PlaceData<'_>, token: usize) -> usize {
    match place {
        Place::Slots => 0,
        Place::Sequences(sequences) if sequences.starts => {
            let begun = data
                .starts
                .partition_point(|&start| start as usize <= token);
            begun.saturating_sub(1)
        }
        Place::Sequences(_) => token / rows,
    }
}

/// Copies an element's bits.
fn copy_element(dtype: DType, from: &[u8], at: usize, to: &mut [u8], into: usize) {
    let bytes = dtype.bytes() as usize;
    to[into * bytes..][..bytes].copy_from_slice(&from[at * bytes..][..bytes]);
}
