//! What plain Rust makes of a case.

use flashtile::{
    DType, TensorLayout,
    cache::{AppendProblem, GatherProblem, Place, RotaryPairs, Rows},
    element,
    serving::{CacheLayout, CacheScales},
};

use super::{
    case::Numbers,
    launch::{Image, Images},
};

/// Where a token's row is.
fn place_of(
    place: &Place,
    [_, rows]: [usize; 2],
    cache: &CacheLayout,
    numbers: &Numbers,
    token: usize,
) -> Found {
    let [blocks, page, ..] = cache.shape.map(|n| n as i64);
    let Place::Sequences(sequences) = place else {
        let slot = numbers.slots[token];
        let exists = slot >= 0 && slot < blocks * page;
        return Found {
            token: true,
            sequence: 0,
            row: exists.then(|| [(slot / page) as usize, (slot % page) as usize]),
            position: None,
        };
    };
    let (sequence, within) = match numbers.starts.is_empty() {
        true => (token / rows, token % rows),
        false => {
            let is_in = |b: &usize| {
                let [begin, end] = [numbers.starts[*b], numbers.starts[b + 1]];
                begin as usize <= token && token < end as usize
            };
            let Some(sequence) = (0..sequences.batch).find(is_in) else {
                return Found::default();
            };
            (sequence, token - numbers.starts[sequence] as usize)
        }
    };
    let used = numbers.used.get(sequence).copied().unwrap_or(i32::MAX);
    if within as i64 >= i64::from(used) {
        return Found::default();
    }
    let first = numbers.first.get(sequence).copied().unwrap_or_default();
    let row = i64::from(first) + within as i64;
    let found = match &sequences.pages {
        None => (row >= 0 && row < page).then_some([sequence as i64, row]),
        Some(table) if row >= 0 && row < table.entries as i64 * page => {
            let at = sequence * table.entries + (row / page) as usize;
            let block = i64::from(numbers.table[at]);
            (block >= 0 && block < blocks).then_some([block, row % page])
        }
        Some(_) => None,
    };
    Found {
        token: true,
        sequence,
        row: found.map(|at| at.map(|n| n as usize)),
        position: Some(row),
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Whether it is some sequence's token.
    token: bool,
    /// Which one's.
    sequence: usize,
    /// Block and row.
    row: Option<[usize; 2]>,
    /// Row of its sequence.
    position: Option<i64>,
}

/// Images after an append, in which some elements may be what rounding makes of them.
#[derive(Clone, Debug)]
pub struct Expected {
    images: Images,
    rounded: Vec<Rounded>,
}

/// An element that a rounded number becomes.
#[derive(Clone, Debug)]
struct Rounded {
    image: usize,
    dtype: DType,
    /// Index in the image.
    element: usize,
    least: f32,
    largest: f32,
}

impl Expected {
    /// What appending makes of these images.
    pub fn of(problem: &AppendProblem, numbers: &Numbers, before: &Images) -> Self {
        let mut expected = Self {
            images: before.clone(),
            rounded: Vec::new(),
        };
        let [batch, rows, ..] = problem.k.tensor.shape;
        for token in 0..batch * rows {
            let found = place_of(
                &problem.place,
                [batch, rows],
                &problem.k.cache,
                numbers,
                token,
            );
            let mut position = None;
            if let Some(rotary) = &problem.rotary {
                let explicit = rotary.positions.map(|_| numbers.positions[token]);
                let positions = 0..rotary.table.positions as i64;
                position = explicit
                    .or(found.position)
                    .filter(|position| positions.contains(position));
                if position.is_none() {
                    continue;
                }
            }
            if !found.token {
                continue;
            }
            let at = [token / rows, token % rows];
            let position = position.map(|n| n as usize);
            if let Some([block, row]) = found.row {
                for (n, (from, to, side, position)) in [
                    (Images::K, Images::K_CACHE, Some(&problem.k), position),
                    (Images::V, Images::V_CACHE, problem.v.as_ref(), None),
                ]
                .into_iter()
                .enumerate()
                {
                    let Some(Rows { tensor, cache }) = side else {
                        continue;
                    };
                    for head in 0..tensor.shape[2] {
                        let source = |d| tensor.index([at[0], at[1], head, d]);
                        let target = |d| cache.index([block, row, head, d]);
                        let moved = [from, to];
                        let scale =
                            scale(problem.kv_scales, numbers, n, found.sequence, tensor, head);
                        let cached = (problem.kv_dtype, scale);
                        expected.row(
                            problem, before, moved, source, target, tensor, position, cached,
                        );
                    }
                }
            }
            if let Some(queries) = problem.rotary.and_then(|rotary| rotary.queries) {
                let to = match queries.q == queries.out {
                    true => Images::Q,
                    false => Images::Q_OUT,
                };
                for head in 0..queries.q.shape[2] {
                    let source = |d| queries.q.index([at[0], at[1], head, d]);
                    let target = |d| queries.out.index([at[0], at[1], head, d]);
                    let moved = [Images::Q, to];
                    let same = (problem.dtype, 1.0);
                    expected.row(
                        problem, before, moved, source, target, &queries.q, position, same,
                    );
                }
            }
        }
        expected
    }

    /// One row, turned if there is a position.
    #[expect(clippy::too_many_arguments)]
    fn row(
        &mut self,
        problem: &AppendProblem,
        before: &Images,
        [from, to]: [usize; 2],
        source: impl Fn(usize) -> usize,
        target: impl Fn(usize) -> usize,
        tensor: &TensorLayout,
        position: Option<usize>,
        (into, scale): (DType, f32),
    ) {
        let dtype = problem.dtype;
        let (from, bytes) = (&before.0[from], &mut self.images.0[to]);
        let at = |image: &Image, element: usize| image.offset + element;
        let value = |d| f64::from(element::read(dtype, &from.bytes, at(from, source(d))));
        let mut rounded = |image: &Image, d, sum, off| {
            let (least, largest) = interval(into, sum, off, scale);
            self.rounded.push(Rounded {
                image: to,
                dtype: into,
                element: at(image, target(d)),
                least,
                largest,
            });
        };
        // Elements that are turned are expected a second time below.
        let turned = match (&problem.rotary, position) {
            (Some(rotary), Some(_)) => rotary.rotary_dim,
            _ => 0,
        };
        for d in 0..tensor.shape[3] {
            let [source, target] = [at(from, source(d)), at(bytes, target(d))];
            if into == dtype {
                bytes.bytes[2 * target..][..2].copy_from_slice(&from.bytes[2 * source..][..2]);
            } else if d >= turned {
                rounded(bytes, d, value(d), 0.0);
            }
        }
        let (Some(rotary), Some(position)) = (&problem.rotary, position) else {
            return;
        };
        let pairs = rotary.rotary_dim / 2;
        for pair in 0..pairs {
            let [a, b] = match rotary.pairs {
                RotaryPairs::Interleaved => [2 * pair, 2 * pair + 1],
                RotaryPairs::Halves => [pair, pair + pairs],
            };
            let angle = |image: usize| {
                let image = &before.0[image];
                let index = image.offset + position * rotary.table.stride as usize + pair;
                f64::from(element::read(
                    rotary.table.element.of(dtype),
                    &image.bytes,
                    index,
                ))
            };
            let [cos, sin] = [angle(Images::COS), angle(Images::SIN)];
            let [x, y] = [value(a), value(b)];
            for (d, product, other) in [(a, x * cos, -(y * sin)), (b, y * cos, x * sin)] {
                rounded(bytes, d, product + other, sum_is_off_by(product, other));
            }
        }
    }

    /// Compares images with these.
    ///
    /// # Errors
    /// The first byte that is another one.
    pub fn compare(mut self, found: &Images) -> Result<(), String> {
        for Rounded {
            image,
            dtype,
            element,
            least,
            largest,
        } in self.rounded
        {
            let bytes = &found.0[image].bytes;
            let value = element::read(dtype, bytes, element);
            if !(least <= value && value <= largest) {
                return Err(format!(
                    "element {element} of {}: {value} is not between {least} and {largest}",
                    Images::NAMES[image]
                ));
            }
            let width = dtype.bytes() as usize;
            let span = element * width..(element + 1) * width;
            self.images.0[image].bytes[span.clone()].copy_from_slice(&bytes[span]);
        }
        self.images.same(found)
    }
}

/// How far a sum of two exact products may be off that is computed in f32, the second product rounded, then the sum.
///
/// With u = 2^-24 and subnormals half of 2^-149 apart from what rounding makes of them: the second product is off by u |b| + 2^-150, the
/// sum by u times what it is then, + 2^-150.
fn sum_is_off_by(a: f64, b: f64) -> f64 {
    let (u, tiny) = (2f64.powi(-24), 2f64.powi(-150));
    let of_b = u * b.abs() + tiny;
    of_b + u * ((a + b).abs() + of_b) + tiny
}

/// The elements that a number may become which is off by so much, divided by a scale in f32, and rounded to an element.
///
/// Rounding keeps the order of numbers, so the ends' quotients are what counts. They come to f32 and one number further out, which their
/// conversion may be off by.
fn interval(dtype: DType, number: f64, off: f64, scale: f32) -> (f32, f32) {
    let scale = f64::from(scale);
    let [least, largest] = [number - off, number + off].map(|x| (x / scale) as f32);
    (
        element::round(dtype, least.next_down()),
        element::round(dtype, largest.next_up()),
    )
}

/// The scale of a sequence's head in the cache of keys (0) or of values (1).
fn scale(
    layout: CacheScales,
    numbers: &Numbers,
    side: usize,
    sequence: usize,
    tensor: &TensorLayout,
    head: usize,
) -> f32 {
    let scales = &numbers.scales[side];
    match layout {
        CacheScales::None => 1.0,
        CacheScales::PerTensor => scales[0],
        CacheScales::PerHead => scales[head],
        CacheScales::PerSequence => scales[sequence * tensor.shape[2] + head],
    }
}

/// What gathering makes of these images.
pub fn gathered(problem: &GatherProblem, numbers: &Numbers, before: &Images) -> Images {
    let mut images = before.clone();
    let [batch, rows, ..] = problem.k.tensor.shape;
    for token in 0..batch * rows {
        let cache = &problem.k.cache;
        let found = place_of(&problem.place, [batch, rows], cache, numbers, token);
        if !found.token {
            continue;
        }
        for (n, (from, to, side)) in [
            (Images::K_CACHE, Images::K, Some(&problem.k)),
            (Images::V_CACHE, Images::V, problem.v.as_ref()),
        ]
        .into_iter()
        .enumerate()
        {
            let Some(Rows { tensor, cache }) = side else {
                continue;
            };
            let [_, _, heads, dim] = tensor.shape;
            for (head, d) in (0..heads).flat_map(|h| (0..dim).map(move |d| (h, d))) {
                let (from, to) = (&before.0[from], &mut images.0[to]);
                let into = to.offset + tensor.index([token / rows, token % rows, head, d]);
                let to = &mut to.bytes[2 * into..][..2];
                let Some([block, row]) = found.row else {
                    to.fill(0);
                    continue;
                };
                let at = from.offset + cache.index([block, row, head, d]);
                if problem.kv_dtype == problem.dtype {
                    to.copy_from_slice(&from.bytes[2 * at..][..2]);
                    continue;
                }
                let scale = scale(problem.kv_scales, numbers, n, found.sequence, tensor, head);
                let number = element::read(problem.kv_dtype, &from.bytes, at) * scale;
                element::write(problem.dtype, to, 0, number);
            }
        }
    }
    images
}
