//! A consumer warpgroup: 64 query rows, from the first product to the last.
//!
//! The products of neighbouring tiles overlap with the softmax: while a warpgroup turns the scores of one tile into probabilities, the
//! tensor cores multiply the probabilities of the tile before with its values (FlashAttention-3, arXiv:2407.08608, section 3.2), and
//! the other warpgroups' products fill what is left (section 3.1).

use super::config::{Arithmetic, Config, ConfigExt, Launched};
use super::epilogue;
use super::pipeline::{Cursor, Ring};
use super::scheduler::{Scheduler, Work};
use crate::attention::mask::{Masked, Masking, QueryRows, Unmasked};
use crate::attention::score_mod::ScoreMod;
use crate::attention::softmax::{self, Care, Growth, RowStats};
use crate::ptx::wgmma::{self, Descriptor};
use crate::ptx::{special, sync};
use crate::tile::reg::AccumTile;
use flashtile_abi::hopper::{WARPGROUP, WARPGROUP_ROWS};
use flashtile_abi::params::flags;
use flashtile_abi::{BlockRange, DType, HopperParams, KeyInterval, ScoreModKind};

/// Barriers of the block by number; 0 is everybody's.
mod barrier {
    /// First of the consumers' turns with the tensor cores.
    pub const TURN: u32 = 1;
}

/// Where a thread is.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The launch's parameters.
    pub params: &'a HopperParams,
    /// Consumer warpgroup, uniform over it.
    pub consumer: u32,
    /// Thread of the block.
    pub thread: u32,
}

impl Place<'_> {
    /// The same place, from which the compiler can't derive anything ahead of time: it is cheaper to compute anew than to keep in
    /// registers from tile to tile.
    #[inline(always)]
    pub fn anew(self) -> Self {
        Self {
            thread: special::opaque(self.thread),
            ..self
        }
    }

    /// Lane of the warp.
    #[inline(always)]
    pub fn lane(&self) -> u32 {
        self.thread % 32
    }

    /// Warp of the warpgroup.
    #[inline(always)]
    pub fn warp(&self) -> u32 {
        self.thread / 32 % 4
    }

    /// Rows of 64 that the warpgroup has: warpgroups that part v's columns have the same.
    #[inline(always)]
    pub fn rows64<C: Config>(&self) -> u32 {
        self.consumer / C::TILE.v_splits
    }

    /// The warpgroup's part of v's columns.
    #[inline(always)]
    pub fn v_part<C: Config>(&self) -> u32 {
        self.consumer % C::TILE.v_splits
    }

    /// The rows that the lane shares in, of a piece of work that begins with that row.
    #[inline(always)]
    pub fn rows<C: Config>(&self, row_begin: i32) -> Rows<'_> {
        let row = self.rows64::<C>() * WARPGROUP_ROWS + self.warp() * 16 + self.lane() / 4;
        Rows {
            params: self.params,
            lane: self.lane(),
            first: row_begin + row as i32,
        }
    }
}

/// The rows of one piece of work that a lane shares in.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    params: &'a HopperParams,
    lane: u32,
    /// The lane's first packed row (g); the other is 8 rows on.
    first: i32,
}

impl Rows<'_> {
    /// Whether there is a row.
    #[inline(always)]
    pub fn exists(&self, half: usize) -> bool {
        self.first + 8 * (half as i32) < self.params.schedule.rows
    }

    /// Query head of a packed row.
    #[inline(always)]
    pub fn head(&self, work: &Work, half: usize) -> u32 {
        let pack = self.params.schedule.pack;
        let row = (self.first + 8 * half as i32) as u32;
        (work.group << pack) + (row & ((1 << pack) - 1))
    }

    /// Query of a packed row.
    #[inline(always)]
    pub fn query(&self, half: usize) -> i32 {
        (self.first + 8 * half as i32) >> self.params.schedule.pack
    }
}

impl QueryRows for Rows<'_> {
    const MASK_BITS: bool = true;

    #[inline(always)]
    fn lane(&self) -> u32 {
        self.lane
    }

    #[inline(always)]
    fn keys(&self, _: usize, _: usize, half: usize) -> KeyInterval {
        self.params.attention.band.row(self.query(half))
    }
}

/// A piece of work, as its tiles need it.
pub trait Task<C: Config> {
    /// Of the launch.
    fn params(&self) -> &C::Params;
    /// Blocks that read what the block copies.
    fn cluster(&self) -> u32;
    /// How exponents are computed.
    fn care(&self) -> Care;
    /// The elements' scales.
    fn scales(&self) -> Scales<C>;
    /// Makes products of queries and keys scores: changes and hides them. The tile begins with key `n_begin`.
    fn prepare<M: Masking>(&self, scores: &mut C::Scores, n_begin: i32);
}

/// [`Arithmetic::Scales`] of an instance.
pub type Scales<C> = <<C as Config>::Arithmetic as Arithmetic<C>>::Scales;

/// A piece of work on dense tensors.
struct Dense<'a, C: Config> {
    place: Place<'a>,
    row_begin: i32,
    care: Care,
    scales: Scales<C>,
}

impl<C: Config<Params = HopperParams>> Task<C> for Dense<'_, C> {
    #[inline(always)]
    fn params(&self) -> &HopperParams {
        self.place.params
    }

    #[inline(always)]
    fn cluster(&self) -> u32 {
        self.place.params.schedule.cluster
    }

    #[inline(always)]
    fn care(&self) -> Care {
        self.care
    }

    #[inline(always)]
    fn scales(&self) -> Scales<C> {
        self.scales
    }

    #[inline(always)]
    fn prepare<M: Masking>(&self, scores: &mut C::Scores, n_begin: i32) {
        let params = self.place.params;
        if M::MASKS && params.attention.flags & flags::NEGATE_Q != 0 {
            softmax::negate(scores);
        }
        if !matches!(C::ScoreMod::KIND, ScoreModKind::None) {
            C::Arithmetic::descale(params, scores, self.scales, n_begin);
            // With 8-bit elements there are no registers for it, and no problems with wide caps.
            let relative = M::MASKS
                && !matches!(C::TILE.dtype, DType::E4m3)
                && params.attention.flags & flags::WIDE_CAP != 0;
            C::ScoreMod::apply(scores, &params.attention, relative);
        }
        let place = self.place.anew();
        let rows = place.rows::<C>(self.row_begin);
        M::apply(scores, &rows, n_begin);
    }
}

/// What goes from tile to tile.
struct State<C: Config> {
    stats: RowStats,
    probabilities: <C::Arithmetic as Arithmetic<C>>::Probabilities,
    sums: <C::Arithmetic as Arithmetic<C>>::Sums,
}

/// A consumer's view of the rings.
pub struct Consumer {
    /// Consumer warpgroup, uniform over it.
    consumer: u32,
    /// Thread, of which warps are numbered from a multiple of 32 on.
    thread: u32,
    /// The warpgroup's queries.
    q_tile: Descriptor,
    /// The tile of keys in the first slot.
    k_tiles: Descriptor,
    /// The warpgroup's columns of the tile of values in the first slot.
    v_tiles: Descriptor,
    k: Ring,
    /// That of the keys, where they are values: a slot is released after the last product with it.
    v: Ring,
    /// The next tile of keys. The next tile of values is that of the keys before, where scores run one tile ahead.
    at: Cursor,
}

/// Runs a consumer's role to its end.
#[inline(always)]
pub fn consume<C: Launched>(place: Place, mut scheduler: Scheduler) {
    let q = Ring::q::<C>(special::shared_base());
    let mut q_at = Cursor::START;
    let mut consumer = Consumer::new::<C>(place.consumer, place.thread);
    consumer.begin::<C>();
    while let Some(round) = scheduler.next::<C>() {
        let work = scheduler.work::<C>(round);
        let mut stats = RowStats::EMPTY;
        let mut out = C::Output::ZERO;
        let has_keys = work.range.begin < work.range.end;
        // Where the output passes through the queries' room, pieces without keys have it too.
        let has_room = has_keys || C::OUT_OVER_Q;
        if has_room {
            q.wait(q_at);
        }
        if has_keys {
            let row_begin = uniform(work.row_begin);
            let rows = place.rows::<C>(row_begin);
            let task = Dense {
                place,
                row_begin,
                care: Care {
                    careful: work.careful,
                    factor: C::Arithmetic::CAREFUL_FACTOR,
                    slack: C::Arithmetic::SLACK,
                    polynomials: C::POLYNOMIALS,
                    apart: true,
                },
                scales: C::Arithmetic::scales(place.params, &rows, &work),
            };
            let queries = (!C::OUT_OVER_Q).then_some((q, q_at));
            (stats, out) = consumer.run::<C, _>(&task, work.range, queries);
        }
        let queries = has_room.then_some((q, q_at));
        epilogue::finish::<C>(place.anew(), &scheduler, round, stats, out, queries);
        if has_room {
            q_at.advance(1);
        }
    }
    epilogue::drain();
    consumer.end::<C>();
}

/// Barriers in [`consume`]'s code: turns of the first tile and of the loop's two bodies, the first turn passed and the last one taken.
pub const fn barriers<C: Config>() -> u32 {
    if C::PING_PONG { 2 * 3 + 2 } else { 0 }
}

impl Consumer {
    /// Warpgroup `consumer`, before its first piece of work.
    #[inline(always)]
    pub fn new<C: Config>(consumer: u32, thread: u32) -> Self {
        let (smem, plan) = (special::shared_base(), C::PLAN);
        let part = C::V.blocks() / C::TILE.v_splits * C::V.block_bytes();
        let (v_tiles, v) = if C::TRANSPOSES {
            (C::VT.along(smem + plan.vt), Ring::vt::<C>(smem))
        } else {
            let columns = smem + plan.v + consumer % C::TILE.v_splits * part;
            let ring = if C::TILE.latent {
                Ring::k::<C>(smem)
            } else {
                Ring::v::<C>(smem)
            };
            (C::V.across(columns), ring)
        };
        Self {
            consumer,
            thread,
            q_tile: C::Q.along(smem + plan.q + consumer / C::TILE.v_splits * C::Q_BYTES),
            k_tiles: C::K.along(smem + plan.k),
            v_tiles,
            k: Ring::k::<C>(smem),
            v,
            at: Cursor::START,
        }
    }

    /// Before the first piece of work.
    #[inline(always)]
    pub fn begin<C: Config>(&self) {
        if C::PING_PONG && self.consumer == C::CONSUMERS - 1 {
            self.pass_turn::<C>();
        }
    }

    /// After the last.
    #[inline(always)]
    pub fn end<C: Config>(&self) {
        if C::PING_PONG && self.consumer == 0 {
            // Nobody is left to take the last turn.
            self.take_turn::<C>();
        }
    }

    #[inline(always)]
    fn take_turn<C: Config>(&self) {
        if C::PING_PONG {
            // Opaque here and below: else the barriers' numbers are in two registers all the while.
            let own = barrier::TURN + special::opaque(self.consumer);
            sync::named_sync(own, 2 * WARPGROUP);
        }
    }

    #[inline(always)]
    fn pass_turn<C: Config>(&self) {
        if C::PING_PONG {
            let next = special::opaque(self.consumer) + 1;
            let next = if next == C::CONSUMERS { 0 } else { next };
            sync::named_arrive(barrier::TURN + next, 2 * WARPGROUP);
        }
    }

    /// All tiles of a piece of work, one at least. Returns the rows' statistics and their sums of probability * value. `queries`: the slot of
    /// the queries, if it is to be released.
    #[inline(always)]
    pub fn run<C: Config, T: Task<C>>(
        &mut self,
        task: &T,
        range: BlockRange,
        queries: Option<(Ring, Cursor)>,
    ) -> (RowStats, C::Output) {
        let BlockRange {
            begin,
            full_begin,
            full_end,
            end,
        } = range;
        // ptxas keeps what loops count with in uniform registers, descriptors among it, if it knows the loops' bounds for uniform.
        let [begin, full_begin, full_end, end] = [begin, full_begin, full_end, end].map(uniform);
        let mut n_block = end - 1;
        let mut state = if C::OVERLAPS {
            n_block -= 1;
            self.first::<C, T>(task, end - 1)
        } else {
            State {
                stats: RowStats::EMPTY,
                probabilities: C::Arithmetic::NONE,
                sums: C::Arithmetic::START,
            }
        };
        // Masked tiles lie on either side of the unmasked ones; both sides share one loop body.
        loop {
            while full_begin <= n_block && n_block < full_end {
                self.step::<C, T, Unmasked>(task, n_block, &mut state);
                n_block -= 1;
            }
            if n_block < begin {
                break;
            }
            self.step::<C, T, Masked>(task, n_block, &mut state);
            n_block -= 1;
        }
        if let Some((q, q_at)) = queries
            && special::opaque(self.thread).is_multiple_of(32)
        {
            q.release_own(q_at);
        }
        if C::OVERLAPS {
            self.last::<C, T>(task, begin, &mut state);
        }
        (state.stats, C::Arithmetic::finish(state.sums))
    }

    /// The first tile: scores and probabilities. It is taken for one with masks, which is right for any.
    #[inline(always)]
    fn first<C: Config, T: Task<C>>(&mut self, task: &T, n_block: i32) -> State<C> {
        let mut scores = self.scores::<C, T>(task);
        self.at.advance(C::TILE.stages);
        let mut stats = RowStats::EMPTY;
        let growth = absorb::<C, T, Masked>(task, &mut stats, &mut scores, n_begin::<C>(n_block));
        stats.start(growth);
        State {
            stats,
            probabilities: C::Arithmetic::pack(&scores),
            sums: C::Arithmetic::START,
        }
    }

    /// A tile: its scores and probabilities, while the products of the tile before are made; or everything of it, one after the other.
    #[inline(always)]
    fn step<C: Config, T: Task<C>, M: Masking>(
        &mut self,
        task: &T,
        n_block: i32,
        state: &mut State<C>,
    ) {
        let begin = n_begin::<C>(n_block);
        if !C::OVERLAPS {
            let mut scores = self.scores::<C, T>(task);
            let at = self.at;
            self.at.advance(C::TILE.stages);
            let growth = absorb::<C, T, M>(task, &mut state.stats, &mut scores, begin);
            settle::<C, T, M>(task, state, growth);
            state.probabilities = C::Arithmetic::pack(&scores);
            self.values::<C, T>(at, state, task, n_block);
            return;
        }
        self.k.wait(self.at);
        self.take_turn::<C>();
        wgmma::fence();
        let mut scores = self.mm_qk::<C>();
        wgmma::commit_group();
        let v_at = self.at.previous(C::TILE.stages);
        self.v.wait(v_at);
        wgmma::fence();
        self.mma_pv::<C, T>(v_at, state, task, n_block + 1);
        wgmma::commit_group();
        self.pass_turn::<C>();
        wgmma::wait_group::<1>();
        self.release(self.k, self.at, task.cluster());

        let growth = absorb::<C, T, M>(task, &mut state.stats, &mut scores, begin);
        wgmma::wait_group::<0>();
        self.release_v::<C>(v_at, task.cluster());
        self.at.advance(C::TILE.stages);
        collect(task, state, n_begin::<C>(n_block + 1), false);
        settle::<C, T, M>(task, state, growth);
        state.probabilities = C::Arithmetic::pack(&scores);
    }

    /// The products of the last tile, where they are not made yet.
    #[inline(always)]
    fn last<C: Config, T: Task<C>>(&mut self, task: &T, n_block: i32, state: &mut State<C>) {
        let v_at = self.at.previous(C::TILE.stages);
        self.v.wait(v_at);
        wgmma::fence();
        self.mma_pv::<C, T>(v_at, state, task, n_block);
        wgmma::commit_group();
        wgmma::wait_group::<0>();
        self.release_v::<C>(v_at, task.cluster());
        collect(task, state, n_begin::<C>(n_block), true);
    }

    /// A tile's scores, waited for.
    #[inline(always)]
    fn scores<C: Config, T: Task<C>>(&self, task: &T) -> C::Scores {
        self.k.wait(self.at);
        self.take_turn::<C>();
        wgmma::fence();
        let scores = self.mm_qk::<C>();
        wgmma::commit_group();
        self.pass_turn::<C>();
        wgmma::wait_group::<0>();
        if !C::TILE.latent {
            self.release(self.k, self.at, task.cluster());
        }
        scores
    }

    /// A tile's products with values, waited for.
    #[inline(always)]
    fn values<C: Config, T: Task<C>>(
        &self,
        at: Cursor,
        state: &mut State<C>,
        task: &T,
        n_block: i32,
    ) {
        // Keys that are values have been waited for.
        if !C::TILE.latent {
            self.v.wait(at);
        }
        self.mma_pv::<C, T>(at, state, task, n_block);
        self.release_v::<C>(at, task.cluster());
    }

    /// Q * K^T, in flight.
    #[inline(always)]
    fn mm_qk<C: Config>(&self) -> C::Scores {
        let k = self.k_tiles.advance(self.at.stage, C::PLAN.k_stage);
        // SAFETY: both tiles are full, and released after a wait.
        unsafe { C::Arithmetic::mm_qk(self.q_tile.anew(), k) }
    }

    /// Sums += P * V, in flight, the probabilities being those of `n_block`.
    #[inline(always)]
    fn mma_pv<C: Config, T: Task<C>>(
        &self,
        at: Cursor,
        state: &mut State<C>,
        task: &T,
        n_block: i32,
    ) {
        let v = self.v_tiles.advance(at.stage, C::PLAN.v_stage);
        let State {
            sums,
            probabilities,
            ..
        } = state;
        // SAFETY: as for `mm_qk`.
        unsafe {
            C::Arithmetic::mma_pv(
                task.params(),
                sums,
                probabilities,
                v,
                task.scales(),
                n_begin::<C>(n_block),
            )
        };
    }

    /// Lets the producer overwrite a slot.
    #[inline(always)]
    fn release(&self, ring: Ring, at: Cursor, cluster: u32) {
        ring.release(at, self.thread % 32, cluster);
    }

    /// The same, of values. Transposed ones are the block's own.
    #[inline(always)]
    fn release_v<C: Config>(&self, at: Cursor, cluster: u32) {
        if !C::TRANSPOSES {
            self.release(self.v, at, cluster);
        } else if self.thread.is_multiple_of(32) {
            self.v.release_own(at);
        }
    }
}

/// Turns a tile's products into probabilities.
#[inline(always)]
fn absorb<C: Config, T: Task<C>, M: Masking>(
    task: &T,
    stats: &mut RowStats,
    scores: &mut C::Scores,
    n_begin: i32,
) -> Growth {
    task.prepare::<M>(scores, n_begin);
    let (params, scales, care) = (task.params(), task.scales(), task.care());
    C::Arithmetic::absorb::<M>(params, stats, scores, scales, n_begin, care)
}

/// Brings sums to new references.
#[inline(always)]
fn settle<C: Config, T: Task<C>, M: Masking>(task: &T, state: &mut State<C>, growth: Growth) {
    let State { stats, sums, .. } = state;
    C::Arithmetic::settle::<M>(task.params(), stats, sums, growth, task.care());
}

/// Takes in what products made of a tile. `last`: no more follow.
#[inline(always)]
fn collect<C: Config, T: Task<C>>(task: &T, state: &mut State<C>, n_begin: i32, last: bool) {
    C::Arithmetic::collect(task.params(), &mut state.sums, task.scales(), n_begin, last);
}

/// First key of a tile.
#[inline(always)]
fn n_begin<C: Config>(n_block: i32) -> i32 {
    n_block * C::TILE.block_n as i32
}

/// The same value, known to be that of the whole warp.
#[inline(always)]
fn uniform(value: i32) -> i32 {
    sync::broadcast(value as u32) as i32
}
