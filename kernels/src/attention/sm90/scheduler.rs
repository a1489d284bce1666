//! Which tiles of queries a block computes, in which order.
//!
//! Pieces of work are numbered so that neighbours are worked on at the same time: within a section of heads, whose keys and values fit
//! in the L2 cache together, the last rows of every head first (under a causal mask they have the most keys). Block `b` of `n` takes
//! pieces b, 2n - 1 - b, 2n + b, ...: back and forth, which evens out lengths that fall from piece to piece. Nothing is decided at
//! run time, so that results and their order are the same every time.

use super::config::{Config, ConfigExt};
use crate::ptx::math::div_rem;
use crate::ptx::{cluster, copy, special, sync};
use flashtile_abi::hopper::REMEMBERED_PIECES;
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

/// Hands out a block's work. Every thread of the block that lives asks in step with the others.
///
/// Little is kept from piece to piece, and nothing that special registers and parameters tell: registers are scarce while a piece is
/// computed.
pub struct Scheduler<'a> {
    params: &'a HopperParams,
    /// The next of the block's pieces.
    round: u32,
    /// The rounds whose pieces may be done a second time: those of the bits in shared memory.
    first: u32,
    end: u32,
    again: bool,
}

impl<'a> Scheduler<'a> {
    /// The block's scheduler.
    #[inline(always)]
    pub fn new(params: &'a HopperParams) -> Self {
        let mut scheduler = Self {
            params,
            round: 0,
            first: 0,
            end: 0,
            again: false,
        };
        scheduler.end = scheduler.last_round();
        scheduler
    }

    /// Clusters of the grid.
    #[inline(always)]
    fn clusters(&self) -> u32 {
        div_rem(special::grid_size(), self.params.schedule.cluster).0
    }

    /// The piece of work of a round, if there is one.
    #[inline(always)]
    fn piece(&self, round: u32) -> u32 {
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

    /// One past the last of the rounds that are remembered together, which begin with `first`.
    #[inline(always)]
    fn last_round(&self) -> u32 {
        let (whole, rest) = div_rem(self.params.schedule.pieces, self.clusters());
        let rounds = whole + (rest != 0) as u32;
        rounds.min(self.first + REMEMBERED_PIECES)
    }

    /// The number of the next piece of work, for [`work`](Self::work).
    #[inline(always)]
    pub fn next<C: Config>(&mut self) -> Option<u32> {
        loop {
            while self.round < self.end {
                let round = self.round;
                self.round += 1;
                let wanted = !self.again || self.is_spoilt::<C>(round);
                if wanted && self.piece(round) < self.params.schedule.pieces {
                    return Some(round);
                }
            }
            // All that the block has done is known in the whole cluster, and by all its threads.
            cluster::sync();
            if !self.again && self.any_spoilt::<C>() {
                self.again = true;
                self.round = self.first;
                continue;
            }
            let cleared = self.again;
            self.again = false;
            self.first = self.end;
            self.end = self.last_round();
            if self.first == self.end {
                return None;
            }
            if cleared {
                clear_spoilt::<C>();
                cluster::sync();
            }
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
        // Tiles that take the way of those with masks: exponents with care, and scores whose sign is to be flipped.
        if self.again || attention.flags & flags::NEGATE_Q != 0 {
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
        let bit = round - self.first;
        for rank in 0..self.params.schedule.cluster {
            let word = cluster::map(spoilt_words::<C>() + bit / 32 * 4, rank);
            // SAFETY: the word is inside the plan.
            unsafe { copy::red_or_cluster(word, 1 << (bit % 32)) };
        }
    }

    #[inline(always)]
    fn is_spoilt<C: Config>(&self, round: u32) -> bool {
        let bit = round - self.first;
        // SAFETY: as for `spoil`.
        let word = unsafe { copy::ld_shared_u32(spoilt_words::<C>() + bit / 32 * 4) };
        word >> (bit % 32) & 1 != 0
    }

    #[inline(always)]
    fn any_spoilt<C: Config>(&self) -> bool {
        let lane = special::thread_idx() % 32;
        // SAFETY: as for `spoil`: 32 words, one a lane.
        const { assert!(REMEMBERED_PIECES == 32 * 32) };
        let word = unsafe { copy::ld_shared_u32(spoilt_words::<C>() + 4 * lane) };
        sync::warp_any(word != 0)
    }
}

/// Shared address of the bits of spoilt pieces.
#[inline(always)]
fn spoilt_words<C: Config>() -> u32 {
    special::shared_base() + C::PLAN.spoilt
}

/// Clears the bits of spoilt pieces, by the block's first warp.
#[inline(always)]
pub fn clear_spoilt<C: Config>() {
    let thread = special::thread_idx();
    if thread < 32 {
        // SAFETY: inside the plan.
        unsafe { copy::st_shared_u32(spoilt_words::<C>() + 4 * thread, 0) };
    }
}
