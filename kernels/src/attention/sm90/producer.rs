//! The producer: one warp that keeps the rings full.

use super::config::{Config, ConfigExt, Launched, Maps};
use super::pipeline::{Cursor, Ring};
use super::scheduler::{Scheduler, Work};
use crate::ptx::tma::{self, CachePolicy, Coordinates};
use crate::ptx::{cluster, sync};
use crate::tile::operand::OperandTile;
use flashtile_abi::HopperParams;
use flashtile_abi::hopper::WARPGROUP_ROWS;

/// A ring of K or V tiles, as it is filled.
struct Filling {
    ring: Ring,
    at: Cursor,
    map: u64,
    tile: OperandTile,
    /// Shared address of the first slot, and bytes of a slot.
    base: u32,
    slot_bytes: u32,
}

/// The producer's warp.
struct Producer<'a> {
    params: &'a HopperParams,
    /// This lane issues the copies.
    elected: bool,
    rank: u32,
}

/// Runs the producer's role to its end.
#[inline(always)]
pub fn produce<C: Launched>(params: &HopperParams, smem: u32, mut scheduler: Scheduler) {
    let maps = Maps::of::<C>();
    let producer = Producer {
        params,
        elected: sync::elect(),
        rank: cluster::rank(),
    };
    if producer.elected {
        // SAFETY: the maps are parameters.
        unsafe {
            tma::prefetch_map(maps.q);
            tma::prefetch_map(maps.k);
            tma::prefetch_map(maps.v);
        }
    }
    let q = Ring::q::<C>(smem);
    let mut q_at = Cursor::START;
    let mut k = Filling {
        ring: Ring::k::<C>(smem),
        at: Cursor::START,
        map: maps.k,
        tile: C::K,
        base: smem + C::PLAN.k,
        slot_bytes: C::PLAN.k_stage,
    };
    let mut v = Filling {
        ring: Ring::v::<C>(smem),
        at: Cursor::START,
        map: maps.v,
        tile: C::V,
        base: smem + C::PLAN.v,
        slot_bytes: C::PLAN.v_stage,
    };
    while let Some(round) = scheduler.next::<C>() {
        let work = scheduler.work::<C>(round);
        let mut n_block = work.range.end - 1;
        let has_keys = n_block >= work.range.begin;
        if !has_keys && !C::OUT_OVER_Q {
            continue;
        }
        q.acquire(q_at);
        if producer.elected {
            if has_keys {
                load_query::<C>(params, maps.q, smem, q, q_at, &work);
            } else {
                // The output wants the queries' room all the same.
                q.expect(q_at, 0);
            }
        }
        q_at.advance(1);
        if !has_keys {
            continue;
        }

        // In the order in which the consumers want them: the scores run one tile ahead of the values.
        let head = [work.kv_head(params) as i32, work.batch as i32];
        producer.fill::<C>(&mut k, n_block, head);
        while n_block > work.range.begin {
            producer.fill::<C>(&mut k, n_block - 1, head);
            producer.fill::<C>(&mut v, n_block, head);
            n_block -= 1;
        }
        producer.fill::<C>(&mut v, n_block, head);
    }
}

/// Copies the block's queries: 64 rows for each warpgroup that has rows of its own.
#[inline(always)]
fn load_query<C: Config>(
    params: &HopperParams,
    map: u64,
    smem: u32,
    ring: Ring,
    at: Cursor,
    work: &Work,
) {
    ring.expect(at, C::TILE.block_m / WARPGROUP_ROWS * C::Q_BYTES);
    for warpgroup in 0..C::TILE.block_m / WARPGROUP_ROWS {
        let row = (work.row_begin + (warpgroup * WARPGROUP_ROWS) as i32) >> params.schedule.pack;
        for block in 0..C::Q.blocks() {
            let dst = smem + C::PLAN.q + warpgroup * C::Q_BYTES + block * C::Q.block_bytes();
            let column = (block * C::Q.width() / C::TILE.dtype.bytes()) as i32;
            let from: Coordinates = [column, 0, row, work.group as i32, work.batch as i32];
            // SAFETY: the box is inside the Q tiles, which are empty.
            unsafe { tma::load(dst, map, from, ring.full(0), CachePolicy::EvictFirst) };
        }
    }
}

impl Producer<'_> {
    /// Fills the next slot with a tile, once it is empty.
    #[inline(always)]
    fn fill<C: Config>(&self, filling: &mut Filling, n_block: i32, [head, batch]: [i32; 2]) {
        let Filling { ring, at, tile, .. } = *filling;
        ring.acquire(at);
        if self.elected {
            ring.expect(at, filling.slot_bytes);
            let first = n_block * C::TILE.block_n as i32;
            let dst = filling.base + at.stage * filling.slot_bytes;
            let alone = self.params.schedule.cluster == 1;
            // Each block of a cluster copies its part of the rows to both.
            let part = (C::TILE.block_n / 2 * self.rank) as i32;
            for block in 0..tile.blocks() {
                let column = (block * tile.width() / C::TILE.dtype.bytes()) as i32;
                let dst = dst + block * tile.block_bytes();
                // SAFETY: the boxes are inside the slot, which is empty in every block of the cluster.
                unsafe {
                    if alone {
                        let from = [column, 0, first, head, batch];
                        tma::load(
                            dst,
                            filling.map,
                            from,
                            ring.full(at.stage),
                            CachePolicy::EvictLast,
                        );
                    } else {
                        let from = [column, 0, first + part, head, batch];
                        let dst = dst + part as u32 * tile.width();
                        let full = ring.full(at.stage);
                        tma::load_multicast(
                            dst,
                            filling.map,
                            from,
                            full,
                            0b11,
                            CachePolicy::EvictLast,
                        );
                    }
                }
            }
        }
        filling.at.advance(C::TILE.stages);
    }
}
