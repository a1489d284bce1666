//! Rows of the cache into tensors (`gather_kv_cache`).

use super::place::Token;
use super::row::Row;
use crate::ptx::special;
use flashtile_abi::RowsParams;
use flashtile_abi::cache::{THREADS, UNIT, flags};

/// One thread's part.
#[inline(always)]
pub fn run(params: &RowsParams) {
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
    let (cache, tensor, from_pieces, to_pieces) = if is_key {
        (
            &params.k_cache,
            &params.k,
            flags::K_CACHE_PIECES,
            flags::K_PIECES,
        )
    } else {
        (
            &params.v_cache,
            &params.v,
            flags::V_CACHE_PIECES,
            flags::V_PIECES,
        )
    };
    let has = |flag| params.flags & flag != 0;
    let to = Row::of_tensor(tensor, token.batch, token.row, head, has(to_pieces));
    let first = unit * UNIT;
    let count = (head_dim - first).min(UNIT);
    // SAFETY: the elements exist in both places.
    unsafe {
        let unit = match token.place(params) {
            Some(place) => {
                let from = Row::of_cache(cache, place.block, place.row, head, has(from_pieces));
                from.load(first, count)
            }
            None => [0; 4],
        };
        to.store(first, count, unit);
    }
}
