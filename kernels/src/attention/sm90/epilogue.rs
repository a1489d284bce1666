//! From accumulators to global memory: out and lse.

use super::config::{Arithmetic, Config, ConfigExt, Launched, Maps};
use super::consumer::{Place, Rows};
use super::pipeline::{Cursor, Ring};
use super::scheduler::{Scheduler, Work};
use crate::attention::softmax::{self, RowStats};
use crate::ptx::{copy, mma, special, sync, tma};
use crate::tile::reg::{AccumTile, MAX_M_FRAGS};
use core::f32::consts::LN_2;
use flashtile_abi::hopper::{WARPGROUP, WARPGROUP_ROWS};
use flashtile_abi::params::flags;

/// Barriers of the block by number, after the consumers' turns.
mod barrier {
    /// First of the warpgroups'.
    pub const WARPGROUP: u32 = 8;
    /// First of those for warpgroups that share rows.
    pub const SHARED_ROWS: u32 = 12;
}

/// Barriers in [`finish`]'s code.
pub const fn barriers<C: Config>() -> u32 {
    2 + C::OUT_OVER_Q as u32
}

/// Normalises the output and writes it, and lse. Says if the piece must be done again.
///
/// `queries`: the slot of the queries, if the piece has it; where the output passes through their room, it is released here.
#[inline(always)]
pub fn finish<C: Launched>(
    place: Place,
    scheduler: &Scheduler,
    round: u32,
    mut stats: RowStats,
    mut out: C::Output,
    queries: Option<(Ring, Cursor)>,
) {
    let work = &scheduler.work::<C>(round);
    let rows = &place.rows::<C>(work.row_begin);
    let scale = C::Arithmetic::max_scale(place.params.attention.exponent_scale);
    // Scores that are not finite or very large spoil the fast exponents, and sums of values can overflow. Both are rare (f16 inputs can
    // hardly do it): the piece is done twice then. Without keys there is nothing to spoil.
    if !work.careful && sync::warp_any(softmax::is_spoilt(&stats, &out, scale)) && sync::elect() {
        scheduler.spoil::<C>(round);
    }
    let inverse_sum = softmax::normalise::<C::Output>(&mut stats.sum);
    softmax::scale_rows(&mut out, &inverse_sum);
    let out_factor = C::Arithmetic::out_factor(place.params, work);
    if out_factor != 1.0 {
        softmax::scale_rows(&mut out, &[[out_factor; 2]; MAX_M_FRAGS]);
    }
    let factor = if work.careful {
        C::Arithmetic::CAREFUL_FACTOR
    } else {
        1.0
    };
    store_lse::<C>(&place, rows, work, &stats, scale, factor);
    store_out::<C>(&place, rows, work, &out, queries);
}

/// Before the block ends, and its shared memory with it: everything that is stored has been read.
#[inline(always)]
pub fn drain() {
    tma::wait_group_read();
}

/// Writes lse = ln(sum) + max in natural units; -inf for a row that saw no key.
#[inline(always)]
fn store_lse<C: Config>(
    place: &Place,
    rows: &Rows,
    work: &Work,
    stats: &RowStats,
    max_scale: f32,
    factor: f32,
) {
    let params = place.params;
    let lse = &params.attention.lse;
    if lse.ptr == 0 || place.v_part::<C>() != 0 {
        return;
    }
    for half in 0..2 {
        let value =
            softmax::lse(stats, 0, half, max_scale, factor) - C::Arithmetic::EXPONENT_OFFSET * LN_2;
        // One lane of the quad writes.
        if place.lane().is_multiple_of(4) && rows.exists(half) {
            let offset = work.batch as i64 * lse.batch_stride
                + rows.head(work, half) as i64 * lse.head_stride
                + rows.query(half) as i64 * 4;
            // SAFETY: the row exists and lse is 4-byte aligned.
            unsafe { copy::st_global_u32(lse.ptr.wrapping_add(offset as u64), value.to_bits()) };
        }
    }
}

#[inline(always)]
fn store_out<C: Launched>(
    place: &Place,
    rows: &Rows,
    work: &Work,
    out: &C::Output,
    queries: Option<(Ring, Cursor)>,
) {
    let wide = place.params.attention.flags & flags::OUT_F32 != 0;
    // The thread that stores the warpgroup's rows, and owns the groups of its stores.
    let storer = place.warp() == 0 && sync::elect();
    // Warpgroups that share rows read the same queries, and lie over them.
    if C::OUT_OVER_Q {
        let sharing = C::TILE.v_splits * WARPGROUP;
        sync::named_sync(barrier::SHARED_ROWS + place.rows64::<C>(), sharing);
    }
    let mut staged = 0;
    if wide {
        store_f32::<C>(place, rows, work, out);
    } else {
        staged = stage::<C>(place, out, storer);
    }
    if storer {
        if !wide {
            store_staged::<C>(place, work, staged);
        }
        if C::OUT_OVER_Q
            && let Some((ring, at)) = queries
        {
            tma::wait_group_read();
            ring.release_own(at);
        }
    }
}

/// f32 output, straight from the accumulators.
#[inline(always)]
fn store_f32<C: Config>(place: &Place, rows: &Rows, work: &Work, out: &C::Output) {
    let attention = &place.params.attention;
    let first_column =
        place.v_part::<C>() * (C::TILE.head_dim_v / C::TILE.v_splits) + 2 * (place.lane() % 4);
    for half in 0..2 {
        let offset = work.batch as i64 * attention.out.batch_stride
            + rows.head(work, half) as i64 * attention.out.head_stride
            + rows.query(half) as i64 * attention.out.row_stride
            + first_column as i64 * 4;
        let row = attention.out.ptr.wrapping_add(offset as u64);
        // Columns of the row from the lane's first one on; none if the row does not exist.
        let columns = if rows.exists(half) {
            attention.head_dim_v as i32 - first_column as i32
        } else {
            0
        };
        for n in 0..C::Output::N_FRAGS {
            for i in 0..2 {
                let column = 8 * n as u32 + i as u32;
                if (column as i32) < columns {
                    let value = out.frag(0, n)[2 * half + i];
                    // SAFETY: the element exists and out is 4-byte aligned.
                    unsafe {
                        copy::st_global_u32(row.wrapping_add(column as u64 * 4), value.to_bits())
                    };
                }
            }
        }
    }
}

/// Lays the warpgroup's rows out in shared memory as the copy engine wants them. Returns where.
#[inline(always)]
fn stage<C: Config>(place: &Place, out: &C::Output, storer: bool) -> u32 {
    let part = C::OUT.rows * C::OUT.row_bytes;
    let of_rows = if C::OUT_OVER_Q {
        C::Q_BYTES
    } else {
        C::TILE.v_splits * part
    };
    let room = special::shared_base()
        + C::PLAN.out
        + place.rows64::<C>() * of_rows
        + place.v_part::<C>() * part;
    // The last piece's rows may still be on their way.
    if storer {
        tma::wait_group_read();
    }
    sync::named_sync(barrier::WARPGROUP + place.consumer, WARPGROUP);
    let lane = place.lane();
    let row = place.warp() * 16 + lane % 16;
    for n in 0..C::Output::N_FRAGS / 2 {
        let address = C::OUT.chunk(room, row, 2 * n as u32 + lane / 16);
        mma::stmatrix_x4(
            address,
            C::Arithmetic::pack_out(out, n, place.params.attention.flags),
        );
    }
    tma::fence_shared();
    sync::named_sync(barrier::WARPGROUP + place.consumer, WARPGROUP);
    room
}

/// Starts the copy of the staged rows.
#[inline(always)]
fn store_staged<C: Launched>(place: &Place, work: &Work, room: u32) {
    let (schedule, map) = (&place.params.schedule, Maps::of::<C>().out);
    let row = work.row_begin + (place.rows64::<C>() * WARPGROUP_ROWS) as i32;
    if row < schedule.rows {
        let first_column = place.v_part::<C>() * (C::TILE.head_dim_v / C::TILE.v_splits);
        for block in 0..C::OUT.blocks() {
            let column = first_column + block * C::OUT.width() / 2;
            if column < place.params.attention.head_dim_v {
                let to = [
                    column as i32,
                    0,
                    row >> schedule.pack,
                    work.group as i32,
                    work.batch as i32,
                ];
                // SAFETY: the box was staged and fenced by all threads of the warpgroup.
                unsafe { tma::store(map, to, room + block * C::OUT.block_bytes()) };
            }
        }
    }
    tma::commit_group();
}
