//! 8-bit elements (e4m3), with scales.
//!
//! Hopper's tensor cores keep about 14 bits of a sum of 8-bit products. Sums over the head dimension and over a few tiles of keys can
//! afford that; the output can't (DeepSeek-V3, arXiv:2412.19437, section 3.3.2). So products with values go to sums of their own,
//! which are added to the output by ordinary f32 additions every [`PROMOTE_AFTER`] tiles.
//!
//! Probabilities are 2^8 times as large as elsewhere, up to 256 of the type's 448, so that small ones keep their bits
//! (FlashAttention-3, hopper/softmax.h). Row maxima are those of the scaled scores, exponents of two, since keys may have scales of
//! their own.
//!
//! Both operands of an 8-bit product are contiguous along the sum, so values are transposed on chip ([`super::transpose`]). The
//! accumulators of 32 keys are a left operand if the keys are taken in another order; the transposed values have that order.

use super::config::{Arithmetic, Config, ConfigExt};
use super::consumer::Rows;
use super::half::mm_qk;
use super::scheduler::Work;
use crate::attention::mask::Masking;
use crate::attention::score_mod::ScoreMod;
use crate::attention::softmax::{self, Care, Growth, NO_KEY, NOTHING, RowStats};
use crate::ptx::wgmma::{self, Descriptor, Wgmma};
use crate::ptx::{copy, math, sync};
use crate::tile::operand::OperandTile;
use crate::tile::reg::AccumTile;
use flashtile_abi::params::flags;
use flashtile_abi::{DType, HopperParams, ScaleView, ScoreModKind};

/// Exponents are larger by this.
const OFFSET: f32 = 8.0;

/// How far a row's maximum may grow before its sums are rescaled: 2^8.75 is below 448.
const RESCALE_ABOVE: f32 = 0.75;

/// Tiles whose products the tensor core sums before they are added to the output, where values have one scale a head.
const PROMOTE_AFTER: u32 = 2;

/// What values are multiplied by in a piece of work that takes care: sums over 2^30 keys of any scale stay finite.
const CAREFUL_VALUES: f32 = 1.0 / (1u64 << 63) as f32;

/// Arithmetic of e4m3; `STEPS` steps of 32 keys in a tile, sums of tensor cores in `P`.
pub struct E4m3<P, const STEPS: usize>(P);

/// Sums of probability * value.
pub struct Sums<O, P> {
    out: O,
    /// What the tensor cores have summed, of this many tiles.
    held: P,
    tiles: u32,
}

/// Scales of a piece of work.
#[derive(Clone, Copy)]
pub struct Scales {
    /// What scores of the lane's two rows are multiplied by, where keys have one scale a head (else they have their own besides).
    rows: [f32; 2],
    batch: u32,
    kv_head: u32,
    careful: bool,
}

impl Scales {
    /// The scale of the tile's rows, where blocks of them have their own, else 1: one for the whole head counts elsewhere.
    #[inline(always)]
    fn of_block(&self, view: &ScaleView, n_begin: i32) -> f32 {
        if by_block(view) {
            scale(view, self.batch, self.kv_head, n_begin)
        } else {
            1.0
        }
    }

    /// What products with a tile's values are multiplied by.
    #[inline(always)]
    fn values(&self, params: &HopperParams, n_begin: i32) -> f32 {
        let scale = self.of_block(&params.v_scale, n_begin);
        if self.careful {
            scale * CAREFUL_VALUES
        } else {
            scale
        }
    }
}

/// The scale of a row.
#[inline(always)]
fn scale(view: &ScaleView, batch: u32, head: u32, row: i32) -> f32 {
    if view.ptr == 0 {
        return 1.0;
    }
    let offset = batch as i64 * view.batch_stride
        + head as i64 * view.head_stride
        + (row >> view.shift) as i64 * 4;
    // SAFETY: the row has a scale.
    f32::from_bits(unsafe { copy::ld_global_u32(view.ptr.wrapping_add(offset as u64)) })
}

/// The scale of a head, where it is one, else 1.
#[inline(always)]
fn of_head(view: &ScaleView, batch: u32, head: u32) -> f32 {
    if by_block(view) {
        1.0
    } else {
        scale(view, batch, head, 0)
    }
}

/// Whether blocks of rows have scales of their own.
#[inline(always)]
fn by_block(view: &ScaleView) -> bool {
    view.ptr != 0 && view.shift < 31
}

impl<C, P, const STEPS: usize> Arithmetic<C> for E4m3<P, STEPS>
where
    P: AccumTile + Wgmma<wgmma::E4m3>,
    C: Config<Params = HopperParams, Scores: Wgmma<wgmma::E4m3>>,
{
    const DTYPE: DType = DType::E4m3;
    // There are no registers for more than one part of the output's products at a time.
    const OVERLAP: bool = P::N_FRAGS == C::Output::N_FRAGS;
    const CAREFUL_FACTOR: f32 = 1.0;
    const SLACK: f32 = RESCALE_ABOVE;
    type Probabilities = [[u32; 4]; STEPS];
    type Sums = Sums<C::Output, P>;
    type Scales = Scales;

    const START: Sums<C::Output, P> = Sums {
        out: C::Output::ZERO,
        held: P::ZERO,
        tiles: 0,
    };
    const NONE: [[u32; 4]; STEPS] = [[0; 4]; STEPS];
    const EXPONENT_OFFSET: f32 = OFFSET;

    #[inline(always)]
    fn scales(params: &HopperParams, rows: &Rows, work: &Work) -> Scales {
        let kv_head = work.kv_head(params);
        let k = of_head(&params.k_scale, work.batch, kv_head);
        // Scores that are capped are multiplied before that.
        let k = match C::ScoreMod::KIND {
            ScoreModKind::None => k * params.attention.exponent_scale,
            _ => k,
        };
        let row = |half: usize| {
            // Rows that do not exist have no scale either.
            if rows.exists(half) {
                scale(
                    &params.q_scale,
                    work.batch,
                    rows.head(work, half),
                    rows.query(half),
                ) * k
            } else {
                1.0
            }
        };
        Scales {
            rows: [row(0), row(1)],
            batch: sync::broadcast(work.batch),
            kv_head: sync::broadcast(kv_head),
            careful: work.careful,
        }
    }

    #[inline(always)]
    unsafe fn mm_qk(q: Descriptor, k: Descriptor) -> C::Scores {
        // SAFETY: the caller's promise.
        unsafe { mm_qk::<C, wgmma::E4m3>(q, k) }
    }

    #[inline(always)]
    fn descale(params: &HopperParams, scores: &mut C::Scores, scales: Scales, n_begin: i32) {
        let k = scales.of_block(&params.k_scale, n_begin);
        softmax::scale_rows(scores, &[scales.rows.map(|row| row * k); 2]);
    }

    #[inline(always)]
    fn absorb<M: Masking>(
        params: &HopperParams,
        stats: &mut RowStats,
        scores: &mut C::Scores,
        scales: Scales,
        n_begin: i32,
        care: Care,
    ) -> Growth {
        let factor = match C::ScoreMod::KIND {
            ScoreModKind::None => {
                let k = scales.of_block(&params.k_scale, n_begin);
                // Above 0, or a masked score times it would be NaN.
                scales.rows.map(|row| math::max(row * k, f32::MIN_POSITIVE))
            }
            _ => [params.attention.exponent_scale; 2],
        };
        let mut max = NO_KEY;
        softmax::update_max(&mut max, scores);
        let (old, mut any) = (stats.max, false);
        let slack = if M::MASKS && care.careful {
            0.0
        } else {
            RESCALE_ABOVE
        };
        for half in 0..2 {
            let new = math::max(
                old[0][half],
                math::min(max[0][half] * factor[half], f32::MAX),
            );
            let grew = new - old[0][half] > slack;
            any |= grew;
            if grew {
                stats.max[0][half] = new;
            }
        }
        for half in 0..2 {
            let (factor, row_max) = (factor[half], stats.max[0][half]);
            let max = if M::MASKS {
                softmax::finite_max(row_max)
            } else {
                row_max
            };
            let shift = OFFSET - max;
            if M::MASKS && care.careful {
                let exponent = |score: f32| math::min(score * factor - max, 0.0) + OFFSET;
                softmax::exponentiate_row(scores, 0, half, 0, exponent);
            } else {
                let polynomials = if M::MASKS { 0 } else { care.polynomials };
                let exponent = |score: f32| math::fma(score, factor, shift);
                softmax::exponentiate_row(scores, 0, half, polynomials, exponent);
            }
        }
        let mut sum = NOTHING;
        softmax::add_sum(&mut sum, scores);
        Growth {
            any: sync::warp_any(any),
            old,
            sum,
        }
    }

    // A step's left operand holds keys 2t, 2t + 1 of four neighbouring fragments where it would hold keys 4t to 4t + 3 and 16 + 4t on:
    // the order that transposed values have.
    #[inline(always)]
    fn pack(scores: &C::Scores) -> [[u32; 4]; STEPS] {
        const { assert!(STEPS == C::TILE.block_n as usize / 32) };
        let mut packed = [[0; 4]; STEPS];
        for step in 0..STEPS {
            for i in 0..4 {
                let (row, pair) = (i % 2, 4 * step + i / 2 * 2);
                let (left, right) = (scores.frag(0, pair), scores.frag(0, pair + 1));
                packed[step][i] = math::pack_e4m3x4([
                    left[2 * row],
                    left[2 * row + 1],
                    right[2 * row],
                    right[2 * row + 1],
                ]);
            }
        }
        packed
    }

    #[inline(always)]
    unsafe fn mma_pv(
        params: &HopperParams,
        sums: &mut Sums<C::Output, P>,
        p: &[[u32; 4]; STEPS],
        v: Descriptor,
        scales: Scales,
        n_begin: i32,
    ) {
        if C::OVERLAPS {
            for step in 0..STEPS {
                let v = v.advance(1, C::VT.along_step(step as u32));
                // SAFETY: the caller's promise.
                unsafe {
                    if step == 0 {
                        sums.held.mma_rs_if(p[step], v, sums.tiles != 0);
                    } else {
                        sums.held.mma_rs(p[step], v);
                    }
                }
            }
            return;
        }
        // One part of the columns after the other, since there are no registers for more.
        let part = OperandTile {
            rows: P::N_FRAGS as u32 * 8,
            ..C::VT
        };
        for n in 0..C::Output::N_FRAGS / P::N_FRAGS {
            wgmma::fence();
            let v = v.advance(n as u32, part.block_bytes());
            // SAFETY: the caller's promise.
            unsafe {
                sums.held.mm_rs(p[0], v);
                for step in 1..STEPS {
                    sums.held
                        .mma_rs(p[step], v.advance(1, C::VT.along_step(step as u32)));
                }
            }
            wgmma::commit_group();
            wgmma::wait_group::<0>();
            let scale = scales.values(params, n_begin);
            promote(&mut sums.out, &sums.held, n * P::N_FRAGS, scale);
        }
    }

    #[inline(always)]
    fn collect(
        params: &HopperParams,
        sums: &mut Sums<C::Output, P>,
        scales: Scales,
        n_begin: i32,
        last: bool,
    ) {
        if !C::OVERLAPS {
            return;
        }
        sums.tiles += 1;
        if sums.tiles == PROMOTE_AFTER || by_block(&params.v_scale) || last {
            promote(&mut sums.out, &sums.held, 0, scales.values(params, n_begin));
            sums.tiles = 0;
        }
    }

    #[inline(always)]
    fn settle<M: Masking>(
        _: &HopperParams,
        stats: &mut RowStats,
        sums: &mut Sums<C::Output, P>,
        growth: Growth,
        care: Care,
    ) {
        // The maxima are exponents already.
        let exponents = M::exponents(care);
        if let Some(factor) = stats.settle::<P, _>(growth, 1.0, exponents) {
            softmax::scale_rows(&mut sums.out, &factor);
            if C::OVERLAPS {
                softmax::scale_rows(&mut sums.held, &factor);
            }
        }
    }

    #[inline(always)]
    fn finish(sums: Sums<C::Output, P>) -> C::Output {
        sums.out
    }

    #[inline(always)]
    fn out_factor(params: &HopperParams, work: &Work) -> f32 {
        let scale = of_head(&params.v_scale, work.batch, work.kv_head(params));
        if work.careful {
            scale / CAREFUL_VALUES
        } else {
            scale
        }
    }

    #[inline(always)]
    fn max_scale(_: f32) -> f32 {
        1.0
    }

    #[inline(always)]
    fn pack_out(out: &C::Output, n: usize, flags: u32) -> [u32; 4] {
        let (left, right) = (out.frag(0, 2 * n), out.frag(0, 2 * n + 1));
        let pairs = [
            [left[0], left[1]],
            [left[2], left[3]],
            [right[0], right[1]],
            [right[2], right[3]],
        ];
        pairs.map(|[lo, hi]| {
            if flags & flags::OUT_F16 != 0 {
                math::pack_f16x2(lo, hi)
            } else {
                math::pack_bf16x2(lo, hi)
            }
        })
    }
}

/// Adds tensor-core sums, times the values' scale, to the output's columns from fragment `first` on.
#[inline(always)]
fn promote<O: AccumTile, P: AccumTile>(out: &mut O, held: &P, first: usize, scale: f32) {
    for n in 0..P::N_FRAGS {
        for i in 0..4 {
            let sum = &mut out.frag_mut(0, first + n)[i];
            *sum = math::fma(held.frag(0, n)[i], scale, *sum);
        }
    }
}
