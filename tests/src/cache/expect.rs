//! What plain Rust makes of a case.

use flashtile::{
    DType, TensorLayout,
    cache::{AppendProblem, GatherProblem, Place, RotaryPairs, Rows},
    element,
    serving::CacheLayout,
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
        row: found.map(|at| at.map(|n| n as usize)),
        position: Some(row),
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Whether it is some sequence's token.
    token: bool,
    /// Block and row.
    row: Option<[usize; 2]>,
    /// Row of its sequence.
    position: Option<i64>,
}

/// Images after an append, in which some elements may be what rounding makes of them.
#[derive(Clone, Debug)]
pub struct Expected {
    images: Images,
    /// Image, byte, least and largest element.
    turned: Vec<(usize, usize, f32, f32)>,
}

impl Expected {
    /// What appending makes of these images.
    pub fn of(problem: &AppendProblem, numbers: &Numbers, before: &Images) -> Self {
        let mut expected = Self {
            images: before.clone(),
            turned: Vec::new(),
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
                for (from, to, side, position) in [
                    (Images::K, Images::K_CACHE, Some(&problem.k), position),
                    (Images::V, Images::V_CACHE, problem.v.as_ref(), None),
                ] {
                    let Some(Rows { tensor, cache }) = side else {
                        continue;
                    };
                    for head in 0..tensor.shape[2] {
                        let source = |d| tensor.index([at[0], at[1], head, d]);
                        let target = |d| cache.index([block, row, head, d]);
                        let moved = [from, to];
                        expected.row(problem, before, moved, source, target, tensor, position);
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
                    expected.row(problem, before, moved, source, target, &queries.q, position);
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
    ) {
        let dtype = problem.dtype;
        let (from, bytes) = (&before.0[from], &mut self.images.0[to]);
        let at = |image: &Image, element: usize| image.offset + element;
        for d in 0..tensor.shape[3] {
            let [source, target] = [at(from, source(d)), at(bytes, target(d))];
            bytes.bytes[2 * target..][..2].copy_from_slice(&from.bytes[2 * source..][..2]);
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
            let value = |d| f64::from(element::read(dtype, &from.bytes, at(from, source(d))));
            let [x, y] = [value(a), value(b)];
            for (d, product, other) in [(a, x * cos, -(y * sin)), (b, y * cos, x * sin)] {
                let bytes = &self.images.0[to];
                let byte = 2 * at(bytes, target(d));
                let (least, largest) = interval(dtype, product, other);
                self.turned.push((to, byte, least, largest));
            }
        }
    }

    /// Compares images with these.
    ///
    /// # Errors
    /// The first byte that is another one.
    pub fn compare(mut self, dtype: DType, found: &Images) -> Result<(), String> {
        for (image, byte, least, largest) in self.turned {
            let bytes = &found.0[image].bytes;
            let value = element::read(dtype, bytes, byte / 2);
            if !(least <= value && value <= largest) {
                return Err(format!(
                    "byte {byte} of {}: {value} is not between {least} and {largest}",
                    Images::NAMES[image]
                ));
            }
            self.images.0[image].bytes[byte..byte + 2].copy_from_slice(&bytes[byte..byte + 2]);
        }
        self.images.same(found)
    }
}

/// The elements that a sum of two exact products may become which is computed in f32, the second product rounded, then the sum, and
/// rounded to an element.
///
/// With u = 2^-24 and subnormals half of 2^-149 apart from what rounding makes of them: the second product is off by u |b| + 2^-150, the
/// sum by u times what it is then, + 2^-150. The bounds come to f32 and one number further out, which their conversion may be off by.
fn interval(dtype: DType, a: f64, b: f64) -> (f32, f32) {
    let (u, tiny) = (2f64.powi(-24), 2f64.powi(-150));
    let of_b = u * b.abs() + tiny;
    let off = of_b + u * ((a + b).abs() + of_b) + tiny;
    let [least, largest] = [a + b - off, a + b + off].map(|x| x as f32);
    (
        element::round(dtype, least.next_down()),
        element::round(dtype, largest.next_up()),
    )
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
        for (from, to, side) in [
            (Images::K_CACHE, Images::K, Some(&problem.k)),
            (Images::V_CACHE, Images::V, problem.v.as_ref()),
        ] {
            let Some(Rows { tensor, cache }) = side else {
                continue;
            };
            let [_, _, heads, dim] = tensor.shape;
            for (head, d) in (0..heads).flat_map(|h| (0..dim).map(move |d| (h, d))) {
                let from = &before.0[from];
                let element = match found.row {
                    Some([block, row]) => {
                        let at = from.offset + cache.index([block, row, head, d]);
                        [from.bytes[2 * at], from.bytes[2 * at + 1]]
                    }
                    None => [0; 2],
                };
                let to = &mut images.0[to];
                let at = to.offset + tensor.index([token / rows, token % rows, head, d]);
                to.bytes[2 * at..][..2].copy_from_slice(&element);
            }
        }
    }
    images
}
