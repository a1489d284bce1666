//! Values of 8 bits, transposed on chip: from [keys, head_dim_v] as they were copied to [head_dim_v, keys].
//!
//! `ldmatrix` with transposition moves pairs of bytes: a lane gets keys 2t and 2t + 1 of columns 2g and 2g + 1. Bytes of two such
//! registers, permuted, are one column's keys 2t, 2t + 1, 8 + 2t, 9 + 2t: in this order of keys, which is that of the probabilities
//! ([`super::fp8`]), rows of the transposed tile are written by `stmatrix`. (After FlashAttention-3's producer.)

use super::config::{Config, ConfigExt};
use super::pipeline::{Cursor, Ring};
use super::scheduler::Scheduler;
use crate::ptx::{math, mma, special, sync, tma};
use flashtile_abi::HopperParams;
use flashtile_abi::hopper::TRANSPOSERS;

/// Runs the role of one of the warps that transpose, to its end. `warp` is its number among them.
#[inline(always)]
pub fn transpose<C: Config>(params: &HopperParams, warp: u32, mut scheduler: Scheduler) {
    let smem = special::shared_base();
    let lane = special::thread_idx() % 32;
    let (from, to) = (Ring::v::<C>(smem), Ring::vt::<C>(smem));
    let mut at = Cursor::START;
    while let Some(round) = scheduler.next::<C>() {
        let range = scheduler.work::<C>(round).range;
        for _ in range.begin..range.end {
            from.wait(at);
            to.acquire(at);
            tile::<C>(
                smem + C::PLAN.v + at.stage * C::PLAN.v_stage,
                smem + C::PLAN.vt + at.stage * C::PLAN.v_stage,
                warp,
                lane,
            );
            // The tensor cores read what was written; the copy engine overwrites what was read.
            tma::fence_shared();
            sync::warp_sync();
            from.release(at, lane, params.schedule.cluster);
            if lane == 0 {
                to.fill_own(at);
            }
            at.advance(C::TILE.stages);
        }
    }
}

/// One warp's part of a tile: every third square of 32 keys and 16 columns.
#[inline(always)]
fn tile<C: Config>(v: u32, vt: u32, warp: u32, lane: u32) {
    let squares = C::TILE.block_n / 32 * (C::TILE.head_dim_v / 16);
    let mut square = warp;
    while square < squares {
        let (keys, columns) = (
            square % (C::TILE.block_n / 32),
            square / (C::TILE.block_n / 32),
        );
        let r = mma::ldmatrix_x4_trans(C::V.chunk(v, 32 * keys + lane, columns));
        let rows = [
            math::permute_bytes::<0x6420>(r[0], r[1]),
            math::permute_bytes::<0x7531>(r[0], r[1]),
            math::permute_bytes::<0x6420>(r[2], r[3]),
            math::permute_bytes::<0x7531>(r[2], r[3]),
        ];
        // Matrix m: columns of its parity, keys of its half.
        let (m, row) = (lane / 8, lane % 8);
        let column = 16 * columns + 2 * row + m % 2;
        mma::stmatrix_x4(C::VT.chunk(vt, column, 2 * keys + m / 2), rows);
        square += TRANSPOSERS;
    }
}
