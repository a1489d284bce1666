//! Latent caches (MLA, DeepSeek-V2, arXiv:2405.04434, section 2.1, with the up-projections absorbed): values are the first columns of keys.
//!
//! Four warps share 16 or 32 rows. The output of so many rows and 512 columns has no room in one warp's registers, so each has a
//! quarter of the columns, over all keys; the scores would then be everyone's work, so each computes those of a quarter of the keys. They
//! tell each other the maxima, then the probabilities, through shared memory; sums stay each warp's own until the end.

use super::config::ServingConfig;
use super::place::Place;
use crate::attention::sm80::config::ConfigExt;
use crate::attention::sm80::epilogue::pair_column;
use crate::attention::sm80::pass::mma_pv_step;
use crate::attention::softmax::{self, Exponents, NO_KEY, NOTHING, RowStats};
use crate::element::Element;
use crate::ptx::{copy, math, special, sync};
use crate::tile::reg::{AccumTile, MAX_M_FRAGS, RowVec};
use crate::tile::smem::{CHUNK, SmemTile};

/// Waits for the warps that share the rows, and for what they wrote.
#[inline(always)]
fn rows_sync<C: ServingConfig>(place: &Place<'_>) {
    // Barrier 0 is the block's.
    sync::named_sync(1 + place.row_group(), 32 * C::TILE.key_splits);
}

/// The warp's keys of a tile, and the first of them.
#[inline(always)]
pub fn own_keys<C: ServingConfig>(place: &Place<'_>, k: SmemTile, n_begin: i32) -> (SmemTile, i32) {
    let skipped = place.part() * C::TILE.warp_keys();
    let own = SmemTile {
        base: k.base + skipped * k.row_bytes,
        ..k
    };
    (own, n_begin + skipped as i32)
}

/// Address of the number that warp `part` of those that share a row has left for it.
#[inline(always)]
fn number<C: ServingConfig>(place: &Place<'_>, part: u32, m: usize, half: usize) -> u32 {
    let row = place.row_group() * C::WARP_ROWS + (16 * m + 8 * half) as u32 + place.lane / 4;
    place.smem + C::TILE.shared().rows + (part * C::TILE.block_m + row) * 4
}

/// Leaves a number for each row.
#[inline(always)]
fn leave<C: ServingConfig>(place: &Place<'_>, numbers: &RowVec) {
    // One lane of the quad writes.
    if place.lane.is_multiple_of(4) {
        for m in 0..C::Output::M_FRAGS {
            for half in 0..2 {
                let dst = number::<C>(place, place.part(), m, half);
                // SAFETY: inside the block's shared memory, 4-byte aligned.
                unsafe { copy::st_shared_u32(dst, numbers[m][half].to_bits()) };
            }
        }
    }
}

/// Folds the numbers that all left for each row, in the order of warps.
#[inline(always)]
fn fold<C: ServingConfig>(place: &Place<'_>, start: RowVec, f: impl Fn(f32, f32) -> f32) -> RowVec {
    let mut folded = start;
    for m in 0..C::Output::M_FRAGS {
        for half in 0..2 {
            for part in 0..C::TILE.key_splits {
                let src = number::<C>(place, part, m, half);
                // SAFETY: inside the block's shared memory, 4-byte aligned.
                let number = f32::from_bits(unsafe { copy::ld_shared_u32(src) });
                folded[m][half] = f(folded[m][half], number);
            }
        }
    }
    folded
}

/// The probabilities of the warp's rows, over all keys of a tile.
#[inline(always)]
fn probabilities<C: ServingConfig>(place: &Place<'_>) -> SmemTile {
    let row_bytes = C::TILE.block_n * C::TILE.dtype.bytes();
    SmemTile {
        base: place.smem + C::TILE.shared().p + place.row_group() * C::WARP_ROWS * row_bytes,
        row_bytes,
    }
}

/// Barriers of [`absorb`].
pub const TILE_BARRIERS: u32 = 2;

/// As [`RowStats::absorb`], the rows being those of several warps: all take the maxima of all, and leave their probabilities
/// for all.
#[inline(always)]
pub fn absorb<C: ServingConfig, E: Exponents>(
    stats: &mut RowStats,
    scores: &mut C::Scores,
    place: &Place<'_>,
    exponents: E,
) -> RowVec {
    let old = stats.max;
    softmax::update_max(&mut stats.max, scores);
    leave::<C>(place, &stats.max);
    rows_sync::<C>(place);
    stats.max = fold::<C>(place, NO_KEY, math::max);
    let correction = stats.follow(old, scores, place.exponent_scale(), exponents);
    let tile = probabilities::<C>(place);
    for m in 0..C::Scores::M_FRAGS {
        for half in 0..2 {
            let row = (16 * m + 8 * half) as u32 + place.lane / 4;
            for n in 0..C::Scores::N_FRAGS {
                let column = place.part() * C::TILE.warp_keys() + pair_column(n, place.lane);
                let byte = column * C::TILE.dtype.bytes();
                let dst = tile.chunk(row, byte / CHUNK) + byte % CHUNK;
                let frag = scores.frag(m, n);
                C::Element::store_pair(dst, frag[2 * half], frag[2 * half + 1]);
            }
        }
    }
    // And none leaves maxima of the next tile before all have read these.
    rows_sync::<C>(place);
    correction
}

/// O += P * V of the warp's columns.
#[inline(always)]
pub fn weigh<C: ServingConfig>(out: &mut C::Output, place: &Place<'_>, v: SmemTile) {
    let p = probabilities::<C>(place).rows_then_chunks(place.lane);
    // A multiple of 128 bytes: the swizzle stays.
    let skipped = place.part() * C::TILE.warp_columns() * C::TILE.dtype.bytes();
    let own = SmemTile {
        base: v.base + skipped,
        ..v
    };
    let view = C::Element::v_view(own, place.lane);
    // A loop that stays one: unrolled, operands read ahead would take registers that there are not.
    for step in 0..special::opaque(C::PV_STEPS as u32) as usize {
        let operand = |m: usize| C::Element::frag_a(p.ldmatrix(16 * m as u32, 2 * step as u32));
        let mut a = [operand(0); MAX_M_FRAGS];
        for m in 1..C::Output::M_FRAGS {
            a[m] = operand(m);
        }
        mma_pv_step::<C>(out, a, &view, step);
    }
}

/// The rows' sums over all keys, from those over each warp's, which a quad has in every lane. Afterwards every warp of the block is done with
/// queries, too.
#[inline(always)]
pub fn add_parts<C: ServingConfig>(place: &Place<'_>, sums: &mut RowVec) {
    leave::<C>(place, sums);
    sync::cta_sync();
    *sums = fold::<C>(place, NOTHING, |sum, part| sum + part);
}
