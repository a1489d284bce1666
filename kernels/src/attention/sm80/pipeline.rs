//! One block's place in the problem, and the stream of K and V tiles past it.

use super::config::{Config, ConfigExt};
use super::pass::Pass;
use super::query::QueryFrags;
use crate::attention::mask::{Masked, Masking, QueryRows, Unmasked};
use crate::attention::softmax::Care;
use crate::element::Element;
use crate::ptx::math::div_rem;
use crate::ptx::{special, sync};
use crate::tile::load::TileLoader;
use crate::tile::smem::{FragmentView, SmemTile};
use flashtile_abi::params::flags;
use flashtile_abi::{AttentionParams, BlockRange, DType, KeyInterval};

/// Where a thread is.
#[derive(Clone, Copy)]
pub struct Block<'a> {
    /// The launch's parameters.
    pub params: &'a AttentionParams,
    /// Shared address of the block's shared memory.
    pub smem: u32,
    /// Thread of the block.
    pub thread: u32,
    /// Lane of the warp.
    pub lane: u32,
    /// Warp of the block, uniform over the warp.
    pub warp: u32,
    /// Batch of the block.
    pub batch: u32,
    /// Query head of the block.
    pub head: u32,
    /// First query row of the block.
    pub q_begin: i32,
    /// Key tiles the block visits.
    pub range: BlockRange,
}

impl<'a> Block<'a> {
    /// Decodes the block index: query blocks fastest, in descending order (under a causal mask the
    /// longest start first), then heads, then batches.
    #[inline(always)]
    pub fn new<C: Config>(params: &'a AttentionParams) -> Self {
        let index = special::block_idx();
        let (head_index, m_index) = div_rem(index, params.m_blocks);
        let (batch, head) = div_rem(head_index, params.heads_q);
        let thread = special::thread_idx();
        let warp = sync::broadcast(thread / 32);
        let q_begin = ((params.m_blocks - 1 - m_index) * C::TILE.block_m) as i32;
        let rows = (params.seqlen_q - q_begin).min(C::TILE.block_m as i32);
        Self {
            params,
            smem: special::shared_base(),
            thread,
            lane: thread % 32,
            warp,
            batch,
            head,
            q_begin,
            range: params
                .band
                .block_range(q_begin, rows, C::TILE.block_n as i32),
        }
    }

    /// First query row of the warp, where each warp owns `m_frags` fragments of 16 rows.
    #[inline(always)]
    pub fn warp_q_begin(&self, m_frags: usize) -> i32 {
        self.q_begin + (self.warp * 16 * m_frags as u32) as i32
    }

    /// Query row of accumulator fragment `m` of `m_frags`, rows g (`half` 0) or g + 8 (`half` 1).
    #[inline(always)]
    pub fn lane_row(&self, m_frags: usize, m: usize, half: usize) -> i32 {
        self.warp_q_begin(m_frags) + (16 * m + 8 * half) as i32 + (self.lane / 4) as i32
    }

    /// Whether exponents are computed with care: in every tile or in none, and not where some tiles take
    /// the fast way.
    #[inline(always)]
    pub fn is_careful(&self) -> bool {
        self.range.full_begin >= self.range.full_end
    }

    /// Sends every tile through the loop body with masks.
    #[inline(always)]
    pub fn take_care(&mut self) {
        // Opaque, or the compiler makes a copy of the loop for the second attempt.
        self.range.full_end = special::opaque(self.range.full_begin as u32) as i32;
    }

    /// The same place, from which the compiler can't derive addresses and bounds ahead of the loop over
    /// tiles: they are cheaper to compute anew than to keep in registers from tile to tile.
    #[inline(always)]
    fn in_tile(&self) -> Self {
        let thread = special::opaque(self.thread);
        Self {
            thread,
            lane: thread % 32,
            warp: thread / 32,
            ..*self
        }
    }

    /// How exponents of tiles with masks are computed.
    #[inline(always)]
    pub fn care<E: Element>(&self) -> Care {
        Care {
            careful: self.is_careful(),
            factor: E::CAREFUL_FACTOR,
            slack: 0.0,
            polynomials: 0,
            // f32's kernel at head_dim 256 has no registers for it.
            apart: !matches!(E::DTYPE, DType::F32),
        }
    }

    /// Whether the parameters have a flag.
    #[inline(always)]
    pub fn has(&self, flag: u32) -> bool {
        self.params.flags & flag != 0
    }
}

impl QueryRows for Block<'_> {
    const MASK_BITS: bool = false;

    #[inline(always)]
    fn lane(&self) -> u32 {
        self.lane
    }

    #[inline(always)]
    fn keys(&self, m_frags: usize, m: usize, half: usize) -> KeyInterval {
        self.params.band.row(self.lane_row(m_frags, m, half))
    }
}

/// Starts the copy of the block's queries, as a group of its own.
#[inline(always)]
pub fn load_query<C: Config>(block: &Block) {
    let loader = TileLoader::new(
        C::Q_LOAD,
        &block.params.q,
        block.batch,
        block.head,
        block.params.head_dim_qk,
        block.has(flags::Q_ALIGNED),
    );
    let tile = SmemTile {
        base: block.smem + C::TILE.shared().q,
        row_bytes: C::QK_ROW_BYTES,
    };
    // Queries that stay in shared memory are waited for with the first K tile. Where there is none, no copy
    // may be under way when the epilogue writes over them.
    let wanted = C::Query::IN_REGISTERS || block.range.begin < block.range.end;
    if wanted {
        loader.load(tile, block.thread, block.q_begin, block.params.seqlen_q);
    }
    sync::cp_async_commit();
    if wanted && block.has(flags::NEGATE_Q) {
        sync::cp_async_wait::<0>();
        loader.negate(tile, block.thread);
    }
}

/// Hands each warp its queries. Those that go to registers must have landed for every thread, with one
/// later group still under way; those that stay in shared memory land with the first K tile.
#[inline(always)]
pub fn receive_query<C: Config>(block: &Block) -> C::Query {
    if C::Query::IN_REGISTERS {
        sync::cp_async_wait::<1>();
        sync::cta_sync();
    }
    C::Query::load(query_view::<C>(block))
}

/// The lane's view of its warp's rows of the Q tile.
#[inline(always)]
pub fn query_view<C: Config>(block: &Block) -> FragmentView {
    let base = block.smem + C::TILE.shared().q + block.warp * C::WARP_ROWS * C::QK_ROW_BYTES;
    SmemTile {
        base,
        row_bytes: C::QK_ROW_BYTES,
    }
    .rows_then_chunks(block.lane)
}

/// The stream of a block's K and V tiles, last to first.
///
/// Two stages are in shared memory. At the top of an iteration one tile has landed (wait) for every
/// thread (barrier), and the same barrier says that every warp is done with the tile before, whose place
/// the next copy takes: one barrier an iteration, copies one tile ahead of the tensor cores.
pub struct Stream {
    k: TileLoader,
    v: TileLoader,
}

/// The stages of [`Stream`].
const STAGES: u32 = 2;

impl Stream {
    /// Barriers in [`run`](Self::run)'s code: one for unmasked tiles, one for masked ones.
    pub const BARRIERS: u32 = 2;

    /// The stream of the block's key/value head.
    #[inline(always)]
    pub fn new<C: Config>(block: &Block) -> Self {
        const { assert!(C::TILE.stages == STAGES) };
        let params = block.params;
        let batch = block.batch;
        let (head, _) = div_rem(block.head, params.q_per_kv);
        let (k_aligned, v_aligned) = (block.has(flags::K_ALIGNED), block.has(flags::V_ALIGNED));
        Self {
            k: TileLoader::new(
                C::K_LOAD,
                &params.k,
                batch,
                head,
                params.head_dim_qk,
                k_aligned,
            ),
            v: TileLoader::new(
                C::V_LOAD,
                &params.v,
                batch,
                head,
                params.head_dim_v,
                v_aligned,
            ),
        }
    }

    /// Starts the copy of the first tile, if there is any: always one group, since [`receive_query`] waits for all but
    /// that where queries go to registers. (Elsewhere nobody counts it, but without it ptxas spills.)
    #[inline(always)]
    pub fn start<C: Config, P: Pass<C>>(&self, block: &Block) {
        if block.range.end > block.range.begin {
            self.restart::<C, P>(block);
        } else {
            sync::cp_async_commit();
        }
    }

    /// Starts the copy of the first tile of a block that has one.
    #[inline(always)]
    pub fn restart<C: Config, P: Pass<C>>(&self, block: &Block) {
        let block = &block.in_tile();
        self.load::<C, P>(block, block.range.end - 1, 0);
        sync::cp_async_commit();
    }

    /// Runs `pass` over the tiles, the first of which has been started.
    #[inline(always)]
    pub fn run<C: Config, P: Pass<C>>(&self, block: &Block, q: &C::Query, pass: &mut P) {
        let BlockRange {
            begin,
            end,
            full_begin,
            full_end,
        } = block.range;
        let mut n_block = end - 1;
        let mut stage = 0;
        // Masked tiles lie on either side of the unmasked ones; both sides share one loop body.
        loop {
            while full_begin <= n_block && n_block < full_end {
                self.step::<C, P, Unmasked>(block, q, pass, n_block, stage);
                n_block -= 1;
                stage ^= 1;
            }
            if n_block < begin {
                break;
            }
            self.step::<C, P, Masked>(block, q, pass, n_block, stage);
            n_block -= 1;
            stage ^= 1;
        }
    }

    #[inline(always)]
    fn step<C: Config, P: Pass<C>, M: Masking>(
        &self,
        block: &Block,
        q: &C::Query,
        pass: &mut P,
        n_block: i32,
        stage: u32,
    ) {
        let block = &block.in_tile();
        sync::cp_async_wait::<0>();
        sync::cta_sync();
        if n_block > block.range.begin {
            self.load::<C, P>(block, n_block - 1, stage ^ 1);
            sync::cp_async_commit();
        }
        pass.tile::<M>(block, q, n_block, &KvTiles::at::<C>(block, stage));
    }

    #[inline(always)]
    fn load<C: Config, P: Pass<C>>(&self, block: &Block, n_block: i32, stage: u32) {
        let row = n_block * C::TILE.block_n as i32;
        let tiles = KvTiles::at::<C>(block, stage);
        self.k
            .load(tiles.k, block.thread, row, block.params.band.seqlen_k);
        if P::NEEDS_V {
            self.v
                .load(tiles.v, block.thread, row, block.params.band.seqlen_k);
        }
    }
}

/// The tiles of one stage.
pub struct KvTiles {
    /// Keys [block_n, head_dim_qk].
    pub k: SmemTile,
    /// Values [block_n, head_dim_v].
    pub v: SmemTile,
}

impl KvTiles {
    #[inline(always)]
    fn at<C: Config>(block: &Block, stage: u32) -> Self {
        let plan = C::TILE.shared();
        let (k, v) = (plan.k + stage * plan.k_stage, plan.v + stage * plan.v_stage);
        Self {
            k: SmemTile {
                base: block.smem + k,
                row_bytes: C::QK_ROW_BYTES,
            },
            v: SmemTile {
                base: block.smem + v,
                row_bytes: C::V_ROW_BYTES,
            },
        }
    }
}
