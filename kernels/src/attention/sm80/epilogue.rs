//! From accumulators to global memory: out and lse.

use super::config::{Config, ConfigExt};
use super::pipeline::Block;
use crate::attention::softmax::{self, RowStats};
use crate::element::Element;
use crate::ptx::math::div_rem;
use crate::ptx::{copy, sync};
use crate::tile::reg::AccumTile;
use crate::tile::smem::{CHUNK, SmemTile};
use flashtile_abi::TensorView;
use flashtile_abi::params::flags;

/// Writes lse = ln(sum) + max in natural units; -inf for a row that saw no key. The sums are reduced, and
/// `factor` (a power of two) times what they should be.
#[inline(always)]
pub fn store_lse<C: Config>(block: &Block, stats: &RowStats, factor: f32) {
    let params = block.params;
    if params.lse.ptr == 0 {
        return;
    }
    let row = params.lse.ptr.wrapping_add(
        (block.batch as i64 * params.lse.batch_stride + block.head as i64 * params.lse.head_stride)
            as u64,
    );
    for m in 0..C::Output::M_FRAGS {
        for half in 0..2 {
            let q_idx = block.lane_row(C::Output::M_FRAGS, m, half);
            let lse = softmax::lse(stats, m, half, params.exponent_scale, factor);
            // One lane of the quad writes.
            if block.lane.is_multiple_of(4) && q_idx < params.seqlen_q {
                // SAFETY: the row exists and lse is 4-byte aligned.
                unsafe { copy::st_global_u32(row.wrapping_add(q_idx as u64 * 4), lse.to_bits()) };
            }
        }
    }
}

/// Writes the output, already normalised. `queries_read`: all lanes of the warp are known to have read their queries from
/// the room that the output passes through.
#[inline(always)]
pub fn store_out<C: Config>(block: &Block, out: &C::Output, queries_read: bool) {
    if block.params.flags & flags::OUT_F32 != 0 && C::TILE.dtype.bytes() != 4 {
        store_out_f32::<C>(block, out);
    } else {
        store_out_staged::<C>(block, out, queries_read);
    }
}

/// Global address of out[batch, 0, head, 0].
#[inline(always)]
fn out_base(block: &Block, out: &TensorView) -> u64 {
    let offset = block.batch as i64 * out.batch_stride + block.head as i64 * out.head_stride;
    out.ptr.wrapping_add(offset as u64)
}

/// f32 output of 16-bit kernels, straight from the accumulators.
#[inline(always)]
fn store_out_f32<C: Config>(block: &Block, out: &C::Output) {
    let params = block.params;
    let base = out_base(block, &params.out);
    for m in 0..C::Output::M_FRAGS {
        for half in 0..2 {
            let q_idx = block.lane_row(C::Output::M_FRAGS, m, half);
            let row = base.wrapping_add((q_idx as i64 * params.out.row_stride) as u64);
            for n in 0..C::Output::N_FRAGS {
                for i in 0..2 {
                    let column = 8 * n as u32 + 2 * (block.lane % 4) + i as u32;
                    if q_idx < params.seqlen_q && column < params.head_dim_v {
                        let value = out.frag(m, n)[2 * half + i];
                        // SAFETY: the element exists and out is 4-byte aligned.
                        unsafe { copy::st_global_u32(row + column as u64 * 4, value.to_bits()) };
                    }
                }
            }
        }
    }
}

/// Output in the element type, through the room of the warp's own queries.
#[inline(always)]
fn store_out_staged<C: Config>(block: &Block, out: &C::Output, queries_read: bool) {
    let params = block.params;
    let base = out_base(block, &params.out);
    let begin = block.warp_q_begin(C::Output::M_FRAGS);
    if !queries_read {
        sync::warp_sync();
    }
    store_staged::<C>(
        out_room::<C>(block.smem, block.warp),
        block.lane,
        out,
        (params.seqlen_q - begin).min(C::WARP_ROWS as i32),
        params.head_dim_v,
        params.flags & flags::OUT_ALIGNED != 0,
        |n| pair_column(n, block.lane),
        |row| base.wrapping_add(((begin as i64 + row as i64) * params.out.row_stride) as u64),
    );
}

/// Rows as wide as the warp's part of V, in the room of a warp's rows of the plan's Q region.
#[inline(always)]
pub fn out_room<C: Config>(smem: u32, warp: u32) -> SmemTile {
    let room = C::TILE.shared().k / C::TILE.warps;
    SmemTile {
        base: smem + C::TILE.shared().q + warp * room,
        row_bytes: C::TILE.warp_columns() * C::TILE.dtype.bytes(),
    }
}

/// First of the two columns that a lane has of accumulator fragment `n`.
#[inline(always)]
pub fn pair_column(n: usize, lane: u32) -> u32 {
    8 * n as u32 + 2 * (lane % 4)
}

/// Lays a warp's output out in shared memory, each lane's pair of fragment `n` at column `pair_column(n)`, and writes whole 16-byte
/// pieces of rows where rows are `aligned` to them: the first `rows` rows, `columns` elements of each, to where `row_ptr` says.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub fn store_staged<C: Config>(
    staged: SmemTile,
    lane: u32,
    out: &C::Output,
    rows: i32,
    columns: u32,
    aligned: bool,
    pair_column: impl Fn(usize) -> u32,
    row_ptr: impl Fn(u32) -> u64,
) {
    let element = C::TILE.dtype.bytes();
    for m in 0..C::Output::M_FRAGS {
        for half in 0..2 {
            let row = (16 * m + 8 * half) as u32 + lane / 4;
            for n in 0..C::Output::N_FRAGS {
                let frag = out.frag(m, n);
                let byte = pair_column(n) * element;
                let dst = staged.chunk(row, byte / CHUNK) + byte % CHUNK;
                C::Element::store_pair(dst, frag[2 * half], frag[2 * half + 1]);
            }
        }
    }
    sync::warp_sync();

    if rows <= 0 {
        return;
    }
    let rows = rows as u32;
    if aligned && (columns * element).is_multiple_of(CHUNK) {
        let chunks = columns * element / CHUNK;
        let mut index = lane;
        while index < rows * chunks {
            let (row, chunk) = div_rem(index, chunks);
            // SAFETY: the chunk was staged and exists in out, which is 16-byte aligned.
            unsafe {
                let value = copy::ld_shared_v4(staged.chunk(row, chunk));
                copy::st_global_v4(row_ptr(row) + (chunk * CHUNK) as u64, value);
            }
            index += 32;
        }
    } else {
        let mut index = lane;
        while index < rows * columns {
            let (row, column) = div_rem(index, columns);
            let byte = column * element;
            let src = staged.chunk(row, byte / CHUNK) + byte % CHUNK;
            let dst = row_ptr(row) + byte as u64;
            // SAFETY: the element was staged and exists in out, which is aligned to it.
            unsafe {
                if element == 2 {
                    copy::st_global_u16(dst, copy::ld_shared_u16(src));
                } else {
                    copy::st_global_u32(dst, copy::ld_shared_u32(src));
                }
            }
            index += 32;
        }
    }
}
