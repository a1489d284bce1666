//! Which tiles of queries a block computes, in which order.
//!
//! Pieces of work are numbered so that neighbours are worked on at the same time: within a section of heads, whose keys and values fit
//! in the L2 cache together, the last rows of every head first (under a causal mask they have the most keys). Block `b` of `n` takes
//! pieces b, 2n - 1 - b, 2n + b, ...: back and forth, which evens out lengths that fall from piece to piece. Nothing is decided at
//! run time, so that results and their order are the same every time.

use super::config::{Config, ConfigExt};
use crate::ptx::math::div_rem;
use crate::ptx::{cluster, copy, special, sync, tma};
use flashtile_abi::hopper::MOST_PIECES;
use flashtile_abi::params::flags;
use flashtile_abi::{BlockRange, HopperParams};

/// A piece of work.
#[derive(Clone, Copy)]
pub struct Work {
    /// Batch.
    pub batch: u32,
    /// Group of query heads in the batch.
    pub group: u32,
    /// First packed row.
    pub row_begin: i32,
    /// Key tiles that its rows see.
    pub range: BlockRange,
    /// Whether exponents are computed with care: in every tile or in none, and not where some tiles take the fast way.
    pub careful: bool,
}

impl Work {
    /// The head of keys and values.
    #[inline(always)]
    pub fn kv_head(&self, params: &HopperParams) -> u32 {
        div_rem(
            self.group << params.schedule.pack,
            params.attention.q_per_kv,
        )
        .0
    }
}

/// Hands out a block's work. Every thread of the block that lives asks in step with the others.
///
/// Little is kept from piece to piece, and nothing that special registers and parameters tell: registers are scarce while a piece is
/// computed.
pub struct Scheduler<'a> {
    params: &'a HopperParams,
    /// The next of the block's pieces; and [`AGAIN`], the second time around: only what must be done again.
    round: u32,
}

/// A bit of [`Scheduler`]'s counter.
const AGAIN: u32 = 1 << 31;

impl<'a> Scheduler<'a> {
    /// The block's scheduler.
    #[inline(always)]
    pub fn new(params: &'a HopperParams) -> Self {
        Self { params, round: 0 }
    }

    /// Clusters of the grid.
    #[inline(always)]
    fn clusters(&self) -> u32 {
        div_rem(special::grid_size(), self.params.schedule.cluster).0
    }

    /// The piece of work of a round, if there is one.
    #[inline(always)]
    fn piece(&self, round: u32) -> u32 {
        let round = round & !AGAIN;
        let (clusters, block) = (self.clusters(), special::opaque(special::block_idx()));
        let (cluster, _) = div_rem(block, self.params.schedule.cluster);
        let back = round % 2 == 1;
        round * clusters
            + if back {
                clusters - 1 - cluster
            } else {
                cluster
            }
    }

    /// The number of the next piece of work, for [`work`](Self::work).
    #[inline(always)]
    pub fn next<C: Config>(&mut self) -> Option<u32> {
        loop {
            let rounds = self.params.schedule.rounds | self.round & AGAIN;
            while self.round < rounds {
                let round = self.round;
                self.round += 1;
                let wanted = round & AGAIN == 0 || is_spoilt::<C>(round & !AGAIN);
                if wanted && self.piece(round) < self.params.schedule.pieces {
                    return Some(round);
                }
            }
            // All that the block has done is known in the whole cluster, and by all its threads.
            cluster::sync();
            if self.round & AGAIN != 0 || !any_spoilt::<C>() {
                return None;
            }
            // What this thread has stored, it may store once more.
            tma::wait_group();
            self.round = AGAIN;
        }
    }

    /// The piece of work of a round. Computed anew wherever it is asked for.
    #[inline(always)]
    pub fn work<C: Config>(&self, round: u32) -> Work {
        let piece = self.piece(special::opaque(round));
        let (attention, schedule) = (&self.params.attention, &self.params.schedule);
        // Tiles of one head, of which each block of the cluster takes its own.
        let (m_clusters, _) = div_rem(attention.m_blocks, schedule.cluster);
        let (section, rest) = div_rem(piece, schedule.section * m_clusters);
        let before = section * schedule.section;
        let groups = schedule.section.min(schedule.groups - before);
        let (from_last, in_section) = div_rem(rest, groups);
        let m_block = (m_clusters - 1 - from_last) * schedule.cluster + cluster::rank();
        let (batch, group) = div_rem(before + in_section, attention.heads_q >> schedule.pack);

        let row_begin = (m_block * C::TILE.block_m) as i32;
        let rows = (schedule.rows - row_begin).min(C::TILE.block_m as i32);
        let first = row_begin >> schedule.pack;
        let last = (row_begin + rows - 1) >> schedule.pack;
        let mut range = attention
            .band
            .block_range(first, last - first + 1, C::TILE.block_n as i32);
        // Tiles that take the way of those with masks: exponents with care, scores whose sign is to be flipped, wide caps.
        if round & AGAIN != 0 || attention.flags & (flags::NEGATE_Q | flags::WIDE_CAP) != 0 {
            range.full_end = range.full_begin;
        }
        Work {
            batch,
            group,
            row_begin,
            careful: range.full_begin >= range.full_end,
            range,
        }
    }

    /// Says that a piece must be done again, with care: to all blocks of the cluster, which read the same keys.
    #[inline(always)]
    pub fn spoil<C: Config>(&self, round: u32) {
        let round = round & !AGAIN;
        for rank in 0..self.params.schedule.cluster {
            let word = cluster::map(spoilt_word::<C>(round / 32), rank);
            // SAFETY: the word is inside the plan.
            unsafe { copy::red_or_cluster(word, 1 << (round % 32)) };
        }
    }
}

/// Shared address of 32 bits of spoilt pieces.
#[inline(always)]
fn spoilt_word<C: Config>(word: u32) -> u32 {
    special::shared_base() + C::PLAN.spoilt + 4 * word
}

#[inline(always)]
fn is_spoilt<C: Config>(round: u32) -> bool {
    // SAFETY: the word is inside the plan. So below.
    let word = unsafe { copy::ld_shared_u32(spoilt_word::<C>(round / 32)) };
    word >> (round % 32) & 1 != 0
}

#[inline(always)]
fn any_spoilt<C: Config>() -> bool {
    const { assert!(MOST_PIECES == 32 * 32) };
    // SAFETY: as above; one word a lane.
    let word = unsafe { copy::ld_shared_u32(spoilt_word::<C>(special::thread_idx() % 32)) };
    sync::warp_any(word != 0)
}

/// Clears the bits of spoilt pieces: the block's first warp.
#[inline(always)]
pub fn clear_spoilt<C: Config>() {
    let thread = special::thread_idx();
    if thread < 32 {
        // SAFETY: as above.
        unsafe { copy::st_shared_u32(spoilt_word::<C>(thread), 0) };
    }
}
