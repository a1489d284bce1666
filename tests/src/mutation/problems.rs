//! The problems that a mutant has to survive: every path of a kernel, as small as it can be.

use flashtile::{Algorithm, CausalAlignment, DType, ScoreModKind, Variant};

use crate::{
    case::{Case, Placement, sizes},
    data::Distribution,
};

/// One problem: a case, and whether its log-sum-exp is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// What is computed, on which data.
    pub case: Case,
    /// Whether the log-sum-exp is wanted.
    pub lse: bool,
}

/// The problems of a variant. The first is the one that most mutants fail.
pub fn problems(variant: &Variant) -> Vec<Problem> {
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
    let (widest, in_chunk, narrow) = (dims, dims.map(|dim| dim - chunk / 2), [1, 1]);
    let many = 2 * n + n - 1;

    // Rows that end within a chunk, with gaps that keep them aligned. A second block with a single row, a last tile
    // with a single key, and enough tiles before it for every stage to be used again.
    let ragged = base(m + 1, 3 * n + 1, in_chunk, pad(chunk / 2, 0));
    // Everything exists, but for one key. The output is written in chunks.
    let whole = base(m, many, widest, pad(0, 0));
    // One element a row, and the first row is the last in memory: what is read past it is past everything.
    let backwards = |placement| Placement {
        backwards: true,
        ..placement
    };
    let lonely = base(3, 2 * n + 1, narrow, backwards(pad(chunk - 1, 0)));
    // The same without alignment: everything is copied element by element.
    let ragged_elements = base(m + 1, 3 * n + 1, in_chunk, pad(1, 1));
    let whole_elements = base(m, many, widest, pad(1, 1));
    let lonely_elements = base(3, 2 * n + 1, narrow, backwards(pad(1, 1)));
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
    let mut cases = vec![
        ragged,
        ragged_elements,
        whole,
        lonely,
        whole_elements,
        lonely_elements,
    ];
    cases.extend([lonely, lonely_elements].map(shorter));
    cases.extend([heads, negative.scale(-0.3), window.scale(-0.3), no_keys]);
    if tile.dtype != DType::F32 {
        cases.extend([ragged.out_f32(), lonely.out_f32()]);
    }
    if variant.score_mod == ScoreModKind::OptionalSoftcap {
        cases.push(whole.softcap(5.0));
    }
    if variant.algorithm == Algorithm::Fused {
        // Scores so large that each block is computed a second time.
        let large = |case: Case| match case.softcap {
            Some(_) => case.softcap(1e5).scale(1e3),
            None => case.scale(1e4),
        };
        cases.extend([whole, lonely, whole_elements, lonely_elements].map(large));
    }
    let mut problems: Vec<_> = cases
        .into_iter()
        .map(|case| Problem { case, lse: true })
        .collect();
    problems.push(Problem {
        case: heads.data(Distribution::Peaked, 2),
        lse: false,
    });
    problems
}
