//! A case's tensors, as its layouts place them.

use crate::data::Random;
use flashtile::{
    DType, OutDType, Outputs, TensorLayout, element,
    serving::{
        BiasType, CacheLayout, CacheScales, MaskType, PageTable, PairLayout, ServingInputs,
        ServingProblem,
    },
};

use super::case::{Cache, CacheOrder, Queries, ServingCase};

/// Byte of everything that belongs to no tensor: as an element, a NaN of every type.
pub const GAP: u8 = 0xff;

/// Numbers that are in no table.
const GARBAGE: [i32; 4] = [-1, i32::MAX, i32::MIN, 1 << 20];

/// A problem and its inputs.
#[derive(Clone, Debug)]
pub struct Built {
    /// The problem.
    pub problem: ServingProblem,
    /// Bytes of q, k, v, bias and mask.
    pub tensors: [Vec<u8>; 5],
    /// Starts and used lengths of queries, of keys; table; ranges.
    pub numbers: [Vec<i32>; 6],
    /// Slopes, sinks, scales of keys and of values.
    pub floats: [Vec<f32>; 4],
}

impl Built {
    /// Of a case.
    pub fn of(case: &ServingCase) -> Self {
        Self::with_rows(case, &|dim, _| dim + case.gap)
    }

    /// Of a case whose rows are `distance(elements of one, their type)` elements apart, where anything can be between them.
    pub fn with_rows(case: &ServingCase, distance: &dyn Fn(usize, DType) -> usize) -> Self {
        let batch = case.lengths.len();
        let mut random = Random::new(case.seed);
        let lengths: Vec<_> = (0..batch).map(|b| case.lengths_of(b)).collect();
        let longest = case.longest();
        let [dim_qk, dim_v] = case.dims;
        let (heads_q, heads_kv) = (case.heads_q(), case.heads_kv);

        // Queries.
        let q_starts = starts(
            lengths.iter().map(|it| it[0]),
            match case.queries {
                Queries::PackedUsed => 2,
                _ => 0,
            },
        );
        let is_packed = matches!(case.queries, Queries::Packed | Queries::PackedUsed);
        let q_shape = match (is_packed, case.queries) {
            (true, _) => [1, q_starts[batch], heads_q, dim_qk],
            (false, Queries::Dense) => [
                batch,
                lengths.first().map_or(0, |it| it[0]),
                heads_q,
                dim_qk,
            ],
            (false, _) => [batch, longest[0], heads_q, dim_qk],
        };
        let q = apart(q_shape, case.dtype, distance);
        let out_dtype = if case.wide_out {
            DType::F32
        } else {
            case.dtype
        };
        let out_shape = [q_shape[0], q_shape[1], heads_q, dim_v];
        let out = apart(out_shape, out_dtype, distance);

        // Keys.
        let room = match case.cache {
            Cache::PackedUsed => 3,
            _ => 0,
        };
        let k_starts = starts(lengths.iter().map(|it| it[1]), room);
        let (blocks, rows, table) = match case.cache {
            Cache::Packed | Cache::PackedUsed => (1, k_starts[batch], None),
            Cache::Dense => (batch, lengths.first().map_or(0, |it| it[1]), None),
            Cache::DenseUsed => (batch, longest[1], None),
            Cache::Paged(page) | Cache::PagedStarts(page) => {
                let (table, blocks) = pages(&lengths, longest[1], page, &mut random);
                (blocks, page, Some(table))
            }
        };
        let kv_dtype = case.kv_scales.map_or(case.dtype, |_| DType::E4m3);
        let cache = |keys, dim| {
            let shape = [blocks, rows, heads_kv, dim];
            layout(case.order, keys, kv_dtype, shape, distance)
        };
        let (k, v) = (cache(true, dim_qk), cache(false, dim_v));

        let plain = match case.latent {
            true => ServingProblem::latent(case.dtype, batch, q, k, dim_v),
            false => ServingProblem::new(case.dtype, batch, q, k, v),
        };
        let mut problem = plain.out(out).sink(case.sink).splits(case.splits).lse(true);
        if case.wide_out {
            problem.out_dtype = OutDType::F32;
        }
        if let Some(scales) = case.kv_scales {
            problem = problem.kv_dtype(DType::E4m3, scales);
        }
        problem.arch = case.arch;
        problem.causal = case.causal;
        problem.window = case.window;
        problem.scale = case.scale;
        problem.softcap = case.softcap;
        problem.alibi = case.alibi;
        problem.q_lengths.longest = longest[0];
        problem.q_lengths.starts = is_packed;
        problem.q_lengths.used = matches!(case.queries, Queries::DenseUsed | Queries::PackedUsed);
        problem.k_lengths.longest = longest[1];
        problem.k_lengths.starts = matches!(
            case.cache,
            Cache::Packed | Cache::PackedUsed | Cache::PagedStarts(_)
        );
        problem.k_lengths.used = matches!(
            case.cache,
            Cache::DenseUsed | Cache::PackedUsed | Cache::Paged(_)
        );
        problem.pages = table
            .as_ref()
            .map(|table| PageTable::contiguous(table.len() / batch.max(1)));

        let mut built = Self {
            problem,
            tensors: std::array::from_fn(|_| Vec::new()),
            numbers: std::array::from_fn(|_| Vec::new()),
            floats: std::array::from_fn(|_| Vec::new()),
        };
        let used = |which: usize| lengths.iter().map(|it| it[which] as i32).collect();
        let numbers = |starts: &[usize]| starts.iter().map(|&start| start as i32).collect();
        if problem.q_lengths.starts {
            built.numbers[0] = numbers(&q_starts);
        }
        if problem.q_lengths.used {
            built.numbers[1] = used(0);
        }
        if problem.k_lengths.starts {
            built.numbers[2] = numbers(&k_starts);
        }
        if problem.k_lengths.used {
            built.numbers[3] = used(1);
        }
        built.numbers[4] = table.unwrap_or_default();
        built.fill(case, &lengths, [&q_starts, &k_starts]);
        built.extras(case, &lengths);
        match case.hostile {
            true => built.hostile(&mut Random::new(case.seed)),
            false => built,
        }
    }

    /// The elements of q, k and v. Each sequence has its own seed, so that its numbers do not depend on where it lies.
    fn fill(&mut self, case: &ServingCase, lengths: &[[usize; 2]], starts: [&[usize]; 2]) {
        let (problem, dtype) = (&self.problem, case.dtype);
        let kv_dtype = problem.kv_dtype;
        let bytes = |span: Option<usize>, dtype: DType| {
            vec![GAP; span.unwrap_or(0) * dtype.bytes() as usize]
        };
        let mut q = bytes(problem.q.span(), dtype);
        let mut caches = [problem.k.span(), problem.v.span()].map(|span| bytes(span, kv_dtype));
        for (b, [queries, keys]) in lengths.iter().enumerate() {
            let mut random = Random::new(
                case.seed ^ ((case.first + b) as u64 + 1).wrapping_mul(0x1234_5678_9abc),
            );
            for i in 0..*queries {
                for h in 0..case.heads_q() {
                    let at = match problem.q_lengths.starts {
                        true => problem.q.index([0, starts[0][b] + i, h, 0]),
                        false => problem.q.index([b, i, h, 0]),
                    };
                    for d in 0..case.dims[0] {
                        element::write(dtype, &mut q, at + d, case.spread * random.normal());
                    }
                }
            }
            let spreads = [case.spread, 1.0];
            let tensors = [problem.k, problem.v].into_iter().zip(spreads);
            for ((layout, spread), bytes) in tensors.zip(&mut caches) {
                for j in 0..*keys {
                    let (block, row) = match problem.pages {
                        Some(pages) => {
                            let page = layout.shape[1];
                            let entry = pages.index(lengths.len(), [b, j / page]);
                            (self.numbers[4][entry] as usize, j % page)
                        }
                        None if problem.k_lengths.starts => (0, starts[1][b] + j),
                        None => (b, j),
                    };
                    for h in 0..case.heads_kv {
                        for d in 0..layout.shape[3] {
                            let at = layout.index([block, row, h, d]);
                            element::write(kv_dtype, bytes, at, spread * random.normal());
                        }
                    }
                }
            }
        }
        let [k, mut v] = caches;
        if problem.latent {
            v.clear();
        }
        self.tensors[..3].clone_from_slice(&[q, k, v]);
    }

    /// What is added to scores and hides them.
    fn extras(&mut self, case: &ServingCase, lengths: &[[usize; 2]]) {
        let batch = lengths.len();
        let mut random = Random::new(!case.seed);
        let heads = case.heads_q();
        let [longest_q, longest_k] = case.longest();
        let whole = [batch, heads, longest_q, longest_k];
        let shape = |of: [bool; 4]| std::array::from_fn(|d| if of[d] { whole[d] } else { 1 });
        let slopes = match case.alibi {
            None => 0,
            Some(false) => heads,
            Some(true) => batch * heads,
        };
        self.floats[0] = (0..slopes).map(|_| random.uniform() as f32).collect();
        // Each sequence's are its own, wherever it lies.
        let scales = problem_scales(case, batch);
        for at in if case.latent { 2..3 } else { 2..4 } {
            for index in 0..scales {
                let number = match case.kv_scales {
                    Some(CacheScales::PerSequence) => case.first * case.heads_kv + index,
                    _ => index,
                };
                let mut random = Random::new(case.seed ^ (97 * number + at) as u64);
                self.floats[at].push(0.5 + random.uniform() as f32);
            }
        }
        let sinks = if case.sink { heads } else { 0 };
        self.floats[1] = (0..sinks)
            .map(|_| match random.below(6) {
                0 => f32::NEG_INFINITY,
                _ => 2.0 * random.normal(),
            })
            .collect();
        if let Some(bias) = case.bias {
            let layout = PairLayout::bias(bias.element, shape(bias.whole));
            let dtype = match bias.element {
                BiasType::Same => case.dtype,
                BiasType::F32 => DType::F32,
            };
            let numbers: Vec<f32> = (0..layout.tensor().span().unwrap_or(0))
                .map(|_| match random.below(8) {
                    0 => f32::NEG_INFINITY,
                    _ => random.normal(),
                })
                .collect();
            self.tensors[3] = element::encode(dtype, &numbers);
            self.problem.bias = Some(layout);
        }
        if let Some(mask) = case.mask {
            let layout = PairLayout::mask(mask.element, shape(mask.whole));
            let bytes = layout.tensor().span().unwrap_or(0) * layout.element_bytes() as usize;
            self.tensors[4] = (0..bytes)
                .map(|_| match mask.element {
                    MaskType::Byte => (random.below(4) as u8).saturating_mul(85),
                    // Three bits of four.
                    MaskType::Bit => (random.bits() | random.bits()) as u8,
                })
                .collect();
            self.problem.mask = Some(layout);
        }
        if case.ranges > 0 {
            self.problem.ranges = Some(case.ranges);
            for [_, keys] in lengths {
                for _ in 0..case.ranges {
                    let first = random.below(keys + 2) as i32;
                    let last = first + random.below(keys + 2) as i32 - 1;
                    self.numbers[5].extend([first, last]);
                }
            }
        }
    }

    /// As the library takes them.
    pub fn inputs(&self) -> ServingInputs<'_> {
        let [q, k, v, bias, mask] = &self.tensors;
        let [q_starts, q_used, k_starts, k_used, table, ranges] = &self.numbers;
        let [alibi, sink, k_scale, v_scale] = &self.floats;
        ServingInputs {
            q,
            k,
            v,
            q_starts,
            q_used,
            k_starts,
            k_used,
            table,
            k_scale,
            v_scale,
            alibi,
            sink,
            bias,
            mask,
            ranges,
        }
    }

    /// With lengths, starts, pages and ranges that may be anything. Starts of queries stay what they are: sequences that overlap would
    /// write the same rows.
    #[must_use]
    pub fn hostile(&self, random: &mut Random) -> Self {
        let mut built = self.clone();
        for x in built.numbers.iter_mut().skip(1).flatten() {
            *x = hostile(*x, random);
        }
        built
    }

    /// So, and starts of queries too.
    #[must_use]
    pub fn hostile_to_rows(&self, random: &mut Random) -> Self {
        let mut built = self.hostile(random);
        for x in &mut built.numbers[0] {
            *x = hostile(*x, random);
        }
        built
    }

    /// First row, and number of the queries of a sequence that count.
    pub fn rows(&self, b: usize) -> [usize; 2] {
        let lengths = self.problem.q_lengths;
        let [starts, used, ..] = &self.numbers;
        let first = match lengths.starts {
            true => starts[b] as usize,
            false => 0,
        };
        let count = match (lengths.used, lengths.starts) {
            (true, _) => used[b] as usize,
            (false, true) => starts[b + 1] as usize - first,
            (false, false) => self.problem.q.shape[1],
        };
        [first, count]
    }

    /// Numbers of the output that count.
    pub fn outputs(&self) -> usize {
        let [_, _, heads, dim] = self.problem.out.shape;
        let rows = (0..self.problem.batch).map(|b| self.rows(b)[1]);
        rows.sum::<usize>() * heads * dim
    }

    /// The output and the log-sum-exp of a sequence, [rows, heads, head_dim] and [heads, rows].
    pub fn of_sequence(&self, outputs: &Outputs, b: usize) -> (Vec<f32>, Vec<f32>) {
        let dtype = self.problem.out_element();
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for (at, at_lse) in self.places(b) {
            let row = at..at + self.problem.out.shape[3];
            out.extend(row.map(|at| element::read(dtype, &outputs.out, at)));
            lse.extend(outputs.lse.as_ref().map(|lse| lse[at_lse]));
        }
        (out, lse)
    }

    /// Where the rows of a sequence are in out and in the log-sum-exp: queries, and heads of each.
    fn places(&self, b: usize) -> Vec<(usize, usize)> {
        let [_, heads, rows] = self.problem.lse_shape();
        let [first, count] = self.rows(b);
        let block = if self.problem.q_lengths.starts { 0 } else { b };
        let mut places = Vec::new();
        for i in first..first + count {
            for h in 0..heads {
                let at = self.problem.out.index([block, i, h, 0]);
                places.push((at, (block * heads + h) * rows + i));
            }
        }
        places
    }

    /// Requires [`GAP`] in every byte of the outputs that belongs to no query that counts.
    ///
    /// # Errors
    /// The first that is something else.
    pub fn check_untouched(&self, outputs: &Outputs) -> Result<(), String> {
        let width = self.problem.out_element().bytes() as usize;
        let dim = self.problem.out.shape[3];
        let mut free = vec![true; outputs.out.len()];
        let mut free_lse = vec![true; outputs.lse.as_ref().map_or(0, Vec::len)];
        for (at, at_lse) in (0..self.problem.batch).flat_map(|b| self.places(b)) {
            free[at * width..][..dim * width].fill(false);
            if let Some(free) = free_lse.get_mut(at_lse) {
                *free = false;
            }
        }
        let touched = outputs.out.iter().zip(free);
        if let Some(at) = touched
            .enumerate()
            .find_map(|(at, (&byte, free))| (free && byte != GAP).then_some(at))
        {
            return Err(format!("byte {at} of out"));
        }
        let gap = u32::from_ne_bytes([GAP; 4]);
        let lse = outputs.lse.iter().flatten().zip(free_lse);
        match lse
            .enumerate()
            .find_map(|(at, (x, free))| (free && x.to_bits() != gap).then_some(at))
        {
            Some(at) => Err(format!("number {at} of lse")),
            None => Ok(()),
        }
    }
}

/// A number that may be anything, or near one that is sound.
fn hostile(x: i32, random: &mut Random) -> i32 {
    match random.below(6) {
        0 => i32::MAX,
        1 => i32::MIN,
        2 => random.bits() as i32,
        3 => x.wrapping_add(random.below(40) as i32),
        4 => x.wrapping_sub(random.below(40) as i32),
        _ => x,
    }
}

/// How many scales keys have.
fn problem_scales(case: &ServingCase, batch: usize) -> usize {
    let scales = case.kv_scales;
    scales.map_or(0, |scales| scales.count(batch, case.heads_kv))
}

/// Where sequences of such lengths start, with room for `apart` more after each.
fn starts(lengths: impl Iterator<Item = usize>, apart: usize) -> Vec<usize> {
    let mut starts = vec![0];
    for length in lengths {
        starts.push(starts[starts.len() - 1] + length + apart);
    }
    starts
}

/// A tensor whose rows are so far apart.
fn apart(
    shape: [usize; 4],
    dtype: DType,
    distance: &dyn Fn(usize, DType) -> usize,
) -> TensorLayout {
    let [batch, rows, heads, dim] = shape;
    let layout = TensorLayout::contiguous([batch, rows, heads, distance(dim, dtype)]);
    TensorLayout { shape, ..layout }
}

fn layout(
    order: CacheOrder,
    keys: bool,
    dtype: DType,
    shape: [usize; 4],
    distance: &dyn Fn(usize, DType) -> usize,
) -> CacheLayout {
    let [blocks, rows, heads, dim] = shape;
    let wide = [blocks, rows, heads, distance(dim, dtype)];
    match (order, keys) {
        (CacheOrder::RowsFirst, _) => CacheLayout {
            shape,
            ..CacheLayout::contiguous(wide)
        },
        (CacheOrder::HeadsFirst, _) => CacheLayout {
            shape,
            ..CacheLayout::heads_first(wide)
        },
        (CacheOrder::Chunked, true) => CacheLayout::chunked_keys(dtype, shape),
        (CacheOrder::Chunked, false) => CacheLayout::transposed(shape),
    }
}

/// A table of pages in no order, the first page being nobody's, garbage behind each sequence's last, and how many pages there are.
fn pages(
    lengths: &[[usize; 2]],
    longest: usize,
    page: usize,
    random: &mut Random,
) -> (Vec<i32>, usize) {
    let entries = longest.div_ceil(page);
    let wanted: usize = lengths.iter().map(|it| it[1].div_ceil(page)).sum();
    let blocks = wanted + 2;
    let order = random.permutation(blocks - 1);
    let mut order = order.into_iter().map(|block| block + 1);
    let mut table = Vec::new();
    for [_, keys] in lengths {
        for at in 0..entries {
            table.push(match at < keys.div_ceil(page) {
                true => order.next().map_or(0, |block| block as i32),
                false => GARBAGE[random.below(GARBAGE.len())],
            });
        }
    }
    (table, blocks)
}
