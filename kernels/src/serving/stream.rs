//! The queries of a block, and the stream of its key and value tiles.

use super::config::{Crew, ServingConfig, ServingExt};
use super::place::Place;
use crate::attention::mask::{Masked, Masking, Unmasked};
use crate::attention::sm80::config::ConfigExt;
use crate::attention::sm80::query::QueryFrags;
use crate::ptx::{copy, special, sync};
use crate::tile::gather::{Entries, Gather, Piece, copy_elements};
use crate::tile::smem::{CHUNK, SmemTile};
use flashtile_abi::BlockRange;
use flashtile_abi::serving::flags;

/// What takes in the tiles.
pub trait Consumer<C: ServingConfig> {
    /// Takes in a tile, or the crew's part of it, whose first key is `n_begin`.
    fn tile<M: Masking>(&mut self, place: &Place<'_>, q: &C::Query, n_begin: i32, tiles: &Tiles);
}

/// The room of a block's queries in rows.
#[inline(always)]
fn query_tile<C: ServingConfig>(place: &Place<'_>) -> SmemTile {
    SmemTile {
        base: place.smem + C::TILE.shared().q,
        row_bytes: C::QK_ROW_BYTES,
    }
}

/// Starts the copy of the block's packed queries by `threads` threads, of which this is `thread`, as a group of its own: a chunk of a row to
/// where `room` says. Rows that don't exist arrive as zeros.
#[inline(always)]
pub fn load_query<C: ServingConfig>(
    place: &Place<'_>,
    thread: u32,
    threads: u32,
    room: impl Fn(u32, u32) -> u32,
) {
    let params = place.params;
    let sequence = params.q.ptr.wrapping_add(
        (place.batch as i64 * params.q.batch_stride
            + place.queries.first as i64 * params.q.row_stride) as u64,
    );
    let chunks = C::QK_ROW_BYTES / CHUNK;
    let columns = params.head_dim_qk * C::TILE.dtype.bytes();
    let mut index = thread;
    while index < special::opaque(C::TILE.block_m * chunks) {
        let (row, chunk) = (index / chunks, index % chunks);
        let packed = place.row_begin + row as i32;
        let exists = packed < place.rows();
        let (query, head) = place.query_of(packed);
        let offset = query as i64 * params.q.row_stride + head as i64 * params.q.head_stride;
        let src = sequence.wrapping_add(if exists { offset as u64 } else { 0 });
        let left = columns as i32 - (chunk * CHUNK) as i32;
        let bytes = if exists {
            left.clamp(0, CHUNK as i32) as u32
        } else {
            0
        };
        let (src, dst) = (src.wrapping_add((chunk * CHUNK) as u64), room(row, chunk));
        if place.has(flags::Q_ALIGNED) {
            // SAFETY: dst is inside the tile; `bytes` bytes exist at src, which is 16-byte aligned.
            unsafe { copy::cp_async_16(dst, src, bytes) };
        } else {
            let element = C::TILE.dtype.bytes();
            copy_elements(dst, Piece { src, bytes }, element, element as i64);
        }
        index += threads;
    }
    sync::cp_async_commit();
}

/// [`load_query`] by the whole block, in rows.
#[inline(always)]
pub fn load_query_rows<C: ServingConfig>(place: &Place<'_>) {
    let tile = query_tile::<C>(place);
    load_query::<C>(place, place.thread, C::TILE.threads(), |row, chunk| {
        tile.chunk(row, chunk)
    });
}

/// CTA barriers of [`receive_query`].
pub const QUERY_BARRIERS: u32 = 1;

/// Hands each warp its queries, once they have landed for every thread: one later group is still under way.
#[inline(always)]
pub fn receive_query<C: ServingConfig>(place: &Place<'_>) -> C::Query {
    sync::cp_async_wait::<1>();
    sync::cta_sync();
    C::Query::load(place.query_view::<C>())
}

/// The tiles of one stage, or a crew's parts of them.
pub struct Tiles {
    /// Keys.
    pub k: SmemTile,
    /// Values.
    pub v: SmemTile,
}

impl Tiles {
    #[inline(always)]
    fn at<C: ServingConfig>(place: &Place<'_>, stage: u32) -> Self {
        let plan = C::TILE.shared();
        let skipped = C::Crew::part(place) * C::PART_KEYS;
        let v_row_bytes = if C::LATENT {
            C::K_ROW_BYTES
        } else {
            C::CACHED_V_ROW_BYTES
        };
        Self {
            k: SmemTile {
                base: place.smem + plan.k + stage * plan.k_stage + skipped * C::K_ROW_BYTES,
                row_bytes: C::K_ROW_BYTES,
            },
            v: SmemTile {
                base: place.smem + plan.v + stage * plan.v_stage + skipped * v_row_bytes,
                row_bytes: v_row_bytes,
            },
        }
    }
}

/// The stream of a crew's tiles, last to first, in two stages: at the top of an iteration one tile has landed (wait) for every thread
/// of the crew (sync), and the same sync says that every warp of it is done with the tile before, whose place the next copy takes.
/// The table's entries are read one tile ahead of the copies.
pub struct Stream<'a> {
    k: Gather<'a>,
    v: Gather<'a>,
}

/// What brings the block's keys and values, in copies of the crew's parts of tiles.
#[inline(always)]
pub fn gathers<'a, C: ServingConfig>(place: &Place<'a>) -> [Gather<'a>; 2] {
    let params = place.params;
    let paged = params.pages.table != 0;
    // Sequences that follow each other are in one block, of stride 0.
    let block = if paged { 0 } else { place.batch };
    [
        Gather::new(
            C::K_PART,
            &params.k,
            block,
            place.kv_head,
            params.head_dim_qk,
            place.has(flags::K_ALIGNED),
        ),
        Gather::new(
            C::V_PART,
            &params.v,
            block,
            place.kv_head,
            params.head_dim_v,
            place.has(flags::V_ALIGNED),
        ),
    ]
}

impl<'a> Stream<'a> {
    /// The stream of the block's head and sequence.
    #[inline(always)]
    pub fn new<C: ServingConfig>(place: &Place<'a>) -> Self {
        const { assert!(C::TILE.stages == 2) };
        let [k, v] = gathers::<C>(place);
        Self { k, v }
    }

    /// First key of the crew's part of a tile.
    #[inline(always)]
    fn first_key<C: ServingConfig>(place: &Place<'_>, n_block: i32) -> i32 {
        n_block * C::TILE.block_n as i32 + (C::Crew::part(place) * C::PART_KEYS) as i32
    }

    #[inline(always)]
    fn entries<C: ServingConfig>(place: &Place<'_>, n_block: i32) -> Entries {
        let first = Self::first_key::<C>(place, n_block);
        place.keys.entries(C::K_PART, C::Crew::thread(place), first)
    }

    #[inline(always)]
    fn load<C: ServingConfig>(
        &self,
        place: &Place<'_>,
        entries: &Entries,
        n_block: i32,
        stage: u32,
    ) {
        let tiles = Tiles::at::<C>(place, stage);
        let first = Self::first_key::<C>(place, n_block);
        let thread = C::Crew::thread(place);
        self.k.load(&place.keys, entries, tiles.k, thread, first);
        if !C::LATENT {
            self.v.load(&place.keys, entries, tiles.v, thread, first);
        }
    }

    /// Starts the copy of the first tile, if there is any, as a group: always one. Returns the entries of the tile after it.
    #[inline(always)]
    pub fn start<C: ServingConfig>(&self, place: &Place<'_>) -> Entries {
        let place = &place.in_tile();
        let BlockRange { begin, end, .. } = place.range;
        let mut ahead = Entries::default();
        if begin < end {
            let entries = Self::entries::<C>(place, end - 1);
            self.load::<C>(place, &entries, end - 1, 0);
            if begin + 1 < end {
                ahead = Self::entries::<C>(place, end - 2);
            }
        }
        sync::cp_async_commit();
        ahead
    }

    /// CTA barriers in [`run`](Self::run)'s code.
    pub const fn barriers<C: ServingConfig>() -> u32 {
        2 * <C::Crew as Crew>::BARRIERS
    }

    /// Runs over the tiles, the first of which has been started.
    #[inline(always)]
    pub fn run<C: ServingConfig, X: Consumer<C>>(
        &self,
        place: &Place<'_>,
        mut ahead: Entries,
        q: &C::Query,
        consumer: &mut X,
    ) {
        let BlockRange {
            begin,
            end,
            full_begin,
            full_end,
        } = place.range;
        let mut n_block = end - 1;
        let mut stage = 0;
        // Masked tiles lie on either side of the unmasked ones; both sides share one loop body.
        loop {
            while full_begin <= n_block && n_block < full_end {
                self.step::<C, X, Unmasked>(place, &mut ahead, q, consumer, n_block, stage);
                n_block -= 1;
                stage ^= 1;
            }
            if n_block < begin {
                break;
            }
            self.step::<C, X, Masked>(place, &mut ahead, q, consumer, n_block, stage);
            n_block -= 1;
            stage ^= 1;
        }
    }

    #[inline(always)]
    fn step<C: ServingConfig, X: Consumer<C>, M: Masking>(
        &self,
        place: &Place<'_>,
        ahead: &mut Entries,
        q: &C::Query,
        consumer: &mut X,
        n_block: i32,
        stage: u32,
    ) {
        let place = &place.in_tile();
        sync::cp_async_wait::<0>();
        C::Crew::sync();
        if n_block > place.range.begin {
            self.load::<C>(place, ahead, n_block - 1, stage ^ 1);
            sync::cp_async_commit();
            if n_block - 1 > place.range.begin {
                *ahead = Self::entries::<C>(place, n_block - 2);
            }
        }
        let tiles = Tiles::at::<C>(place, stage);
        let first = Self::first_key::<C>(place, n_block);
        consumer.tile::<M>(place, q, first, &tiles);
    }
}
