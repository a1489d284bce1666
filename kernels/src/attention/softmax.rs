//! Row statistics of the softmax, and the exponentials.
//!
//! A probability is 2^(score * c - max * c), c = `exponent_scale`: one FMA and one `ex2`. The product
//! max * c is rounded once and used everywhere, rescaling included, so its rounding cancels when the
//! row is normalised. Maxima are exact at any time; sums stay one partial sum a lane until the end.
//!
//! That rounding is at most half a unit in the last place of max * c. Where max * c is so large that this
//! counts ([`CAREFUL_ABOVE`]), or a score is not finite, the block is computed again with the exponent
//! (score - max) * c, which costs an instruction a score and is exact at the maximum: [`Exponents`].
//! So is a block whose sums of values overflowed; its probabilities are then made smaller.

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

/// Magnitude of max * c up to which its rounding (2^-13 at the most) leaves the largest probability so near
/// to 1 that it is 1 in 16 bits.
pub const CAREFUL_ABOVE: f32 = (1 << 12) as f32;

/// How exponents are computed.
pub trait Exponents: Copy {
    /// The exponent of a row's score as a function of the score.
    type Row: RowExponents;
    /// For one row.
    fn row(self, row_max: f32, exponent_scale: f32) -> Self::Row;
    /// Makes probabilities smaller, where sums over them could overflow.
    fn shrink<S: AccumTile>(self, probabilities: &mut S);
    /// 2^(old - new): what values relative to the old maximum are multiplied by. 0 if there was none.
    fn correction(self, old_max: f32, new_max: f32, exponent_scale: f32) -> f32;
}

/// Exponents of one row.
pub trait RowExponents: Copy {
    /// Of one score.
    fn exponent(self, score: f32) -> f32;
}

/// score * c - max * c. Every row has seen a key, every score is finite, max * c is not large.
#[derive(Clone, Copy)]
pub struct Fast;

/// Any row, any score: no exponent is NaN or positive. A row that has seen no key gets probabilities of 0
/// for masked keys; a score that overflowed (+inf, or NaN from inf - inf inside a product) counts as the
/// largest there is.
#[derive(Clone, Copy)]
pub struct Guarded {
    /// (score - max) * c; else score * c - max * c, to agree with tiles computed by [`Fast`].
    pub careful: bool,
    /// What careful probabilities are multiplied by, a power of two.
    pub factor: f32,
}

/// [`Fast`]'s, of one row.
#[derive(Clone, Copy)]
pub struct FastRow {
    scale: f32,
    scaled_max: f32,
}

/// [`Guarded`]'s, of one row: (score - shift) * scale - scaled_max.
#[derive(Clone, Copy)]
pub struct GuardedRow {
    shift: f32,
    scale: f32,
    scaled_max: f32,
}

impl Exponents for Fast {
    type Row = FastRow;

    #[inline(always)]
    fn row(self, row_max: f32, scale: f32) -> FastRow {
        FastRow {
            scale,
            scaled_max: row_max * scale,
        }
    }

    #[inline(always)]
    fn correction(self, old_max: f32, new_max: f32, scale: f32) -> f32 {
        math::ex2(old_max * scale - new_max * scale)
    }

    #[inline(always)]
    fn shrink<S: AccumTile>(self, _: &mut S) {}
}

impl RowExponents for FastRow {
    #[inline(always)]
    fn exponent(self, score: f32) -> f32 {
        math::fma(score, self.scale, -self.scaled_max)
    }
}

/// A maximum that arithmetic can use: 0 for a row without keys (then -inf - 0 = -inf, where -inf - -inf is
/// NaN), f32's largest number for an overflowing one.
#[inline(always)]
fn finite_max(row_max: f32) -> f32 {
    if row_max == f32::NEG_INFINITY {
        0.0
    } else {
        math::min(row_max, f32::MAX)
    }
}

impl Exponents for Guarded {
    type Row = GuardedRow;

    #[inline(always)]
    fn row(self, row_max: f32, scale: f32) -> GuardedRow {
        let max = finite_max(row_max);
        let (shift, scaled_max) = if self.careful {
            (max, 0.0)
        } else {
            (0.0, max * scale)
        };
        GuardedRow {
            shift,
            scale,
            scaled_max,
        }
    }

    #[inline(always)]
    fn shrink<S: AccumTile>(self, probabilities: &mut S) {
        if self.factor != 1.0 && self.careful {
            scale_rows(probabilities, &[[self.factor; 2]; MAX_M_FRAGS]);
        }
    }

    #[inline(always)]
    fn correction(self, old_max: f32, new_max: f32, scale: f32) -> f32 {
        // -inf stays -inf: there is nothing yet to correct.
        let (old, new) = (math::min(old_max, f32::MAX), finite_max(new_max));
        math::ex2(if self.careful {
            (old - new) * scale
        } else {
            old * scale - new * scale
        })
    }
}

impl RowExponents for GuardedRow {
    #[inline(always)]
    fn exponent(self, score: f32) -> f32 {
        math::min(
            math::fma(score - self.shift, self.scale, -self.scaled_max),
            0.0,
        )
    }
}

/// Turns scores into probabilities relative to the maxima.
#[inline(always)]
pub fn exponentiate<S: AccumTile, E: Exponents>(
    scores: &mut S,
    row_max: &RowVec,
    exponent_scale: f32,
    exponents: E,
) {
    for m in 0..S::M_FRAGS {
        for half in 0..2 {
            let row = exponents.row(row_max[m][half], exponent_scale);
            for n in 0..S::N_FRAGS {
                for i in 0..2 {
                    let score = &mut scores.frag_mut(m, n)[2 * half + i];
                    *score = math::ex2(row.exponent(*score));
                }
            }
        }
    }
    exponents.shrink(scores);
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
