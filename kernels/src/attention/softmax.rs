//! Row statistics of the softmax, and the exponentials.
//!
//! A probability is 2^(score * c - max * c), c = `exponent_scale`: one FMA and one `ex2`. The product
//! max * c is rounded once and used everywhere, rescaling included, so its rounding cancels when the
//! row is normalised. Maxima are exact at any time; sums stay one partial sum a lane until the end.

use super::mask::Masking;
use crate::ptx::{math, sync};
use crate::tile::reg::{AccumTile, MAX_M_FRAGS, RowVec};

/// The larger of `row_max` and the largest score of each row.
#[inline(always)]
pub fn update_max<S: AccumTile>(row_max: &mut RowVec, scores: &S) {
    for m in 0..S::M_FRAGS {
        for half in 0..2 {
            let mut max = row_max[m][half];
            for n in 0..S::N_FRAGS {
                let frag = scores.frag(m, n);
                max = math::max(max, math::max(frag[2 * half], frag[2 * half + 1]));
            }
            // The four lanes of a quad hold a row between them.
            max = math::max(max, sync::shuffle_xor::<1>(max));
            row_max[m][half] = math::max(max, sync::shuffle_xor::<2>(max));
        }
    }
}

/// max * c, and 0 for a row that has seen no key: then 2^(-inf - 0) = 0, where -inf - -inf is NaN.
#[inline(always)]
pub fn scaled_max<M: Masking>(row_max: f32, exponent_scale: f32) -> f32 {
    if M::MASKED && row_max == f32::NEG_INFINITY {
        0.0
    } else {
        row_max * exponent_scale
    }
}

/// Turns scores into 2^(score * c - max * c).
#[inline(always)]
pub fn exponentiate<S: AccumTile, M: Masking>(
    scores: &mut S,
    row_max: &RowVec,
    exponent_scale: f32,
) {
    for m in 0..S::M_FRAGS {
        for half in 0..2 {
            let max = scaled_max::<M>(row_max[m][half], exponent_scale);
            for n in 0..S::N_FRAGS {
                for i in 0..2 {
                    let score = &mut scores.frag_mut(m, n)[2 * half + i];
                    *score = math::ex2(math::fma(*score, exponent_scale, -max));
                }
            }
        }
    }
}

/// Adds each row's probabilities to the lane's partial sum.
#[inline(always)]
pub fn add_sum<S: AccumTile>(row_sum: &mut RowVec, probabilities: &S) {
    for m in 0..S::M_FRAGS {
        for half in 0..2 {
            let mut sum = row_sum[m][half];
            for n in 0..S::N_FRAGS {
                let frag = probabilities.frag(m, n);
                sum += frag[2 * half] + frag[2 * half + 1];
            }
            row_sum[m][half] = sum;
        }
    }
}

/// The factors that normalise each row: 1 / sum, and 0 for a row that saw no key. Brings the quad's four
/// partial sums together in every lane of it.
#[inline(always)]
pub fn normalise<S: AccumTile>(row_sum: &mut RowVec) -> RowVec {
    let mut inverse = [[0.0; 2]; MAX_M_FRAGS];
    for m in 0..S::M_FRAGS {
        for half in 0..2 {
            let mut sum = row_sum[m][half];
            sum += sync::shuffle_xor::<1>(sum);
            sum += sync::shuffle_xor::<2>(sum);
            row_sum[m][half] = sum;
            inverse[m][half] = if sum == 0.0 { 0.0 } else { math::rcp(sum) };
        }
    }
    inverse
}

/// Multiplies each row by its factor.
#[inline(always)]
pub fn scale_rows<S: AccumTile>(tile: &mut S, factor: &RowVec) {
    for m in 0..S::M_FRAGS {
        for n in 0..S::N_FRAGS {
            let frag = tile.frag_mut(m, n);
            for i in 0..4 {
                frag[i] *= factor[m][i / 2];
            }
        }
    }
}
