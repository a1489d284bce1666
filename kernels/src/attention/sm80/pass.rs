//! What a kernel does with each key tile.

use super::config::{Config, ConfigExt};
use super::pipeline::{Block, KvTiles, query_view};
use super::query::QueryFrags;
use crate::attention::mask::Masking;
use crate::attention::score_mod::ScoreMod;
use crate::attention::softmax::{self, Care, Exponents, Guarded, RowStats};
use crate::element::Element;
use crate::ptx::{special, sync};
use crate::tile::reg::{AccumTile, MAX_M_FRAGS, RowVec};
use crate::tile::smem::{FragmentView, SmemTile};
use flashtile_abi::{DType, ScoreModKind, params::flags};

/// One walk over the keys.
pub trait Pass<C: Config> {
    /// Whether the walk needs the values too.
    const NEEDS_V: bool;
    /// Takes in the tile `n_block`.
    fn tile<M: Masking>(&mut self, block: &Block, q: &C::Query, n_block: i32, tiles: &KvTiles);
}

/// S = mask(mod(Q * K^T)) of one warp and one K tile.
#[inline(always)]
fn scores<C: Config, M: Masking>(
    block: &Block,
    q: &C::Query,
    n_block: i32,
    k: SmemTile,
) -> C::Scores {
    let mut scores = mma_qk::<C>(query_view::<C>(block), block.lane, q, k);
    let relative = matches!(C::TILE.dtype, DType::F32)
        || matches!(C::ScoreMod::KIND, ScoreModKind::OptionalSoftcap)
        || M::MASKS && block.has(flags::WIDE_CAP);
    C::ScoreMod::apply(&mut scores, block.params, relative);
    M::apply(&mut scores, block, n_block * C::TILE.block_n as i32);
    scores
}

/// Q * K^T, `query` being the lane's view of its warp's rows of the Q tile.
///
/// Where the element type limits the steps that the tensor core may sum, the sums form a loop that stays
/// one: unrolled, it would be most of the kernel's code.
#[inline(always)]
pub fn mma_qk<C: Config>(query: FragmentView, lane: u32, q: &C::Query, k: SmemTile) -> C::Scores {
    let q = q.in_tile(query);
    if C::Scores::N_FRAGS == 1 {
        return mma_qk_eight_keys::<C>(&q, &k.chunks(lane));
    }
    let view = k.chunks_then_rows(lane);
    if C::QK_SUMS == 1 {
        return mma_qk_steps::<C>(&q, &view);
    }
    let mut scores = C::Scores::ZERO;
    for sum in 0..special::opaque(C::QK_SUMS) {
        let skipped = sum * C::QK_STEPS as u32 * 32;
        let partial = mma_qk_steps::<C>(&q.skip(skipped), &view.skip(skipped));
        for m in 0..C::Scores::M_FRAGS {
            for n in 0..C::Scores::N_FRAGS {
                add(scores.frag_mut(m, n), partial.frag(m, n));
            }
        }
    }
    scores
}

/// The first `QK_STEPS` steps of Q * K^T.
#[inline(always)]
fn mma_qk_steps<C: Config>(q: &C::Query, k: &FragmentView) -> C::Scores {
    let mut scores = C::Scores::ZERO;
    if C::TILE.latent {
        for block in 0..special::opaque(C::QK_ROW_BYTES / 128) {
            add_qk_steps::<C>(&mut scores, &q.skip(128 * block), &k.skip(128 * block), 4);
        }
    } else {
        add_qk_steps::<C>(&mut scores, q, k, C::QK_STEPS);
    }
    scores
}

#[inline(always)]
fn add_qk_steps<C: Config>(scores: &mut C::Scores, q: &C::Query, k: &FragmentView, steps: usize) {
    for step in 0..steps {
        let mut a = [q.frag(0, step); MAX_M_FRAGS];
        for m in 1..C::Scores::M_FRAGS {
            a[m] = q.frag(m, step);
        }
        for n in 0..C::Scores::N_FRAGS / 2 {
            let raw = k.ldmatrix(16 * n as u32, 2 * step as u32);
            let b = [
                C::Element::frag_b([raw[0], raw[1]]),
                C::Element::frag_b([raw[2], raw[3]]),
            ];
            for m in 0..C::Scores::M_FRAGS {
                for i in 0..2 {
                    let frag = scores.frag_mut(m, 2 * n + i);
                    *frag = C::Element::mma(a[m], b[i], *frag);
                }
            }
        }
    }
}

/// Q * K^T of 8 keys: an `ldmatrix` brings two steps of them.
#[inline(always)]
fn mma_qk_eight_keys<C: Config>(q: &C::Query, k: &FragmentView) -> C::Scores {
    const { assert!(C::Scores::N_FRAGS != 1 || C::QK_SUMS == 1 && C::QK_STEPS.is_multiple_of(2)) };
    let mut scores = C::Scores::ZERO;
    for pair in 0..C::QK_STEPS / 2 {
        let raw = k.ldmatrix(0, 4 * pair as u32);
        for i in 0..2 {
            let b = C::Element::frag_b([raw[2 * i], raw[2 * i + 1]]);
            for m in 0..C::Scores::M_FRAGS {
                let frag = scores.frag_mut(m, 0);
                *frag = C::Element::mma(q.frag(m, 2 * pair + i), b, *frag);
            }
        }
    }
    scores
}

#[inline(always)]
fn add(sum: &mut [f32; 4], term: &[f32; 4]) {
    for i in 0..4 {
        sum[i] += term[i];
    }
}

/// O += P * V.
#[inline(always)]
pub fn mma_pv<C: Config>(out: &mut C::Output, p: &C::Scores, v: SmemTile, lane: u32) {
    let view = C::Element::v_view(v, lane);
    if C::Element::STEPS_PER_SUM == usize::MAX {
        for step in 0..C::PV_STEPS {
            let mut a = [C::Element::frag_p(p, 0, step); MAX_M_FRAGS];
            for m in 1..C::Output::M_FRAGS {
                a[m] = C::Element::frag_p(p, m, step);
            }
            mma_pv_step::<C>(out, a, &view, step);
        }
    } else {
        // The tile's product is summed by the tensor core, the tiles by ordinary additions.
        const { assert!(C::Output::M_FRAGS == 1 || C::Element::STEPS_PER_SUM == usize::MAX) };
        for n in 0..C::Output::N_FRAGS / 2 {
            let mut partial = [[0.0; 4]; 2];
            for step in 0..C::PV_STEPS {
                let b = C::Element::load_v(&view, step, 16 * n);
                let a = C::Element::frag_p(p, 0, step);
                for i in 0..2 {
                    partial[i] = C::Element::mma(a, b[i], partial[i]);
                }
            }
            for i in 0..2 {
                add(out.frag_mut(0, 2 * n + i), &partial[i]);
            }
        }
    }
}

/// O += P * V of one step of keys, `a` being P as left operands.
#[inline(always)]
pub fn mma_pv_step<C: Config>(
    out: &mut C::Output,
    a: [<C::Element as Element>::FragA; MAX_M_FRAGS],
    view: &<C::Element as Element>::VView,
    step: usize,
) {
    for n in 0..C::Output::N_FRAGS / 2 {
        let b = C::Element::load_v(view, step, 16 * n);
        for m in 0..C::Output::M_FRAGS {
            for i in 0..2 {
                let frag = out.frag_mut(m, 2 * n + i);
                *frag = C::Element::mma(a[m], b[i], *frag);
            }
        }
    }
}

/// Everything in one walk (FlashAttention-2): output rescaled whenever a maximum grows.
pub struct Fused<C: Config> {
    /// Row statistics.
    pub stats: RowStats,
    /// Sum of probability * value, relative to the current maxima.
    pub out: C::Output,
}

impl<C: Config> Pass<C> for Fused<C> {
    const NEEDS_V: bool = true;

    #[inline(always)]
    fn tile<M: Masking>(&mut self, block: &Block, q: &C::Query, n_block: i32, tiles: &KvTiles) {
        let mut scores = scores::<C, M>(block, q, n_block, tiles.k);
        let correction = self.stats.absorb(
            &mut scores,
            block.params.exponent_scale,
            M::exponents(block.care::<C::Element>()),
        );
        if C::SKIP_RESCALE {
            // After the first tiles most maxima stay: no row of the warp needs the multiplication by 1.
            let mut grew = false;
            for m in 0..C::Output::M_FRAGS {
                grew |= correction[m][0] != 1.0 || correction[m][1] != 1.0;
            }
            if sync::warp_any(grew) {
                softmax::scale_rows(&mut self.out, &correction);
            }
        } else {
            softmax::scale_rows(&mut self.out, &correction);
        }
        mma_pv::<C>(&mut self.out, &scores, tiles.v, block.lane);
    }
}

impl<C: Config> Fused<C> {
    /// Before the first tile.
    pub const START: Self = Self {
        stats: RowStats::EMPTY,
        out: C::Output::ZERO,
    };
}

/// The ladder's passes take care in every tile: their speed is not the point.
const CAREFUL: Guarded = Guarded(Care {
    careful: true,
    factor: 1.0,
    slack: 0.0,
    polynomials: 0,
    apart: false,
});

/// Maxima alone: the first pass of three.
pub struct Max {
    /// Largest score of each row.
    pub max: RowVec,
}

impl<C: Config> Pass<C> for Max {
    const NEEDS_V: bool = false;

    #[inline(always)]
    fn tile<M: Masking>(&mut self, block: &Block, q: &C::Query, n_block: i32, tiles: &KvTiles) {
        softmax::update_max(&mut self.max, &scores::<C, M>(block, q, n_block, tiles.k));
    }
}

/// Sums for known maxima: the second pass of three.
pub struct Sum {
    /// Row statistics, the maxima final.
    pub stats: RowStats,
}

impl<C: Config> Pass<C> for Sum {
    const NEEDS_V: bool = false;

    #[inline(always)]
    fn tile<M: Masking>(&mut self, block: &Block, q: &C::Query, n_block: i32, tiles: &KvTiles) {
        let mut scores = scores::<C, M>(block, q, n_block, tiles.k);
        CAREFUL.probabilities(&mut scores, &self.stats.max, block.params.exponent_scale);
        softmax::add_sum(&mut self.stats.sum, &scores);
    }
}

/// Maxima and sums together (online softmax): the first pass of two.
pub struct MaxSum {
    /// Row statistics.
    pub stats: RowStats,
}

impl<C: Config> Pass<C> for MaxSum {
    const NEEDS_V: bool = false;

    #[inline(always)]
    fn tile<M: Masking>(&mut self, block: &Block, q: &C::Query, n_block: i32, tiles: &KvTiles) {
        let mut scores = scores::<C, M>(block, q, n_block, tiles.k);
        self.stats
            .absorb(&mut scores, block.params.exponent_scale, CAREFUL);
    }
}

/// The weighted sum for known maxima and sums: the last pass of two or three. Probabilities are
/// normalised before they are rounded, as in the textbook.
pub struct WeightedSum<C: Config> {
    /// Final maxima.
    pub max: RowVec,
    /// 1 / final sums.
    pub inverse_sum: RowVec,
    /// Sum of probability * value.
    pub out: C::Output,
}

impl<C: Config> Pass<C> for WeightedSum<C> {
    const NEEDS_V: bool = true;

    #[inline(always)]
    fn tile<M: Masking>(&mut self, block: &Block, q: &C::Query, n_block: i32, tiles: &KvTiles) {
        let mut scores = scores::<C, M>(block, q, n_block, tiles.k);
        CAREFUL.probabilities(&mut scores, &self.max, block.params.exponent_scale);
        softmax::scale_rows(&mut scores, &self.inverse_sum);
        mma_pv::<C>(&mut self.out, &scores, tiles.v, block.lane);
    }
}
