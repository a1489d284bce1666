//! Which sequence, rows and keys a block has.

use super::config::ServingConfig;
use super::operands::Cached;
use crate::attention::mask::QueryRows;
use crate::attention::sm80::config::ConfigExt;
use crate::element::{F32, Scalar};
use crate::ptx::math::div_rem;
use crate::ptx::{copy, special, sync};
use crate::tile::gather::Rows;
use crate::tile::smem::{FragmentView, SmemTile};
use flashtile_abi::serving::{Lengths, RangeView, flags};
use flashtile_abi::{Band, BlockRange, KeyInterval, ScaleView, ServingParams};

/// A sequence's tokens in its tensor. Whatever the device's numbers are, inside it.
#[derive(Clone, Copy)]
pub struct Sequence {
    /// First token, where sequences follow each other; else 0.
    pub first: i32,
    /// Tokens.
    pub len: i32,
}

impl Sequence {
    /// Sequence `batch`. `paged`: its tokens are in pages, and `starts` say only how many.
    #[inline(always)]
    pub fn new(lengths: &Lengths, batch: u32, paged: bool) -> Self {
        let number = |address: u64, at: u32| {
            // SAFETY: there are as many numbers as sequences, and one more of starts, 4-byte aligned.
            unsafe { copy::ld_global_u32(address + at as u64 * 4) as i32 }
        };
        // Opaque, or it stays in a register for a place that is computed anew.
        let tokens = special::opaque(lengths.tokens as u32) as i32;
        let mut it = Self {
            first: 0,
            len: tokens,
        };
        if lengths.starts != 0 {
            let (first, end) = (
                number(lengths.starts, batch),
                number(lengths.starts, batch + 1),
            );
            let first = first.max(0).min(if paged { i32::MAX } else { tokens });
            let room = if paged { tokens } else { tokens - first };
            it.len = end.saturating_sub(first).max(0).min(room);
            it.first = if paged { 0 } else { first };
        }
        if lengths.used != 0 {
            it.len = number(lengths.used, batch).max(0).min(it.len);
        }
        it.len = it.len.min(lengths.longest);
        it
    }
}

/// Where a thread is.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The launch's parameters.
    pub params: &'a ServingParams,
    /// Shared address of the block's shared memory.
    pub smem: u32,
    /// Thread of the block.
    pub thread: u32,
    /// Lane of the warp.
    pub lane: u32,
    /// Warp of the block, uniform over the warp.
    pub warp: u32,
    /// Sequence of the block.
    pub batch: u32,
    /// Key/value head of the block.
    pub kv_head: u32,
    /// Part of the keys of the block.
    pub split: u32,
    /// First packed row of the block.
    pub row_begin: i32,
    /// The queries.
    pub queries: Sequence,
    /// The keys.
    pub keys: Rows<'a>,
    /// Which keys a query sees.
    pub band: Band,
    /// Position of query 0 among the keys.
    pub diagonal: i32,
    /// Key tiles the block visits.
    pub range: BlockRange,
    /// What products of operands must be multiplied by to be those of queries and keys.
    pub key_scale: f32,
    /// Rows of a warp; a constant.
    warp_rows: u32,
    /// Warps that share rows and follow each other; a constant.
    key_splits: u32,
    /// Warps between those that share rows, if these don't follow each other; else 0. A constant.
    apart: u32,
}

impl<'a> Place<'a> {
    /// Decodes the block index: splits fastest, then tiles of rows in descending order (under a causal mask the longest start first),
    /// then heads, then sequences.
    #[inline(always)]
    pub fn new<C: ServingConfig>(params: &'a ServingParams) -> Self {
        // Opaque, so that a place that is computed anew is not kept from the first time.
        let block = special::opaque(special::block_idx());
        let (rest, split) = div_rem(block, params.splits);
        let (rest, m_index) = div_rem(rest, params.m_blocks);
        let (batch, kv_head) = div_rem(rest, params.heads_kv);
        let thread = special::thread_idx();
        let paged = params.pages.table != 0;
        let queries = Sequence::new(&params.q_lengths, batch, false);
        let keys = Sequence::new(&params.k_lengths, batch, paged);
        let diagonal = if params.flags & flags::BOTTOM_RIGHT != 0 {
            keys.len - queries.len
        } else {
            0
        };
        // The limits that are none stay none.
        let moved = |bound: i32, unbounded: i32| {
            if bound == unbounded {
                bound
            } else {
                (bound + diagonal)
                    .max(Band::UNBOUNDED_LOWER)
                    .min(Band::UNBOUNDED_UPPER)
            }
        };
        let band = Band {
            lower: moved(params.band.lower, Band::UNBOUNDED_LOWER),
            upper: moved(params.band.upper, Band::UNBOUNDED_UPPER),
            seqlen_k: keys.len,
        };
        let mut it = Self {
            params,
            smem: special::shared_base(),
            thread,
            lane: thread % 32,
            warp: sync::broadcast(thread / 32),
            batch,
            kv_head,
            split,
            row_begin: ((params.m_blocks - 1 - m_index) * C::TILE.block_m) as i32,
            queries,
            keys: Rows::new(&params.pages, batch, keys.first, keys.len),
            band,
            diagonal,
            range: BlockRange {
                begin: 0,
                end: 0,
                full_begin: 0,
                full_end: 0,
            },
            key_scale: 1.0,
            warp_rows: C::WARP_ROWS,
            key_splits: C::TILE.key_splits,
            apart: if C::TILE.v_splits > 1 {
                C::TILE.warps / C::TILE.v_splits
            } else {
                0
            },
        };
        it.key_scale = it.cached_scale::<C>(&params.k_scale);
        if it.has_rows() {
            it.range = it.visited::<C>();
        }
        it
    }

    /// The same place, of a thread whose block counts from another one.
    #[inline(always)]
    pub fn of_thread(self, thread: u32) -> Self {
        Self {
            thread,
            lane: thread % 32,
            warp: sync::broadcast(thread / 32),
            ..self
        }
    }

    /// What operands made of keys or values must be multiplied by to be what is meant.
    #[inline(always)]
    pub fn cached_scale<C: ServingConfig>(&self, scales: &ScaleView) -> f32 {
        if scales.ptr == 0 {
            return C::Cached::FACTOR;
        }
        let offset =
            self.batch as i64 * scales.batch_stride + self.kv_head as i64 * scales.head_stride;
        // SAFETY: there is a scale for the sequence and head, 4-byte aligned.
        C::Cached::FACTOR * unsafe { F32::load(scales.ptr.wrapping_add(offset as u64)) }
    }

    /// Factor from score, as the softmax gets it, to the exponent of two.
    #[inline(always)]
    pub fn exponent_scale(&self) -> f32 {
        let scale = self.params.exponent_scale;
        if self.has(flags::MODIFIED) {
            scale
        } else {
            scale * self.key_scale
        }
    }

    /// Packed rows of the sequence and head.
    #[inline(always)]
    pub fn rows(&self) -> i32 {
        self.queries.len * self.params.q_per_kv.divisor as i32
    }

    /// Whether the block has any of them.
    #[inline(always)]
    pub fn has_rows(&self) -> bool {
        self.row_begin < self.rows()
    }

    /// Query and query head of a packed row.
    #[inline(always)]
    pub fn query_of(&self, row: i32) -> (i32, u32) {
        let (query, head) = self.params.q_per_kv.div_rem(row as u32);
        (
            query as i32,
            self.kv_head * self.params.q_per_kv.divisor + head,
        )
    }

    /// Packed row of accumulator fragment `m`, rows g (`half` 0) or g + 8 (`half` 1).
    #[inline(always)]
    pub fn lane_row(&self, m: usize, half: usize) -> i32 {
        self.warp_row_begin() + (16 * m + 8 * half) as i32 + (self.lane / 4) as i32
    }

    /// First packed row of the warp.
    #[inline(always)]
    pub fn warp_row_begin(&self) -> i32 {
        self.row_begin + (self.row_group() * self.warp_rows) as i32
    }

    /// Which of the block's groups of rows the warp has: warps that share rows follow each other, or are those of different warpgroups.
    #[inline(always)]
    pub fn row_group(&self) -> u32 {
        match self.apart {
            0 => self.warp / self.key_splits,
            warps => self.warp % warps,
        }
    }

    /// Which of the warps that share its rows the warp is.
    #[inline(always)]
    pub fn part(&self) -> u32 {
        match self.apart {
            0 => self.warp % self.key_splits,
            warps => self.warp / warps,
        }
    }

    /// The keys that a packed row sees; none if there is no such row.
    #[inline(always)]
    fn sight(&self, row: i32) -> KeyInterval {
        if row >= self.rows() {
            return KeyInterval { begin: 0, end: 0 };
        }
        let (query, _) = self.query_of(row);
        let mut sight = self.band.row(query);
        self.each_range(|range| {
            let position = query + self.diagonal;
            if range.begin <= position && position < range.end {
                // The position itself is in sight already, if there is such a key: what is seen stays an interval.
                sight.begin = sight.begin.min(range.begin);
                sight.end = sight.end.max(range.end);
            }
        });
        sight
    }

    /// Calls `f` with the sequence's ranges, inside the keys.
    #[inline(always)]
    fn each_range(&self, mut f: impl FnMut(KeyInterval)) {
        let RangeView {
            ptr,
            batch_stride,
            count,
            ..
        } = self.params.ranges;
        if ptr == 0 {
            return;
        }
        let ranges = ptr.wrapping_add((self.batch as i64 * batch_stride) as u64);
        for at in 0..special::opaque(count) {
            // SAFETY: there are `count` pairs for each sequence, 4-byte aligned.
            let number =
                |i: u64| unsafe { copy::ld_global_u32(ranges + at as u64 * 8 + i * 4) as i32 };
            let (first, last) = (number(0), number(1));
            if first < last {
                f(KeyInterval {
                    begin: first.max(0),
                    end: last.min(self.band.seqlen_k - 1) + 1,
                });
            }
        }
    }

    /// The tiles of the block: of all that its rows see, its split's.
    #[inline(always)]
    fn visited<C: ServingConfig>(&self) -> BlockRange {
        let block_n = C::TILE.block_n as i32;
        let last_row = (self.row_begin + C::TILE.block_m as i32).min(self.rows()) - 1;
        let (first, _) = self.query_of(self.row_begin);
        let (last, _) = self.query_of(last_row);
        let mut range = self.band.block_range(first, last - first + 1, block_n);
        self.each_range(|keys| {
            let meets = keys.begin <= last + self.diagonal && first + self.diagonal < keys.end;
            if meets {
                let (begin, end) = (keys.begin / block_n, (keys.end + block_n - 1) / block_n);
                if range.begin < range.end {
                    range.begin = range.begin.min(begin);
                    range.end = range.end.max(end);
                } else {
                    (range.begin, range.end) = (begin, end);
                    (range.full_begin, range.full_end) = (end, end);
                }
            }
        });
        if self.params.splits > 1 && range.begin < range.end {
            let tiles = self.params.split_keys / block_n;
            let begin = (range.begin + self.split as i32 * tiles).min(range.end);
            // The last takes what is left.
            let end = if self.split + 1 == self.params.splits {
                range.end
            } else {
                (begin + tiles).min(range.end)
            };
            range.begin = begin;
            range.end = end;
            range.full_begin = range.full_begin.max(begin).min(end);
            range.full_end = range.full_end.max(range.full_begin).min(end);
        }
        range
    }

    /// Whether exponents are computed with care: in every tile or in none, and not where some tiles take the fast way.
    #[inline(always)]
    pub fn is_careful(&self) -> bool {
        self.range.full_begin >= self.range.full_end
    }

    /// The tiles of the block; with care all go through the loop body with masks.
    #[inline(always)]
    pub fn range_of(&self, careful: bool) -> BlockRange {
        let mut range = self.range;
        if careful {
            range.full_end = range.full_begin;
        }
        range
    }

    /// Sends every tile through the loop body with masks.
    #[inline(always)]
    pub fn take_care(&mut self) {
        // Opaque, or the compiler makes a copy of the loop for the second attempt.
        self.range.full_end = special::opaque(self.range.full_begin as u32) as i32;
    }

    /// Whether the parameters have a flag.
    #[inline(always)]
    pub fn has(&self, flag: u32) -> bool {
        self.params.flags & flag != 0
    }

    /// The lane's view of its warp's rows of the Q tile.
    #[inline(always)]
    pub fn query_view<C: ServingConfig>(&self) -> FragmentView {
        let skipped = self.row_group() * C::WARP_ROWS * C::QK_ROW_BYTES;
        let tile = SmemTile {
            base: self.smem + C::TILE.shared().q + skipped,
            row_bytes: C::QK_ROW_BYTES,
        };
        C::Cached::query_view(tile, self.lane)
    }

    /// The same place, from which the compiler can't derive addresses ahead of the loop over tiles: they are cheaper to compute anew than
    /// to keep in registers from tile to tile.
    #[inline(always)]
    pub fn in_tile(&self) -> Self {
        let thread = special::opaque(self.thread);
        Self {
            thread,
            lane: thread % 32,
            warp: thread / 32,
            ..*self
        }
    }
}

impl QueryRows for Place<'_> {
    const MASK_BITS: bool = false;

    #[inline(always)]
    fn lane(&self) -> u32 {
        self.lane
    }

    #[inline(always)]
    fn keys(&self, _: usize, m: usize, half: usize) -> KeyInterval {
        self.sight(self.lane_row(m, half))
    }
}
