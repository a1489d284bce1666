//! What happens to the scores of a tile before the softmax.

use super::config::ServingConfig;
use super::place::Place;
use crate::attention::score_mod::{replace, tanh};
use crate::element::Scalar;
use crate::ptx::{copy, special};
use crate::tile::reg::AccumTile;
use flashtile_abi::serving::{PairView, flags};

/// Scores as the model means them, before masks that are intervals: scaled, capped, with ALiBi and bias, hidden where the mask tensor
/// hides. For launches with [`flags::MODIFIED`]. `n_begin` is the warp's first key of the tile.
#[inline(always)]
pub fn modify<C: ServingConfig>(scores: &mut C::Scores, place: &Place<'_>, n_begin: i32) {
    let params = place.params;
    if params.softcap != 0.0 {
        let cap_scale = params.cap_scale * place.key_scale;
        replace(scores, |score| params.softcap * tanh(score * cap_scale));
    } else {
        let scale = params.softmax_scale * place.key_scale;
        replace(scores, |score| score * scale);
    }
    if params.alibi.ptr != 0 {
        add_alibi::<C>(scores, place, n_begin);
    }
    if params.bias.ptr != 0 {
        if place.has(flags::BIAS_F32) {
            each_pair::<C>(scores, place, n_begin, &params.bias, |score, pair| {
                // SAFETY: the pair exists, and elements are aligned to their size.
                *score += unsafe { crate::element::F32::load(pair.element) };
            });
        } else {
            each_pair::<C>(scores, place, n_begin, &params.bias, |score, pair| {
                // SAFETY: as above.
                *score += unsafe { <C::Element as Scalar>::load(pair.element) };
            });
        }
    }
    if params.mask.ptr != 0 {
        let bits = place.has(flags::MASK_BITS);
        each_pair::<C>(scores, place, n_begin, &params.mask, |score, pair| {
            let seen = if bits {
                let address = pair.row.wrapping_add((pair.key as u32 / 32 * 4) as u64);
                // SAFETY: the word exists, 4-byte aligned.
                let word = unsafe { copy::ld_global_u32(address) };
                word >> (pair.key as u32 % 32) & 1 != 0
            } else {
                // SAFETY: the byte exists.
                unsafe { copy::ld_global_u8(pair.element) != 0 }
            };
            if !seen {
                *score = f32::NEG_INFINITY;
            }
        });
    }
}

/// slope * -|distance of the key from the query's diagonal| (arXiv:2108.12409, section 3).
#[inline(always)]
fn add_alibi<C: ServingConfig>(scores: &mut C::Scores, place: &Place<'_>, n_begin: i32) {
    let alibi = place.params.alibi;
    let slopes = alibi
        .ptr
        .wrapping_add((place.batch as i64 * alibi.batch_stride) as u64);
    let first = n_begin + 2 * (place.lane as i32 % 4);
    for m in 0..C::Scores::M_FRAGS {
        for half in 0..2 {
            let row = place.lane_row(m, half);
            if row >= place.rows() {
                continue;
            }
            let (query, head) = place.query_of(row);
            // SAFETY: there is a slope for every query head, 4-byte aligned.
            let slope = unsafe { crate::element::F32::load(slopes + head as u64 * 4) };
            let distance = first - (query + place.diagonal);
            for n in 0..C::Scores::N_FRAGS {
                for i in 0..2 {
                    let distance = (distance + 8 * n as i32 + i as i32).unsigned_abs();
                    scores.frag_mut(m, n)[2 * half + i] -= slope * distance as f32;
                }
            }
        }
    }
}

/// Where a tensor has a pair of a query and a key.
struct Pair {
    /// Address of the pair's element.
    element: u64,
    /// Address of the query's row.
    row: u64,
    key: i32,
}

/// Calls `f` with every score of the tile whose query and key exist.
#[inline(always)]
fn each_pair<C: ServingConfig>(
    scores: &mut C::Scores,
    place: &Place<'_>,
    n_begin: i32,
    view: &PairView,
    f: impl Fn(&mut f32, Pair),
) {
    let sequence = view
        .ptr
        .wrapping_add((place.batch as i64 * view.batch_stride) as u64);
    let first = n_begin + 2 * (place.lane as i32 % 4);
    for m in 0..C::Scores::M_FRAGS {
        for half in 0..2 {
            let row = place.lane_row(m, half);
            if row >= place.rows() {
                continue;
            }
            let (query, head) = place.query_of(row);
            let offset = head as i64 * view.head_stride + query as i64 * view.row_stride;
            let row = sequence.wrapping_add(offset as u64);
            // From pair to pair: distances from the row's start would be kept in registers from row to row, two for each key.
            let mut element = row.wrapping_add((first as i64 * view.key_stride) as u64);
            for n in 0..C::Scores::N_FRAGS {
                for i in 0..2 {
                    let key = first + 8 * n as i32 + i as i32;
                    if key < place.band.seqlen_k {
                        let pair = Pair { element, row, key };
                        f(&mut scores.frag_mut(m, n)[2 * half + i], pair);
                    }
                    let step = if i == 0 { 1 } else { 7 };
                    let next = element.wrapping_add((step * view.key_stride) as u64);
                    element = special::opaque_u64(next);
                }
            }
        }
    }
}
