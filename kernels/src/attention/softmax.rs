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
use flashtile_abi::exp2;

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

/// How scores become probabilities.
pub trait Exponents: Copy {
    /// Turns scores into probabilities relative to the maxima.
    fn probabilities<S: AccumTile>(self, scores: &mut S, row_max: &RowVec, exponent_scale: f32);
    /// 2^(old - new): what values relative to the old maximum are multiplied by. 0 if there was none.
    fn correction(self, old_max: f32, new_max: f32, exponent_scale: f32) -> f32;
    /// How far an exponent may be above 0.
    fn slack(self) -> f32;
}

/// score * c - max * c. Every row has seen a key, every score is finite, max * c is not large.
#[derive(Clone, Copy)]
pub struct Fast {
    /// As [`Care::slack`].
    pub slack: f32,
    /// As [`Care::polynomials`].
    pub polynomials: usize,
}

/// Any row: one that has seen no key gets probabilities of 0 for masked keys.
#[derive(Clone, Copy)]
pub struct Guarded(pub Care);

/// Whether exponents are exact at any size of the scores.
#[derive(Clone, Copy)]
pub struct Care {
    /// (score - max) * c, never NaN or positive: a score that overflowed (+inf, or NaN from inf - inf inside a product) counts as
    /// the largest there is. Else score * c - max * c, to agree with tiles computed by [`Fast`].
    pub careful: bool,
    /// What careful probabilities are multiplied by, a power of two: smaller ones, where sums over them could overflow.
    pub factor: f32,
    /// How far an exponent may be above 0 before the row's reference follows its maximum
    /// ([`RowStats::absorb_lazily`]). Not in a block that takes care.
    pub slack: f32,
    /// How many of a lane's scores of a row, in a tile without masks, have their exponentials computed by arithmetic: some, where the
    /// special-function units are the limit.
    pub polynomials: usize,
    /// Whether the two ways are code of their own, a constant. One code for both is two instructions a score longer, and takes fewer
    /// registers.
    pub apart: bool,
}

/// Turns scores of rows g (`half` 0) or g + 8 (`half` 1) of fragment row `m` into 2^exponent, the exponent being a function of the
/// score. Of the lane's scores of the row, `polynomials` are computed by arithmetic ([`exp2`]), spread among the others.
#[inline(always)]
pub fn exponentiate_row<S: AccumTile>(
    scores: &mut S,
    m: usize,
    half: usize,
    polynomials: usize,
    exponent: impl Fn(f32) -> f32,
) {
    let scores_of_row = 2 * S::N_FRAGS;
    for n in 0..S::N_FRAGS {
        for i in 0..2 {
            // One more of the scores so far than of those before.
            let share = |count: usize| count * polynomials / scores_of_row;
            let by_arithmetic = share(2 * n + i + 1) != share(2 * n + i);
            let score = &mut scores.frag_mut(m, n)[2 * half + i];
            let x = exponent(*score);
            *score = if by_arithmetic { exp2(x) } else { math::ex2(x) };
        }
    }
}

/// 2^x without the special-function unit: [`flashtile_abi::exp2`]. Not for NaN.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let x = math::max(x, exp2::LEAST);
    let shifted = x + exp2::ROUND;
    let f = x - (shifted - exp2::ROUND);
    let mut p = exp2::POLYNOMIAL[5];
    for i in (0..5).rev() {
        p = math::fma(p, f, exp2::POLYNOMIAL[i]);
    }
    let bits = (p.to_bits() as i32).wrapping_add((shifted.to_bits() << 23) as i32);
    f32::from_bits(bits.max(0) as u32)
}

/// Turns scores into 2^exponent, the exponent being a function of the score for each row, by the row's maximum.
#[inline(always)]
fn exponentiate<S: AccumTile, F: Fn(f32) -> f32>(
    scores: &mut S,
    row_max: &RowVec,
    polynomials: usize,
    of_row: impl Fn(f32) -> F,
) {
    for m in 0..S::M_FRAGS {
        for half in 0..2 {
            exponentiate_row(scores, m, half, polynomials, of_row(row_max[m][half]));
        }
    }
}

/// score * c - max * c.
#[inline(always)]
fn fast(scale: f32, max: f32) -> impl Fn(f32) -> f32 {
    let scaled_max = max * scale;
    move |score| math::fma(score, scale, -scaled_max)
}

/// A maximum that arithmetic can use: 0 for a row without keys (then -inf - 0 = -inf, where -inf - -inf is
/// NaN), f32's largest number for an overflowing one.
#[inline(always)]
pub fn finite_max(row_max: f32) -> f32 {
    if row_max == f32::NEG_INFINITY {
        0.0
    } else {
        math::min(row_max, f32::MAX)
    }
}

impl Exponents for Fast {
    #[inline(always)]
    fn probabilities<S: AccumTile>(self, scores: &mut S, row_max: &RowVec, scale: f32) {
        exponentiate(scores, row_max, self.polynomials, |max| fast(scale, max));
    }

    #[inline(always)]
    fn correction(self, old_max: f32, new_max: f32, scale: f32) -> f32 {
        math::ex2(old_max * scale - new_max * scale)
    }

    #[inline(always)]
    fn slack(self) -> f32 {
        self.slack
    }
}

impl Exponents for Guarded {
    #[inline(always)]
    fn probabilities<S: AccumTile>(self, scores: &mut S, row_max: &RowVec, scale: f32) {
        if self.0.apart && !self.0.careful {
            exponentiate(scores, row_max, 0, |max| fast(scale, finite_max(max)));
            return;
        }
        exponentiate(scores, row_max, 0, |max| {
            let max = finite_max(max);
            let (shift, scaled_max) = if self.0.careful {
                (max, 0.0)
            } else {
                (0.0, max * scale)
            };
            let slack = self.slack();
            move |score| math::min(math::fma(score - shift, scale, -scaled_max), slack)
        });
        if self.0.factor != 1.0 && self.0.careful {
            scale_rows(scores, &[[self.0.factor; 2]; MAX_M_FRAGS]);
        }
    }

    #[inline(always)]
    fn correction(self, old_max: f32, new_max: f32, scale: f32) -> f32 {
        // -inf stays -inf: there is nothing yet to correct.
        let (old, new) = (math::min(old_max, f32::MAX), finite_max(new_max));
        math::ex2(if self.0.careful {
            (old - new) * scale
        } else {
            old * scale - new * scale
        })
    }

    #[inline(always)]
    fn slack(self) -> f32 {
        if self.0.careful { 0.0 } else { self.0.slack }
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

/// Brings the quad's four partial sums of each row together, in every lane of it.
#[inline(always)]
pub fn reduce_sums<S: AccumTile>(row_sum: &mut RowVec) {
    for m in 0..S::M_FRAGS {
        for half in 0..2 {
            let mut sum = row_sum[m][half];
            sum += sync::shuffle_xor::<1>(sum);
            sum += sync::shuffle_xor::<2>(sum);
            row_sum[m][half] = sum;
        }
    }
}

/// The factors that normalise each row: 1 / sum, and 0 for a row that saw no key.
#[inline(always)]
pub fn inverse_sums<S: AccumTile>(row_sum: &RowVec) -> RowVec {
    let mut inverse = [[0.0; 2]; MAX_M_FRAGS];
    for m in 0..S::M_FRAGS {
        for half in 0..2 {
            let sum = row_sum[m][half];
            inverse[m][half] = if sum == 0.0 { 0.0 } else { math::rcp(sum) };
        }
    }
    inverse
}

/// [`reduce_sums`], and the [`inverse_sums`] of them.
#[inline(always)]
pub fn normalise<S: AccumTile>(row_sum: &mut RowVec) -> RowVec {
    reduce_sums::<S>(row_sum);
    inverse_sums::<S>(row_sum)
}

/// Flips the sign of every score.
#[inline(always)]
pub fn negate<S: AccumTile>(scores: &mut S) {
    for m in 0..S::M_FRAGS {
        for n in 0..S::N_FRAGS {
            let frag = scores.frag_mut(m, n);
            for i in 0..4 {
                frag[i] = -frag[i];
            }
        }
    }
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

/// Maxima before the first key.
pub const NO_KEY: RowVec = [[f32::NEG_INFINITY; 2]; MAX_M_FRAGS];
/// No sums.
pub const NOTHING: RowVec = [[0.0; 2]; MAX_M_FRAGS];

/// Maximum and sum of each row so far; the sums are a lane's part until they are reduced.
#[derive(Clone, Copy)]
pub struct RowStats {
    /// Largest score, -inf before the first key.
    pub max: RowVec,
    /// Sum of 2^((score - max) * exponent_scale).
    pub sum: RowVec,
}

impl RowStats {
    /// Of no keys.
    pub const EMPTY: Self = Self {
        max: NO_KEY,
        sum: NOTHING,
    };

    /// Whether a row of this lane's is spoilt: its sum is NaN (an unmasked tile had a score that was not
    /// finite), or its maximum is large.
    #[inline(always)]
    fn is_spoilt<S: AccumTile>(&self, exponent_scale: f32) -> bool {
        let mut spoilt = false;
        for m in 0..S::M_FRAGS {
            for half in 0..2 {
                let (max, sum) = (self.max[m][half], self.sum[m][half]);
                let magnitude = f32::from_bits(max.to_bits() & 0x7fff_ffff) * exponent_scale;
                let large = magnitude > CAREFUL_ABOVE && max != f32::NEG_INFINITY;
                spoilt |= sum != sum || large;
            }
        }
        spoilt
    }

    /// Takes in a tile: new maxima, sums rescaled and added to, scores turned into probabilities
    /// (relative to the new maxima). Returns the factors that bring older values to the new maxima.
    #[inline(always)]
    pub fn absorb<S: AccumTile, E: Exponents>(
        &mut self,
        scores: &mut S,
        exponent_scale: f32,
        exponents: E,
    ) -> RowVec {
        let old = self.max;
        update_max(&mut self.max, scores);
        self.follow(old, scores, exponent_scale, exponents)
    }

    /// The rest of [`absorb`](Self::absorb), once the maxima are new ones; they were `old`.
    #[inline(always)]
    pub fn follow<S: AccumTile, E: Exponents>(
        &mut self,
        old: RowVec,
        scores: &mut S,
        exponent_scale: f32,
        exponents: E,
    ) -> RowVec {
        let mut correction = NOTHING;
        for m in 0..S::M_FRAGS {
            for half in 0..2 {
                correction[m][half] =
                    exponents.correction(old[m][half], self.max[m][half], exponent_scale);
                self.sum[m][half] *= correction[m][half];
            }
        }
        exponents.probabilities(scores, &self.max, exponent_scale);
        add_sum(&mut self.sum, scores);
        correction
    }

    /// As [`absorb`](Self::absorb), but what the probabilities are relative to follows the maximum only when an exponent
    /// would be more than the exponents' slack: until then nothing needs to be rescaled. Sums and factors are left to
    /// [`settle`](Self::settle). Decided row by row, so that no row depends on others.
    #[inline(always)]
    pub fn absorb_lazily<S: AccumTile, E: Exponents>(
        &mut self,
        scores: &mut S,
        exponent_scale: f32,
        exponents: E,
    ) -> Growth {
        let old = self.max;
        let mut max = old;
        update_max(&mut max, scores);
        let mut any = false;
        for m in 0..S::M_FRAGS {
            for half in 0..2 {
                // False where no key was seen (NaN), true at the first one (infinite).
                let growth = (max[m][half] - old[m][half]) * exponent_scale;
                let grew = growth > exponents.slack();
                any |= grew;
                if grew {
                    self.max[m][half] = max[m][half];
                }
            }
        }
        exponents.probabilities(scores, &self.max, exponent_scale);
        let mut sum = NOTHING;
        add_sum(&mut sum, scores);
        Growth {
            any: sync::warp_any(any),
            old,
            sum,
        }
    }

    /// Takes the sums of the first tile.
    #[inline(always)]
    pub fn start(&mut self, growth: Growth) {
        self.sum = growth.sum;
    }

    /// Brings the sums to the new references, and adds the tile's. Returns what output must be multiplied by, if some row of the warp
    /// has a new reference.
    #[inline(always)]
    pub fn settle<S: AccumTile, E: Exponents>(
        &mut self,
        growth: Growth,
        exponent_scale: f32,
        exponents: E,
    ) -> Option<RowVec> {
        let mut factor = [[1.0; 2]; MAX_M_FRAGS];
        if growth.any {
            for m in 0..S::M_FRAGS {
                for half in 0..2 {
                    let (old, new) = (growth.old[m][half], self.max[m][half]);
                    factor[m][half] = exponents.correction(old, new, exponent_scale);
                    self.sum[m][half] *= factor[m][half];
                }
            }
        }
        for m in 0..S::M_FRAGS {
            for half in 0..2 {
                self.sum[m][half] += growth.sum[m][half];
            }
        }
        growth.any.then_some(factor)
    }
}

/// What a tile changed, for [`RowStats::settle`].
#[derive(Clone, Copy)]
pub struct Growth {
    /// Some row of the warp has a new reference.
    pub any: bool,
    /// The references before.
    pub old: RowVec,
    /// The tile's sums.
    pub sum: RowVec,
}

/// Whether what this lane holds must be computed again, with care: sums of values that are not finite, or as
/// [`RowStats::is_spoilt`] says.
#[inline(always)]
pub fn is_spoilt<O: AccumTile>(stats: &RowStats, out: &O, exponent_scale: f32) -> bool {
    // 0 as long as every sum of values is finite, else NaN.
    let mut zero = 0.0;
    for m in 0..O::M_FRAGS {
        for n in 0..O::N_FRAGS {
            for i in 0..4 {
                zero = math::fma(out.frag(m, n)[i], 0.0, zero);
            }
        }
    }
    zero != zero || stats.is_spoilt::<O>(exponent_scale)
}

/// ln(sum) + max of a row in natural units; -inf for a row that saw no key. The sums are reduced, and `factor` (a power of two)
/// times what they should be.
#[inline(always)]
pub fn lse(stats: &RowStats, m: usize, half: usize, exponent_scale: f32, factor: f32) -> f32 {
    let sum = stats.sum[m][half] * math::rcp(factor);
    let log2 = math::fma(stats.max[m][half], exponent_scale, math::lg2(sum));
    if sum == 0.0 {
        f32::NEG_INFINITY
    } else {
        log2 * core::f32::consts::LN_2
    }
}
