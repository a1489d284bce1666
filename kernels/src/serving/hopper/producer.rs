//! The producer: a warpgroup that keeps the rings full.
//!
//! Asynchronous copies tell nobody when they have landed: a thread announces a slot that it has filled once it has waited for it, while the
//! copies to the next one are under way; sooner, if there is no next slot yet.

use super::config::HopperServing;
use crate::attention::sm80::config::Config;
use crate::attention::sm90::config::{Config as _, ConfigExt as _};
use crate::attention::sm90::pipeline::{Cursor, Ring};
use crate::ptx::{copy, mbarrier, special, sync, tma};
use crate::serving::config::ServingExt;
use crate::serving::place::Place;
use crate::serving::stream::{gathers, load_query};
use crate::tile::gather::Gather;
use crate::tile::operand::OperandTile;
use crate::tile::smem::CHUNK;
use flashtile_abi::hopper::{PRODUCER_ROWS, WARPGROUP, WARPGROUP_ROWS};

/// Lanes side by side on a row.
const ROW_LANES: u32 = WARPGROUP / PRODUCER_ROWS;

/// Rows of a step that a warp copies.
const WARP_ROWS: u32 = 32 / ROW_LANES;

/// A ring of tiles, as it is filled.
struct Filling<'a> {
    ring: Ring,
    at: Cursor,
    gather: Gather<'a>,
    tile: OperandTile,
    /// Shared address of the first slot, and bytes of a slot.
    base: u32,
    slot_bytes: u32,
}

/// The producer's state from one walk over the keys to the next.
pub struct Producer<'a> {
    k: Filling<'a>,
    v: Filling<'a>,
    pending: Pending,
}

/// Barrier of the slot that was filled last and is not announced yet; 0 if there is none.
struct Pending(u32);

impl<'a> Producer<'a> {
    /// Before the first walk: brings the queries, too.
    #[inline(always)]
    pub fn new<C: HopperServing>(place: &Place<'a>) -> Self {
        let (smem, plan) = (place.smem, C::Engine::PLAN);
        load_query::<C>(place, place.thread, WARPGROUP, |row, chunk| {
            let tile = smem + plan.q + row / WARPGROUP_ROWS * C::Engine::Q_BYTES;
            C::Engine::Q.chunk(tile, row % WARPGROUP_ROWS, chunk)
        });
        let [k, v] = gathers::<C>(place);
        Self {
            k: Filling {
                ring: Ring::k::<C::Engine>(smem),
                at: Cursor::START,
                gather: k,
                tile: C::Engine::K,
                base: smem + plan.k,
                slot_bytes: plan.k_stage,
            },
            v: Filling {
                ring: Ring::v::<C::Engine>(smem),
                at: Cursor::START,
                gather: v,
                tile: C::Engine::V,
                base: smem + plan.v,
                slot_bytes: plan.v_stage,
            },
            pending: Pending(Ring::q::<C::Engine>(smem).full(0)),
        }
    }

    /// One walk over the keys, last to first.
    #[inline(always)]
    pub fn run<C: HopperServing>(&mut self, place: &Place<'_>) {
        let range = place.range;
        let mut n_block = range.end - 1;
        if n_block >= range.begin {
            let entry = |n_block: i32| {
                let row = Self::own_row::<C>(place, n_block);
                // Tiles before the first have no rows.
                if n_block < range.begin {
                    0
                } else {
                    place.keys.entry(row)
                }
            };
            // The order in which the consumers want them: the scores run one tile ahead of the values. Entries of the table are read a tile
            // ahead of the copies.
            let mut now = entry(n_block);
            let mut next = entry(n_block - 1);
            self.k.fill::<C>(&mut self.pending, place, n_block, now);
            while n_block > range.begin {
                let after = entry(n_block - 2);
                self.k
                    .fill::<C>(&mut self.pending, place, n_block - 1, next);
                self.fill_values::<C>(place, n_block, now);
                (now, next) = (next, after);
                n_block -= 1;
            }
            self.fill_values::<C>(place, n_block, now);
        }
        self.pending.flush();
    }

    /// Fills the next slot with a tile of values, where keys are none.
    #[inline(always)]
    fn fill_values<C: HopperServing>(&mut self, place: &Place<'_>, n_block: i32, entry: u32) {
        if !C::LATENT {
            self.v.fill::<C>(&mut self.pending, place, n_block, entry);
        }
    }

    /// The row whose address the lane knows, of those that its warp copies.
    #[inline(always)]
    fn own_row<C: HopperServing>(place: &Place<'_>, n_block: i32) -> i32 {
        let place = place.in_tile();
        let (step, row) = (place.lane / WARP_ROWS, place.lane % WARP_ROWS);
        let in_tile = step * PRODUCER_ROWS + place.warp * WARP_ROWS + row;
        n_block * <C as Config>::TILE.block_n as i32 + in_tile as i32
    }
}

impl Pending {
    /// Waits until a slot is empty. Consumers may need what is not announced yet to get there.
    #[inline(always)]
    fn make_room(&mut self, ring: Ring, at: Cursor) {
        if sync::warp_any(!ring.is_empty(at)) {
            self.flush();
            ring.acquire(at);
        }
    }

    /// Closes the copies to the slot of this barrier, and announces the slot before.
    #[inline(always)]
    fn follow(&mut self, barrier: u32) {
        sync::cp_async_commit();
        if self.0 != 0 {
            sync::cp_async_wait::<1>();
            announce(self.0);
        }
        self.0 = barrier;
    }

    /// Announces what is not announced yet.
    #[inline(always)]
    fn flush(&mut self) {
        if self.0 != 0 {
            sync::cp_async_wait::<0>();
            announce(self.0);
            self.0 = 0;
        }
    }
}

/// This thread's copies to a slot have landed: the tensor cores may read them.
#[inline(always)]
fn announce(barrier: u32) {
    tma::fence_shared();
    // SAFETY: the barrier was made before the roles parted.
    unsafe { mbarrier::arrive(barrier) };
}

impl Filling<'_> {
    /// Fills the next slot with a tile, once it is empty. `entry` is the table's for the lane's own row.
    #[inline(always)]
    fn fill<C: HopperServing>(
        &mut self,
        pending: &mut Pending,
        place: &Place<'_>,
        n_block: i32,
        entry: u32,
    ) {
        let row = Producer::own_row::<C>(place, n_block);
        pending.make_room(self.ring, self.at);
        self.copy(&place.in_tile(), row, entry);
        pending.follow(self.ring.full(self.at.stage));
        self.at.advance(C::Engine::TILE.stages);
    }

    /// Starts the thread's copies of a tile. `row` is the lane's own row, `entry` the table's entry for it.
    #[inline(always)]
    fn copy(&self, place: &Place<'_>, row: i32, entry: u32) {
        let Self { gather, tile, .. } = self;
        let slot = self.base + self.at.stage * self.slot_bytes;
        let column = place.lane % ROW_LANES;
        let tile_row = place.warp * WARP_ROWS + place.lane / ROW_LANES;
        let (steps, columns) = (
            tile.rows / PRODUCER_ROWS,
            tile.row_bytes / CHUNK / ROW_LANES,
        );
        let dst = |step: u32, j: u32| {
            tile.chunk(
                slot,
                tile_row + step * PRODUCER_ROWS,
                column + j * ROW_LANES,
            )
        };
        if gather.aligned && gather.columns.is_multiple_of(CHUNK) {
            // Addresses are multiples of 16: the lowest bit is free to say that the row exists.
            let (src, exists) = gather.source(&place.keys, row, entry);
            let own = src + exists as u64;
            let skipped = gather.piece(0, true, column).src;
            for step in 0..steps {
                let owner = step * WARP_ROWS + place.lane / ROW_LANES;
                let low = sync::shuffle(own as u32, owner);
                let high = sync::shuffle((own >> 32) as u32, owner);
                let row = (high as u64) << 32 | (low & !1) as u64;
                let mut src = row.wrapping_add(skipped);
                for j in 0..columns {
                    let is_inside = (column + j * ROW_LANES) * CHUNK < gather.columns;
                    let exists = low & 1 != 0 && is_inside;
                    // SAFETY: the destination is inside the slot, which is empty; what exists of the source is 16-byte aligned.
                    unsafe { copy::cp_async_16_if(dst(step, j), src, exists) };
                    src = special::opaque_u64(src.wrapping_add(gather.stride));
                }
            }
        } else {
            // Element by element, through registers.
            let first =
                row - (place.lane / WARP_ROWS * PRODUCER_ROWS + place.lane % WARP_ROWS) as i32;
            for step in 0..special::opaque(steps) {
                let row = first + (place.lane / ROW_LANES + step * PRODUCER_ROWS) as i32;
                gather.copy_row_by_elements(&place.keys, row, column, |j| dst(step, j));
            }
        }
    }
}
