//! New keys and values into the cache (`reshape_and_cache`), keys and queries turned on the way.

use super::place::Token;
use super::rotary::rotate;
use super::row::Row;
use super::unit::{Half, Numbers, Unit, codes, elements, numbers};
use crate::ptx::special;
use flashtile_abi::RowsParams;
use flashtile_abi::cache::{THREADS, UNIT, flags};

/// What a thread does: a unit of a row from here to there.
struct Task {
    from: Row,
    to: Row,
    unit: u32,
    head_dim: u32,
    /// Pairs that are turned.
    pairs: u32,
    /// Of an e4m3 row: what its elements are multiplied by.
    scale: Option<f32>,
}

impl Task {
    /// Elements as they are.
    ///
    /// # Safety
    /// As [`Row::store`].
    #[inline(always)]
    unsafe fn copy<E: Half>(&self, first: u32, count: u32, unit: Unit) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.scale {
                Some(scale) => {
                    let codes = codes(numbers::<E>(unit), scale);
                    self.to.store_codes(first, count, codes);
                }
                None => self.to.store(first, count, unit),
            }
        }
    }

    /// Numbers, rounded.
    ///
    /// # Safety
    /// As [`Row::store`].
    #[inline(always)]
    unsafe fn round<E: Half>(&self, first: u32, count: u32, numbers: Numbers) {
        // SAFETY: the caller's promise.
        unsafe {
            match self.scale {
                Some(scale) => self.to.store_codes(first, count, codes(numbers, scale)),
                None => self.to.store(first, count, elements::<E>(numbers)),
            }
        }
    }
}

/// One thread's part. `NARROW`: the caches are e4m3.
#[inline(always)]
pub fn run<E: Half, const NARROW: bool>(params: &RowsParams) {
    let (index, part) = params.parts.div_rem(special::block_idx());
    let unit = part * THREADS + special::thread_idx();
    let Some(token) = Token::new(params, index) else {
        return;
    };
    let mut position = 0;
    if params.rotary.pairs != 0 {
        // Without its angles a token is not one: its values are skipped too.
        match token.position(params) {
            Some(known) => position = known,
            None => return,
        }
    }
    let Some(task) = task::<NARROW>(params, &token, unit) else {
        return;
    };

    let turned = task.pairs.div_ceil(UNIT);
    // SAFETY: the unit is one of the row, whose elements exist in both places; the tables have the position.
    unsafe {
        if task.unit >= turned {
            let first = 2 * task.pairs + (task.unit - turned) * UNIT;
            let count = (task.head_dim - first).min(UNIT);
            let unit = task.from.load(first, count);
            task.copy::<E>(first, count, unit);
        } else {
            let first = task.unit * UNIT;
            let count = (task.pairs - first).min(UNIT);
            let (a, b, counts) = if params.flags & flags::INTERLEAVED != 0 {
                let rest = (2 * count).saturating_sub(UNIT);
                (2 * first, 2 * first + UNIT, [2 * count - rest, rest])
            } else {
                (first, task.pairs + first, [count; 2])
            };
            // Up to four pairs that follow each other fit in the first unit.
            let two = counts[1] != 0;
            let mut units = [task.from.load(a, counts[0]), [0; 4]];
            if two {
                units[1] = task.from.load(b, counts[1]);
            }
            // Both are read before either is written: they may be the same memory.
            let turned = rotate::<E>(params, position, first, count, units);
            task.round::<E>(a, counts[0], turned[0]);
            if two {
                task.round::<E>(b, counts[1], turned[1]);
            }
        }
    }
}

/// The task of that number for a token: keys first, then values, then queries.
#[inline(always)]
fn task<const NARROW: bool>(params: &RowsParams, token: &Token, unit: u32) -> Option<Task> {
    let has = |flag| params.flags & flag != 0;
    let of = |view, head, pieces| Row::of_tensor(view, token.batch, token.row, head, has(pieces));
    let keys = params.heads_kv * params.key_units.divisor;
    let values = params.heads_v * params.value_units.divisor;
    if unit < keys {
        let place = token.place(params)?;
        let (head, unit) = params.key_units.div_rem(unit);
        let pieces = has(flags::K_CACHE_PIECES);
        Some(Task {
            from: of(&params.k, head, flags::K_PIECES),
            to: Row::of_cache(&params.k_cache, place, head, pieces, NARROW),
            unit,
            head_dim: params.head_dim_qk,
            pairs: params.rotary.pairs,
            scale: NARROW.then(|| token.scale(&params.k_scale, head)),
        })
    } else if unit < keys + values {
        let place = token.place(params)?;
        let (head, unit) = params.value_units.div_rem(unit - keys);
        let pieces = has(flags::V_CACHE_PIECES);
        Some(Task {
            from: of(&params.v, head, flags::V_PIECES),
            to: Row::of_cache(&params.v_cache, place, head, pieces, NARROW),
            unit,
            head_dim: params.head_dim_v,
            pairs: 0,
            scale: NARROW.then(|| token.scale(&params.v_scale, head)),
        })
    } else {
        let (head, unit) = params.key_units.div_rem(unit - keys - values);
        (head < params.heads_q).then(|| Task {
            from: of(&params.q, head, flags::Q_PIECES),
            to: of(&params.q_out, head, flags::Q_OUT_PIECES),
            unit,
            head_dim: params.head_dim_qk,
            pairs: params.rotary.pairs,
            scale: None,
        })
    }
}
