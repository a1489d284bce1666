//! Rows of the cache into tensors (`gather_kv_cache`).

use super::place::Token;
use super::row::Row;
use super::unit::{Half, Unit, elements, scaled};
use crate::ptx::special;
use flashtile_abi::RowsParams;
use flashtile_abi::cache::{THREADS, UNIT, flags};

/// One thread's part, from caches of 16-bit elements, whatever they are.
#[inline(always)]
pub fn run(params: &RowsParams) {
    gather::<false>(params, |from, first, count, _| {
        // SAFETY: the elements exist.
        unsafe { from.load(first, count) }
    });
}

/// One thread's part, from caches of e4m3.
#[inline(always)]
pub fn run_narrow<E: Half>(params: &RowsParams) {
    gather::<true>(params, |from, first, count, scale| {
        // SAFETY: the elements exist.
        let codes = unsafe { from.load_codes(first, count) };
        elements::<E>(scaled(codes, scale))
    });
}

/// `load` makes 16-bit elements of those of a cache's row: so many from there on, with that scale.
#[inline(always)]
fn gather<const NARROW: bool>(params: &RowsParams, load: impl Fn(&Row, u32, u32, f32) -> Unit) {
    let (index, part) = params.parts.div_rem(special::block_idx());
    let unit = part * THREADS + special::thread_idx();
    let Some(token) = Token::new(params, index) else {
        return;
    };
    let keys = params.heads_kv * params.key_units.divisor;
    let is_key = unit < keys;
    let (head, unit) = if is_key {
        params.key_units.div_rem(unit)
    } else {
        params.value_units.div_rem(unit - keys)
    };
    let (heads, head_dim) = if is_key {
        (params.heads_kv, params.head_dim_qk)
    } else {
        (params.heads_v, params.head_dim_v)
    };
    if head >= heads {
        return;
    }
    let (cache, tensor, scales, from_pieces, to_pieces) = if is_key {
        (
            &params.k_cache,
            &params.k,
            &params.k_scale,
            flags::K_CACHE_PIECES,
            flags::K_PIECES,
        )
    } else {
        (
            &params.v_cache,
            &params.v,
            &params.v_scale,
            flags::V_CACHE_PIECES,
            flags::V_PIECES,
        )
    };
    let has = |flag| params.flags & flag != 0;
    let to = Row::of_tensor(tensor, token.batch, token.row, head, has(to_pieces));
    let first = unit * UNIT;
    let count = (head_dim - first).min(UNIT);
    let unit = match token.place(params) {
        Some(place) => {
            let from = Row::of_cache(cache, place, head, has(from_pieces), NARROW);
            let scale = if NARROW {
                token.scale(scales, head)
            } else {
                1.0
            };
            load(&from, first, count, scale)
        }
        None => [0; 4],
    };
    // SAFETY: the elements exist.
    unsafe { to.store(first, count, unit) };
}
