//! Which token is whose, and which row of the cache it has. What the device's memory says of it may be anything: nothing found here
//! leads outside of tensors and cache.

use crate::ptx::copy;
use flashtile_abi::cache::flags;
use flashtile_abi::{RowsParams, ScaleView};

/// A token of a launch.
#[derive(Clone, Copy)]
pub struct Token {
    /// Its number among all of them.
    pub index: u32,
    /// Where the tensors have it.
    pub batch: u32,
    /// So.
    pub row: u32,
    /// Its sequence, and its number there. Not where there are slots.
    sequence: u32,
    in_sequence: u32,
}

impl Token {
    /// The token of that number, if it belongs to a sequence.
    #[inline(always)]
    pub fn new(params: &RowsParams, index: u32) -> Option<Self> {
        let (batch, row) = params.rows.div_rem(index);
        let mut token = Self {
            index,
            batch,
            row,
            sequence: batch,
            in_sequence: row,
        };
        // With slots there are neither starts nor used.
        let lengths = &params.lengths;
        if lengths.starts != 0 {
            token.sequence = sequence_of(params, index as i32);
            if index as i32 >= start(params, token.sequence + 1) {
                return None;
            }
            // Below 0 only if starts are wrong. Whatever it is then, nothing is done with it that is not checked.
            token.in_sequence = index.wrapping_sub(start(params, token.sequence) as u32);
        }
        if lengths.used != 0 {
            // SAFETY: the sequence is one of the batch.
            let used = unsafe { copy::ld_global_u32(lengths.used + 4 * token.sequence as u64) };
            if token.in_sequence as i32 >= used as i32 {
                return None;
            }
        }
        Some(token)
    }

    /// Row of the sequence's cache that is the token's. Not where there are slots.
    #[inline(always)]
    fn cache_row(&self, params: &RowsParams) -> i64 {
        let first = if params.first == 0 {
            0
        } else {
            // SAFETY: the sequence is one of the batch.
            unsafe { copy::ld_global_u32(params.first + 4 * self.sequence as u64) as i32 }
        };
        first as i64 + self.in_sequence as i64
    }

    /// Where the cache has it, if there.
    #[inline(always)]
    pub fn place(&self, params: &RowsParams) -> Option<Place> {
        let pages = &params.pages;
        if params.slots != 0 {
            // SAFETY: there is a slot for each token.
            let slot = unsafe { copy::ld_global_u64(params.slots + 8 * self.index as u64) };
            // Negative ones are large here.
            if slot >= params.capacity as u64 {
                return None;
            }
            let (block, row) = pages.page.div_rem(slot as u32);
            return Some(Place { block, row });
        }
        let row = self.cache_row(params);
        if row < 0 || row >= params.capacity as i64 {
            return None;
        }
        if pages.table == 0 {
            let block = self.sequence;
            return Some(Place {
                block,
                row: row as u32,
            });
        }
        let (entry, row) = pages.page.div_rem(row as u32);
        let offset =
            self.sequence as i64 * pages.sequence_stride + entry as i64 * pages.entry_stride;
        // SAFETY: the table has this entry, since the row is below the capacity.
        let block = unsafe { copy::ld_global_u32(pages.table.wrapping_add(offset as u64)) };
        (block < pages.blocks).then_some(Place { block, row })
    }

    /// What its elements of some head are multiplied by: 1 without scales.
    #[inline(always)]
    pub fn scale(&self, scales: &ScaleView, head: u32) -> f32 {
        if scales.ptr == 0 {
            return 1.0;
        }
        let offset = self.sequence as i64 * scales.batch_stride + head as i64 * scales.head_stride;
        // SAFETY: there is a scale for each head of each sequence of the batch, unless they share them: strides are 0 then.
        f32::from_bits(unsafe { copy::ld_global_u32(scales.ptr.wrapping_add(offset as u64)) })
    }

    /// Its position, for rotary embedding, if the tables have it.
    #[inline(always)]
    pub fn position(&self, params: &RowsParams) -> Option<u32> {
        let rotary = &params.rotary;
        let position = if rotary.positions == 0 {
            self.cache_row(params)
        } else {
            // SAFETY: there is a position for each token.
            unsafe {
                index(
                    rotary.positions,
                    self.index as u64,
                    params.flags & flags::POSITIONS_I64 != 0,
                )
            }
        };
        (position >= 0 && position < rotary.table_rows as i64).then_some(position as u32)
    }
}

/// A row of the cache.
#[derive(Clone, Copy)]
pub struct Place {
    /// A block that exists.
    pub block: u32,
    /// A row of it.
    pub row: u32,
}

/// Number `at` of an array of i64, or of i32.
///
/// # Safety
/// The array has it.
#[inline(always)]
pub unsafe fn index(array: u64, at: u64, wide: bool) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        if wide {
            copy::ld_global_u64(array + 8 * at) as i64
        } else {
            copy::ld_global_u32(array + 4 * at) as i32 as i64
        }
    }
}

/// Where a sequence of the batch, or the one after the last, says that it starts.
#[inline(always)]
fn start(params: &RowsParams, sequence: u32) -> i32 {
    // SAFETY: there are batch + 1 of them.
    unsafe { copy::ld_global_u32(params.lengths.starts + 4 * sequence as u64) as i32 }
}

/// The last sequence that starts at or before a token, if starts never decrease; else some sequence.
#[inline(always)]
fn sequence_of(params: &RowsParams, token: i32) -> u32 {
    let (mut low, mut high) = (0, params.batch);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if start(params, middle) <= token {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}
