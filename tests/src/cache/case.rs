//! A generated case.

use flashtile::{
    DType, TensorLayout,
    cache::{
        AppendProblem, GatherProblem, IndexType, Place, QueryRows, Rotary, RotaryPairs,
        RotaryTable, Rows, Sequences, TableType,
    },
    serving::{CacheLayout, CacheScales, PageTable},
};
use flashtile_verify::data::Random;
use proptest::{collection::vec, option, prelude::*, sample::select};

/// How caches lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layouts {
    /// [blocks, rows, heads, dim]
    Contiguous,
    /// [blocks, heads, rows, dim]
    HeadsFirst,
    /// vLLM's: keys [blocks, heads, dim / 8, rows, 8], values [blocks, heads, dim, rows].
    Chunked,
    /// Contiguous, with unused elements behind every row.
    Gaps,
    /// Contiguous, from the last element to the first but for a row's own.
    Backwards,
}

/// How rows are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    /// By slots.
    Slots,
    /// By `starts`, in pages.
    Packed,
    /// By `starts`, without pages.
    PackedDense,
    /// Each sequence a batch, in pages.
    Paged,
    /// Each sequence a batch, without pages.
    Dense,
}

/// What turns keys and queries.
#[derive(Clone, Debug)]
pub struct RotaryCase {
    /// Pairs, as a share of what head_dim has.
    pub share: f64,
    /// Pairs follow each other.
    pub interleaved: bool,
    /// Tables in f32.
    pub wide: bool,
    /// Sines behind the cosines of a position.
    pub joined: bool,
    /// What positions are. Slots have i64 for none.
    pub positions: Option<IndexType>,
    /// Heads of queries, and whether they are turned in place.
    pub queries: Option<(usize, bool)>,
}

/// A case of appending or gathering.
#[derive(Clone, Debug)]
pub struct CacheCase {
    /// Type of the elements.
    pub dtype: DType,
    /// If caches are e4m3: how many scales they have. With slots, sequences have none of their own.
    pub narrow: Option<CacheScales>,
    /// Of the caches.
    pub layouts: Layouts,
    /// Whether the tensors are [batch, heads, rows, dim].
    pub heads_first: bool,
    /// How rows are found.
    pub place: PlaceKind,
    /// Rows of a block.
    pub page: usize,
    /// Blocks that no page needs.
    pub spare: usize,
    /// Heads of keys.
    pub heads: usize,
    /// Of keys, and of values if there are any.
    pub dims: (usize, Option<usize>),
    /// Unused elements before each buffer's first, in turn, and behind rows of tensors.
    pub gaps: [usize; 2],
    /// Tokens of each sequence.
    pub lengths: Vec<usize>,
    /// Tokens behind the last sequence, where sequences follow each other.
    pub tail: usize,
    /// Whether there are `used` and `first`.
    pub has: [bool; 2],
    /// Of appending.
    pub rotary: Option<RotaryCase>,
    /// Whether some of the numbers on the device are wild.
    pub hostile: bool,
    /// Of numbers and elements.
    pub seed: u64,
}

/// The numbers on the device.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// By token.
    pub slots: Vec<i64>,
    /// batch + 1
    pub starts: Vec<i32>,
    /// By sequence.
    pub used: Vec<i32>,
    /// By sequence.
    pub first: Vec<i32>,
    /// [batch, entries]
    pub table: Vec<i32>,
    /// By token.
    pub positions: Vec<i64>,
    /// Of keys and of values: by sequence and head, by head, or one.
    pub scales: [Vec<f32>; 2],
}

/// Positions of the tables: more than sequences are long.
const POSITIONS: usize = 40;

/// Strategy of cases.
pub fn case(hostile: bool, rotary: bool) -> impl Strategy<Value = CacheCase> {
    let layouts = select(vec![
        Layouts::Contiguous,
        Layouts::HeadsFirst,
        Layouts::Chunked,
        Layouts::Gaps,
        Layouts::Backwards,
    ]);
    let place = select(vec![
        PlaceKind::Slots,
        PlaceKind::Packed,
        PlaceKind::PackedDense,
        PlaceKind::Paged,
        PlaceKind::Dense,
    ]);
    // 18 and 34 are 9 and 17 pairs: a unit with one pair behind whole ones.
    let dim = || select(vec![1, 2, 5, 8, 12, 16, 18, 24, 34, 48, 64, 128]);
    let turned = (
        select(vec![0.1, 0.5, 1.0, 1.0]),
        any::<[bool; 3]>(),
        select(vec![None, Some(IndexType::I32), Some(IndexType::I64)]),
        option::weighted(0.7, (select(vec![1usize, 3, 40]), any::<bool>())),
    )
        .prop_map(
            |(share, [interleaved, wide, joined], positions, queries)| RotaryCase {
                share,
                interleaved,
                wide,
                joined,
                positions,
                queries,
            },
        );
    let narrow = option::weighted(
        0.5,
        select(vec![
            CacheScales::None,
            CacheScales::PerTensor,
            CacheScales::PerHead,
            CacheScales::PerSequence,
        ]),
    );
    let shape = (
        (select(vec![DType::F16, DType::Bf16]), narrow),
        layouts,
        place,
        any::<bool>(),
        select(vec![1usize, 2, 3, 4, 16]),
        0usize..3,
        1usize..4,
        (dim(), option::weighted(0.8, dim())),
    );
    let rest = (
        select(vec![[0, 0], [0, 8], [1, 0], [3, 5], [8, 0]]),
        (vec(0usize..7, 1..5), 0usize..3),
        any::<[bool; 2]>(),
        turned,
        any::<u64>(),
    );
    (shape, rest).prop_map(move |(shape, (gaps, (lengths, tail), has, turned, seed))| {
        let rotary = rotary.then_some(turned);
        let ((dtype, narrow), layouts, place, heads_first, page, spare, heads, dims) = shape;
        let dims = match &rotary {
            // There must be a pair.
            Some(_) => (dims.0.max(2), dims.1),
            None => dims,
        };
        CacheCase {
            dtype,
            narrow,
            layouts,
            heads_first,
            place,
            page,
            spare,
            heads,
            dims,
            gaps,
            lengths,
            tail,
            has,
            rotary,
            hostile,
            seed,
        }
    })
}

impl CacheCase {
    /// Sequences.
    pub fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens of the longest sequence.
    fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or_default()
    }

    /// The first two dimensions of tensors.
    pub fn tokens(&self) -> [usize; 2] {
        match self.place {
            PlaceKind::Slots => [1, self.lengths.iter().sum()],
            PlaceKind::Packed | PlaceKind::PackedDense => {
                [1, self.lengths.iter().sum::<usize>() + self.tail]
            }
            PlaceKind::Paged | PlaceKind::Dense => [self.batch(), self.longest()],
        }
    }

    /// Pages of a sequence: enough for two rows before its longest.
    fn entries(&self) -> usize {
        (self.longest() + 2).div_ceil(self.page)
    }

    /// Blocks, and rows of each.
    fn blocks(&self) -> [usize; 2] {
        match self.place {
            PlaceKind::Slots => [self.tokens()[1].div_ceil(self.page) + self.spare, self.page],
            PlaceKind::Packed | PlaceKind::Paged => {
                [self.batch() * self.entries() + self.spare, self.page]
            }
            PlaceKind::PackedDense | PlaceKind::Dense => [self.batch(), self.longest() + 2],
        }
    }

    /// A tensor of the tokens.
    pub fn tensor(&self, heads: usize, dim: usize) -> TensorLayout {
        let [batch, rows] = self.tokens();
        let wide = [batch, rows, heads, dim + self.gaps[1]];
        let layout = match self.heads_first {
            true => TensorLayout::heads_first(wide),
            false => TensorLayout::contiguous(wide),
        };
        TensorLayout {
            shape: [batch, rows, heads, dim],
            ..layout
        }
    }

    fn cache(&self, dim: usize, is_key: bool) -> CacheLayout {
        let [blocks, rows] = self.blocks();
        let shape = [blocks, rows, self.heads, dim];
        match (self.layouts, is_key) {
            (Layouts::Contiguous, _) => CacheLayout::contiguous(shape),
            (Layouts::HeadsFirst, _) => CacheLayout::heads_first(shape),
            (Layouts::Chunked, true) => CacheLayout::chunked_keys(self.kv_dtype(), shape),
            (Layouts::Chunked, false) => CacheLayout::transposed(shape),
            (Layouts::Gaps, _) => CacheLayout {
                shape,
                ..CacheLayout::contiguous([blocks, rows, self.heads, dim + 8])
            },
            (Layouts::Backwards, _) => {
                let mut layout = CacheLayout::contiguous(shape);
                layout.strides = layout.strides.map(|stride| -stride);
                layout
            }
        }
    }

    fn rows(&self, dim: usize, is_key: bool) -> Rows {
        Rows {
            tensor: self.tensor(self.heads, dim),
            cache: self.cache(dim, is_key),
        }
    }

    /// How rows are found.
    pub fn place(&self) -> Place {
        if self.place == PlaceKind::Slots {
            return Place::Slots;
        }
        let paged = matches!(self.place, PlaceKind::Packed | PlaceKind::Paged);
        Place::Sequences(Sequences {
            batch: self.batch(),
            starts: matches!(self.place, PlaceKind::Packed | PlaceKind::PackedDense),
            used: self.has[0],
            first: self.has[1],
            pages: paged.then(|| PageTable {
                entries: self.entries(),
                strides: [self.entries() as i64, 1],
            }),
        })
    }

    /// How elements are turned.
    pub fn rotary(&self) -> Option<Rotary> {
        let rotary = self.rotary.as_ref()?;
        let pairs = ((self.dims.0 / 2) as f64 * rotary.share).ceil() as usize;
        let positions = match self.place {
            PlaceKind::Slots => Some(rotary.positions.unwrap_or(IndexType::I64)),
            _ => rotary.positions,
        };
        let queries = rotary.queries.map(|(heads, in_place)| {
            let q = self.tensor(heads, self.dims.0);
            let [batch, rows] = self.tokens();
            let out = TensorLayout::contiguous([batch, rows, heads, self.dims.0]);
            QueryRows {
                q,
                out: if in_place { q } else { out },
            }
        });
        Some(Rotary {
            rotary_dim: 2 * pairs,
            pairs: match rotary.interleaved {
                true => RotaryPairs::Interleaved,
                false => RotaryPairs::Halves,
            },
            table: RotaryTable {
                element: match rotary.wide {
                    true => TableType::F32,
                    false => TableType::Same,
                },
                positions: POSITIONS,
                stride: (pairs * if rotary.joined { 2 } else { 1 }) as i64,
            },
            positions,
            queries,
        })
    }

    /// Type of the caches' elements.
    pub fn kv_dtype(&self) -> DType {
        self.narrow.map_or(self.dtype, |_| DType::E4m3)
    }

    /// How many scales there are.
    pub fn kv_scales(&self) -> CacheScales {
        match self.narrow {
            Some(CacheScales::PerSequence) if self.place == PlaceKind::Slots => {
                CacheScales::PerHead
            }
            scales => scales.unwrap_or_default(),
        }
    }

    /// The problem of appending.
    pub fn append(&self) -> AppendProblem {
        AppendProblem {
            dtype: self.dtype,
            kv_dtype: self.kv_dtype(),
            kv_scales: self.kv_scales(),
            k: self.rows(self.dims.0, true),
            v: self.dims.1.map(|dim| self.rows(dim, false)),
            place: self.place(),
            rotary: self.rotary(),
        }
    }

    /// The problem of gathering.
    pub fn gather(&self) -> GatherProblem {
        let AppendProblem {
            dtype,
            kv_dtype,
            kv_scales,
            k,
            v,
            place,
            ..
        } = self.append();
        GatherProblem {
            dtype,
            kv_dtype,
            kv_scales,
            k,
            v,
            place,
        }
    }

    /// The numbers on the device. Rows that are sound are distinct.
    pub fn numbers(&self) -> Numbers {
        let mut random = Random::new(self.seed);
        let [blocks, rows] = self.blocks();
        let [batch, of_batch] = self.tokens();
        let tokens = batch * of_batch;
        let mut numbers = Numbers::default();
        if self.place == PlaceKind::Slots {
            let slots = random.permutation(blocks * rows);
            numbers.slots = slots[..tokens].iter().map(|&slot| slot as i64).collect();
            for slot in &mut numbers.slots {
                if random.below(5) == 0 {
                    *slot = -1;
                }
                let end = (blocks * rows) as i64;
                let wild = [
                    -2,
                    i64::MIN,
                    end,
                    i64::MAX,
                    *slot + (1 << 32),
                    *slot - (1 << 32),
                ];
                self.corrupt(&mut random, slot, &wild);
            }
        } else {
            let mut total = 0;
            let starts = self.lengths.iter().map(|&n| {
                total += n;
                total as i32
            });
            let starts: Vec<i32> = [0].into_iter().chain(starts).collect();
            for sequence in 0..self.batch() {
                let length = match self.place {
                    PlaceKind::Paged | PlaceKind::Dense => of_batch,
                    _ => self.lengths[sequence],
                };
                let mut used = random.below(length + 1) as i32;
                self.corrupt(&mut random, &mut used, &[-1, i32::MIN, i32::MAX]);
                numbers.used.push(used);
                let mut first = random.below(3) as i32;
                let wild = [-1, -3, i32::MIN, i32::MAX, i32::MAX - 2, 5];
                self.corrupt(&mut random, &mut first, &wild);
                numbers.first.push(first);
            }
            if matches!(self.place, PlaceKind::Packed | PlaceKind::PackedDense) {
                numbers.starts = starts;
            }
            if matches!(self.place, PlaceKind::Packed | PlaceKind::Paged) {
                let order = random.permutation(blocks);
                numbers.table = order[..self.batch() * self.entries()]
                    .iter()
                    .map(|&block| block as i32)
                    .collect();
                for entry in &mut numbers.table {
                    let wild = [-1, i32::MIN, i32::MAX, blocks as i32];
                    self.corrupt(&mut random, entry, &wild);
                }
            }
            let [used, first] = self.has;
            if !used {
                numbers.used.clear();
            }
            if !first {
                numbers.first.clear();
            }
        }
        if let Some(index) = self.rotary().and_then(|rotary| rotary.positions) {
            for _ in 0..tokens {
                // The last one often: its row ends with the table.
                let mut position = match random.below(3) {
                    0 => POSITIONS - 1,
                    _ => random.below(POSITIONS),
                } as i64;
                let end = POSITIONS as i64;
                let wild = [-1, i64::from(i32::MIN), end, i64::from(i32::MAX)];
                self.corrupt(&mut random, &mut position, &wild);
                if index == IndexType::I64 {
                    let wild = [position + (1 << 32), i64::MIN, i64::MAX];
                    self.corrupt(&mut random, &mut position, &wild);
                }
                numbers.positions.push(position);
            }
        }
        let count = self.kv_scales().count(self.batch(), self.heads);
        // Ordinary ones, and both ends.
        let scale = |random: &mut Random| match random.below(8) {
            0 => f32::from_bits(1 + random.below(1 << 20) as u32),
            1 => f32::MAX,
            _ => 0.001 + random.uniform() as f32,
        };
        let sides = [true, self.dims.1.is_some()];
        numbers.scales = sides.map(|has| {
            let count = if has { count } else { 0 };
            (0..count).map(|_| scale(&mut random)).collect()
        });
        numbers
    }

    /// Replaces a number by a wild one, now and then, in a hostile case.
    fn corrupt<T: Copy>(&self, random: &mut Random, number: &mut T, wild: &[T]) {
        if self.hostile && random.below(4) == 0 {
            *number = wild[random.below(wild.len())];
        }
    }
}
