//! Rows of caches: slots, and what [`crate::cache::place`] finds them by.

use super::report::Worst;
use super::{Place, entry, lengths, number};
use crate::ptx::copy;
use flashtile_abi::CheckParams;
use flashtile_abi::check::{What, row};

/// Looks at the thread's part of a sequence, or of the slots.
#[inline(always)]
pub fn check(params: &CheckParams, place: &Place, worst: &mut Worst) {
    if params.slots != 0 {
        let mut at = place.first;
        while at < params.k.tokens as u32 {
            let found = slot(params, at);
            // Negative ones are large here.
            if found != -1 && found as u64 >= params.capacity as u64 {
                worst.note(What::Slot, 0, at);
            }
            at += place.step;
        }
        return;
    }
    let b = place.sequence;
    let Sequence {
        begin,
        end,
        used,
        first,
    } = Sequence::new(params, b);
    let length = end - begin;
    let capacity = params.capacity as i64;
    let has_rows = first >= 0 && (used <= 0 || first + used <= capacity);
    if place.leads() {
        let wrong = if b == 0 && begin != 0 {
            row::START
        } else if params.k.starts != 0 && (length < 0 || end > params.k.tokens as i64) {
            row::NEXT
        } else if used < 0 || used > length {
            row::USED
        } else if !has_rows {
            row::FIRST
        } else {
            row::ENTRY
        };
        if wrong != row::ENTRY {
            worst.note(What::Row, b, wrong);
        }
    }
    if params.pages.table == 0 || !has_rows || used <= 0 {
        return;
    }
    // Both below the capacity.
    let (begin, _) = params.pages.page.div_rem(first as u32);
    let (last, _) = params.pages.page.div_rem((first + used - 1) as u32);
    let mut at = place.first;
    while at <= last - begin {
        // SAFETY: the table has entries for as many rows as the capacity.
        let block = unsafe { entry(params, b, begin + at) };
        if block < 0 || block >= params.pages.blocks as i64 {
            worst.note(What::Row, b, row::ENTRY + at);
        }
        at += place.step;
    }
}

/// The slot of a token.
#[inline(always)]
pub fn slot(params: &CheckParams, at: u32) -> i64 {
    // SAFETY: there is one for each token.
    unsafe { copy::ld_global_u64(params.slots + 8 * at as u64) as i64 }
}

/// What the numbers say of a sequence.
pub struct Sequence {
    /// Its first token; without starts 0.
    pub begin: i64,
    /// Past its last.
    pub end: i64,
    /// Its tokens that count.
    pub used: i64,
    /// Row of the first of them.
    pub first: i64,
}

impl Sequence {
    /// Sequence `b`.
    #[inline(always)]
    pub fn new(params: &CheckParams, b: u32) -> Self {
        let [begin, end] = if params.k.starts != 0 {
            lengths::starts(&params.k, b)
        } else {
            [0, params.k.longest as i64]
        };
        Self {
            begin,
            end,
            used: if params.k.used != 0 {
                // SAFETY: there is one for each sequence.
                unsafe { number(params.k.used, b) }
            } else {
                end - begin
            },
            first: if params.first != 0 {
                // SAFETY: there is one for each sequence.
                unsafe { number(params.first, b) }
            } else {
                0
            },
        }
    }
}
