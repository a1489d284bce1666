//! The dense problems that a mutant has to survive: every path of a kernel, as small as it can be.

use flashtile::{
    Algorithm, Arch, CausalAlignment, DType, ScaleLayout, ScoreModKind, Variant, element,
};

use super::work::distance;
use crate::{
    case::{Case, Placement, sizes},
    data::{Distribution, Tensors, row},
};

/// One problem: a case, and whether its log-sum-exp is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// What is computed, on which data.
    pub case: Case,
    /// Whether the log-sum-exp is wanted.
    pub lse: bool,
    /// Whether each row is an allocation of its own, so that nothing beyond it can be read. The case's strides are
    /// such that its rows are [`Self::ROW_DISTANCE`] bytes apart.
    pub rows_apart: bool,
    /// A head whose first queries are so large that their piece of work is spoilt; all of them, if heads have scales.
    pub spoilt_head: Option<usize>,
    /// So many heads' first values are not finite, which spoils their pieces of work whatever the scores are.
    pub infinite_heads: usize,
}

impl Problem {
    /// How far apart the emulator puts two small allocations.
    pub const ROW_DISTANCE: usize = distance(1);

    fn of(case: Case) -> Self {
        Self {
            case,
            lse: true,
            rows_apart: false,
            spoilt_head: None,
            infinite_heads: 0,
        }
    }

    /// Its data.
    pub fn tensors(&self) -> Tensors {
        let case = &self.case;
        let mut tensors = Tensors::of(case);
        // Elements of 8 bits are never so large. Their scale can be.
        match self.spoilt_head {
            Some(head) if case.dtype == DType::E4m3 => tensors.scales[0][head] *= 1e4,
            Some(head) => {
                for s in 0..3 {
                    for q in &mut tensors.q[row(case.shapes()[0], 0, s, head)] {
                        *q = element::round(case.dtype, *q * 1e4);
                    }
                }
            }
            None => {}
        }
        let infinity = match case.dtype {
            DType::E4m3 => f32::NAN,
            _ => f32::INFINITY,
        };
        for head in 0..self.infinite_heads {
            let values = row(case.shapes()[2], 0, 0, head);
            if let Some(v) = tensors.v.get_mut(values).and_then(<[f32]>::first_mut) {
                *v = infinity;
            }
        }
        tensors
    }

    fn infinite(self, heads: usize) -> Self {
        Self {
            infinite_heads: heads,
            ..self
        }
    }

    fn apart(mut case: Case) -> Self {
        let dtypes = [case.dtype, case.dtype, case.dtype, case.out_element()];
        let shapes = case.shapes();
        for i in 0..4 {
            let elements = Self::ROW_DISTANCE / dtypes[i].bytes() as usize;
            case.placements[i].pad = elements - shapes[i][3];
        }
        Self {
            rows_apart: true,
            ..Self::of(case)
        }
    }
}

/// The problems of a variant. The first is the one that most mutants fail.
pub fn problems(variant: &Variant) -> Vec<Problem> {
    match variant.arch {
        Arch::Sm80 => problems_sm80(variant),
        Arch::Sm90a => problems_sm90a(variant),
    }
}

fn problems_sm80(variant: &Variant) -> Vec<Problem> {
    let tile = &variant.tile;
    let (m, n) = (tile.block_m as usize, tile.block_n as usize);
    // Elements of 16 bytes, the unit of asynchronous copies and of wide stores.
    let chunk = 16 / tile.dtype.bytes() as usize;
    let dims = [tile.head_dim_qk as usize, tile.head_dim_v as usize];

    let base = |queries: usize, keys: usize, dims: [usize; 2], placement: Placement| {
        let mut case = Case::new(tile.dtype, sizes(queries, keys, [1, 1], dims[0]))
            .algorithm(variant.algorithm);
        case.shape.head_dim_v = dims[1];
        case.placements = [placement; 4];
        case.softcap = (variant.score_mod == ScoreModKind::Softcap).then_some(5.0);
        case.data(Distribution::Normal, 1)
    };
    let pad = |pad: usize, offset: usize| Placement {
        pad,
        offset,
        ..Placement::default()
    };
    let (widest, in_chunk) = (dims, dims.map(|dim| dim - chunk / 2));
    let many = 2 * n + n - 1;

    // Rows that end within a chunk, with gaps that keep them aligned. A second block with a single row, a last tile
    // with a single key, and enough tiles before it for every stage to be used again.
    let ragged = base(m + 1, 3 * n + 1, in_chunk, pad(chunk / 2, 0));
    // Everything exists, but for one key. The output is written in chunks.
    let whole = base(m, many, widest, pad(0, 0));
    // Rows of an element, of a chunk where values can have it, each by itself.
    let lonely = base(3, 2 * n + 1, [1, chunk], pad(0, 0));
    let ragged_elements = base(m + 1, 3 * n + 1, in_chunk, pad(1, 1));
    let whole_elements = base(m, many, widest, pad(1, 1));
    let lonely_elements = base(3, 2 * n + 1, [1, 1], pad(0, 1));
    // Several heads and batches. One tile, that needs no mask.
    let mut heads = base(m, n, widest, pad(0, 0));
    (heads.shape.batch, heads.shape.heads_q) = (2, 2);
    // Queries are negated; some tiles are masked.
    let negative = base(m, 2 * n + n / 2, widest, pad(0, 0)).causal(CausalAlignment::BottomRight);
    let window = whole_elements.window(Some(n as u32), Some(n as u32 / 2));
    // The first blocks of rows see no key at all, and have nothing to copy.
    let no_keys =
        base(2 * m + 3, n / 2 + 1, widest, pad(0, 0)).causal(CausalAlignment::BottomRight);

    // With one tile less, the tile of the first row is asked for by a masked tile instead of an unmasked one.
    let shorter = |mut case: Case| {
        case.shape.seqlen_k -= n;
        case
    };
    let mut problems = vec![Problem::of(whole)];
    if tile.dtype != DType::F32 {
        // Each output has a guard of its own here: of its column, if all rows exist, and of its row.
        problems.push(Problem::apart(base(m, n, [1, 1], pad(0, 0)).out_f32()));
        problems.push(Problem::of(base(3, n, widest, pad(0, 0)).out_f32()));
        problems.push(Problem::of(ragged.out_f32()));
    }
    problems.push(Problem::of(whole_elements));
    let apart = [lonely, lonely_elements];
    problems.extend(apart.map(Problem::apart));
    problems.extend([ragged, ragged_elements].map(Problem::of));
    problems.extend(apart.map(shorter).map(Problem::apart));
    problems.extend([heads, no_keys].map(Problem::of));
    let negated = [negative, window, no_keys].map(|case| case.scale(-0.3));
    problems.extend(negated.map(Problem::of));
    if variant.score_mod == ScoreModKind::OptionalSoftcap {
        problems.push(Problem::of(whole.softcap(5.0)));
    }
    if variant.algorithm == Algorithm::Fused {
        // Scores so large that each block is computed a second time, or a cap so wide that it takes a longer way.
        let large = |case: Case| match case.softcap {
            Some(_) if case.dtype == DType::E4m3 => case.softcap(256.0).scale(1e3),
            Some(_) => case.softcap(1e5).scale(1e3),
            None => case.scale(1e4),
        };
        problems.extend([whole, whole_elements].map(large).map(Problem::of));
        problems.extend(apart.map(large).map(Problem::apart));
        // Scores with a cap spoil nothing.
        if variant.score_mod == ScoreModKind::Softcap && tile.dtype != DType::F32 {
            let values = [whole, whole_elements].map(Problem::of);
            problems.extend(values.map(|problem| problem.infinite(1)));
            problems.extend(apart.map(|case| Problem::apart(case).infinite(1)));
        }
    }
    problems.push(Problem {
        lse: false,
        ..Problem::of(heads.data(Distribution::Peaked, 2))
    });
    problems
}

/// Copies are the copy engine's here, so that rows and chunks have no code of their own, and work is shared out in several ways.
fn problems_sm90a(variant: &Variant) -> Vec<Problem> {
    let tile = &variant.tile;
    let (m, n) = (tile.block_m as usize, tile.block_n as usize);
    let base = |queries: usize, keys: usize| {
        let mut case = Case::of_variant(variant, queries, keys);
        case.softcap = case.softcap.map(|_| 5.0);
        if tile.dtype == DType::E4m3 {
            case = case.scales(ScaleLayout::PerHead);
        }
        case.data(Distribution::Normal, 1)
    };
    let large = |case: Case| match case.softcap {
        Some(_) if tile.dtype == DType::E4m3 => case.softcap(256.0).scale(1e3),
        Some(_) => case.softcap(1e5).scale(1e3),
        None => case.scale(1e4),
    };
    let in_blocks = |case: Case| match tile.dtype {
        DType::E4m3 => case.scales(ScaleLayout::PerBlock { rows: 128 }),
        _ => case,
    };

    // A last tile with a single key missing.
    let whole = base(m, 3 * n - 1);
    // Each stage is used so often that an mbarrier that misses one of eight arrivals a time is a phase ahead.
    let long = base(m, 8 * tile.stages as usize * n);
    // Four heads share a tile that they do not fill.
    let packed = base(m / 4 - 5, n + 3).heads(4, 1);
    // Three pieces for a block, some with half a tile of rows.
    let pieces = base(m / 2 + 1, n + 1).heads(9, 9);
    // The same with other numbers of tiles: with one or the other, pieces begin at any stage.
    let odd = base(m / 2 + 1, 2 * n + 1).heads(9, 9);
    // Two pieces for a pair of blocks, where the variant has pairs.
    let pairs = base(2 * m, 3 * n + 1).heads(3, 3);
    // Masked tiles on either side of unmasked ones.
    let window = base(m / 2 + 3, 6 * n).window(Some(2 * n as u32), Some(2 * n as u32));
    // Pieces without keys among others.
    let no_keys = base(2 * m + 3, n / 2 + 1)
        .causal(CausalAlignment::BottomRight)
        .heads(2, 2);
    let negative = base(m, 2 * n + n / 2)
        .causal(CausalAlignment::BottomRight)
        .scale(-0.3);
    // Rows that end within a chunk, in two batches.
    let mut ragged = base(m / 2 + 3, n + 1);
    ragged.shape.batch = 2;
    ragged.shape.head_dim_qk -= 3;
    ragged.shape.head_dim_v -= 3;
    let ragged = in_blocks(ragged.addressable());
    let mut narrow = ragged.heads(2, 1);
    narrow.shape.head_dim_v = 8;
    let narrow = narrow.addressable();
    // The other columns of a tile would be others' memory.
    let mut column = base(m / 2 + 3, n);
    column.shape.head_dim_v = 1;
    let mut column = column.addressable().out_f32();
    column.placements[3].pad = tile.head_dim_v as usize;

    let mut problems = vec![whole, packed, pieces, pairs, window];
    problems.extend([no_keys, negative, ragged, narrow]);
    if tile.dtype == DType::E4m3 {
        // Tiles with masks and those without have code of their own for scales of values, and for sums of several tiles.
        problems.extend([pairs, window].map(in_blocks));
        problems.push(negative.out_f32());
        problems
            .extend([ScaleLayout::One, ScaleLayout::PerTensor].map(|layout| pairs.scales(layout)));
    }
    problems.extend([whole, ragged].map(Case::out_f32));
    problems.push(column);
    problems.extend([pieces, pairs, packed].map(large));
    // Pieces that take care from the beginning.
    problems.push(large(whole.causal(CausalAlignment::TopLeft)));
    let mut problems: Vec<_> = problems.into_iter().map(Problem::of).collect();
    // Of pieces with capped scores all are spoilt: the last one of a block is done again too.
    for (case, infinite) in [(pieces, 9), (pairs.heads(5, 5), 1)] {
        problems.push(match variant.score_mod {
            ScoreModKind::Softcap => Problem::of(case).infinite(infinite),
            _ => Problem {
                spoilt_head: Some(4),
                ..Problem::of(case)
            },
        });
    }
    problems.push(Problem {
        lse: false,
        ..Problem::of(odd.out_f32().data(Distribution::Peaked, 2))
    });
    problems.push(Problem::of(long));
    problems
}
