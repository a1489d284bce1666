//! Which scores of a tile count.
//!
//! [`flashtile_abi::Band::block_range`] tells tiles that no row sees (never loaded), tiles that every
//! row sees whole ([`Unmasked`]) and the rest ([`Masked`]) apart; here the single keys of the rest.
//! A new mask that is an interval of keys for each row needs only `Band::row` and
//! `Band::block_range`; any other goes into [`Masked::apply`].

use super::softmax::{Care, Exponents, Fast, Guarded};
use crate::ptx::math;
use crate::tile::reg::AccumTile;
use flashtile_abi::KeyInterval;

/// The query rows that a lane shares in.
pub trait QueryRows {
    /// Whether masks become bits first, which saves an instruction or two a score and takes a few registers.
    const MASK_BITS: bool;
    /// Lane of the warp.
    fn lane(&self) -> u32;
    /// Keys that row g (`half` 0) or g + 8 (`half` 1) of fragment `m` of `m_frags` sees.
    fn keys(&self, m_frags: usize, m: usize, half: usize) -> KeyInterval;
}

/// How a tile is masked, decided for the whole tile.
pub trait Masking {
    /// Whether some scores may be masked.
    const MASKS: bool;
    /// How exponents of such a tile are computed.
    type Exponents: Exponents;
    /// How exponents of such a tile are computed.
    fn exponents(care: Care) -> Self::Exponents;
    /// Sets the scores of keys that a row does not see to -inf. `n_begin` is the tile's first key.
    fn apply<S: AccumTile, R: QueryRows>(scores: &mut S, rows: &R, n_begin: i32);
}

/// Every row sees every key of the tile.
pub struct Unmasked;

/// Rows see some keys of the tile, or none.
pub struct Masked;

impl Masking for Unmasked {
    const MASKS: bool = false;
    type Exponents = Fast;

    #[inline(always)]
    fn exponents(care: Care) -> Fast {
        Fast {
            slack: care.slack,
            polynomials: care.polynomials,
        }
    }

    #[inline(always)]
    fn apply<S: AccumTile, R: QueryRows>(_: &mut S, _: &R, _: i32) {}
}

impl Masking for Masked {
    const MASKS: bool = true;
    type Exponents = Guarded;

    #[inline(always)]
    fn exponents(care: Care) -> Guarded {
        Guarded(care)
    }

    #[inline(always)]
    fn apply<S: AccumTile, R: QueryRows>(scores: &mut S, rows: &R, n_begin: i32) {
        // The lane's first key of the tile; the others are at constant distances from it.
        let first = n_begin + 2 * (rows.lane() as i32 % 4);
        for m in 0..S::M_FRAGS {
            for half in 0..2 {
                let keys = rows.keys(S::M_FRAGS, m, half);
                let (begin, end) = (keys.begin - first, keys.end - first);
                let mut hide = |n: usize, i: usize, hidden: bool| {
                    if hidden {
                        scores.frag_mut(m, n)[2 * half + i] = f32::NEG_INFINITY;
                    }
                };
                if R::MASK_BITS {
                    // A bit for each of the lane's scores of the row: predicates are then moved out of it several at a time.
                    let begin = scores_before(begin, S::N_FRAGS);
                    let end = scores_before(end, S::N_FRAGS);
                    for n in 0..S::N_FRAGS {
                        let skipped = (n / 16 * 32) as i32;
                        let bits = bits_below(end - skipped) & !bits_below(begin - skipped);
                        for i in 0..2 {
                            hide(n, i, bits & 1 << (2 * (n % 16) + i) == 0);
                        }
                    }
                } else {
                    for n in 0..S::N_FRAGS {
                        for i in 0..2 {
                            let key = 8 * n as i32 + i as i32;
                            hide(n, i, key < begin || key >= end);
                        }
                    }
                }
            }
        }
    }
}

/// How many of a lane's scores of a row belong to keys before `key`, counted from the lane's first key: two of every eight keys are
/// the lane's.
#[inline(always)]
fn scores_before(key: i32, n_frags: usize) -> i32 {
    let key = key.clamp(0, 8 * n_frags as i32);
    2 * (key >> 3) + (key & 7).min(2)
}

/// The lowest `count` bits: none for a negative count, all from 32 on.
#[inline(always)]
fn bits_below(count: i32) -> u32 {
    math::shl(1, count.max(0)).wrapping_sub(1)
}
