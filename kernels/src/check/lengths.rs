//! Lengths, pages and ranges of attention.

use super::report::Worst;
use super::{Place, entry, number};
use flashtile_abi::CheckParams;
use flashtile_abi::check::{What, flags, length};
use flashtile_abi::serving::Lengths;

/// Looks at the thread's part of a sequence.
#[inline(always)]
pub fn check(params: &CheckParams, place: &Place, worst: &mut Worst) {
    let b = place.sequence;
    let paged = params.flags & flags::PAGED != 0;
    if place.leads() {
        of_side(params, b, false, worst);
        of_side(params, b, true, worst);
        if params.sequences != 0 {
            // SAFETY: there is one.
            let sequences = unsafe { number(params.sequences, 0) };
            if sequences < 0 || sequences > params.batch as i64 {
                worst.note(What::Sequences, 0, 0);
            }
            if b as i64 >= sequences && len(&params.q, b) != 0 {
                worst.note(What::Past, b, 0);
            }
        }
    }
    if paged {
        let keys = len(&params.k, b);
        if keys > params.capacity as i64 {
            worst.note(What::Page, b, 0);
        }
        let keys = keys.max(0).min(params.capacity as i64) as u32;
        // Of keys that are none, no entry.
        let (full, rest) = params.pages.page.div_rem(keys);
        let entries = full + (rest != 0) as u32;
        let mut at = place.first;
        while at < entries {
            // SAFETY: the table has entries for as many rows as the capacity.
            let block = unsafe { entry(params, b, at) };
            if block < 0 || block >= params.pages.blocks as i64 {
                worst.note(What::Page, b, at + 1);
            }
            at += place.step;
        }
    }
    let mut at = place.first;
    while at < params.ranges.count {
        let [first, last] = range(params, b, at);
        if first < 0 && first <= last {
            worst.note(What::Range, b, at);
        }
        at += place.step;
    }
}

/// Starts and lengths of queries or keys.
#[inline(always)]
fn of_side(params: &CheckParams, b: u32, keys: bool, worst: &mut Worst) {
    let lengths = if keys { &params.k } else { &params.q };
    let what = |queries: What, of_keys: What| if keys { of_keys } else { queries };
    // Starts of what is in pages only say how long sequences are.
    let paged = keys && params.flags & flags::PAGED != 0;
    if lengths.starts != 0 {
        let [first, end] = starts(lengths, b);
        if b == 0 && first != 0 {
            worst.note(what(What::QStart, What::KStart), 0, 0);
        }
        if end < first {
            worst.note(what(What::QOrder, What::KOrder), b, 0);
        }
        if b + 1 == params.batch && !paged && end > lengths.tokens as i64 {
            worst.note(what(What::QEnd, What::KEnd), 0, 0);
        }
    }
    let room = room(lengths, b, paged);
    let longest = lengths.longest as i64;
    let position = if lengths.used != 0 {
        let used = len(lengths, b);
        if used < 0 || used > room {
            length::USED
        } else if used > longest {
            length::LONGEST_USED
        } else {
            return;
        }
    } else if lengths.starts != 0 && room > longest {
        length::LONGEST
    } else {
        return;
    };
    worst.note(what(What::QLength, What::KLength), b, position);
}

/// Where a sequence starts, and the next one.
#[inline(always)]
pub fn starts(lengths: &Lengths, b: u32) -> [i64; 2] {
    // SAFETY: there is one more start than sequences.
    unsafe { [number(lengths.starts, b), number(lengths.starts, b + 1)] }
}

/// The most tokens that a sequence can use.
#[inline(always)]
pub fn room(lengths: &Lengths, b: u32, paged: bool) -> i64 {
    if lengths.starts != 0 {
        let [first, end] = starts(lengths, b);
        end - first
    } else if paged {
        i64::MAX
    } else {
        lengths.tokens as i64
    }
}

/// Tokens of a sequence that count, as the numbers have it.
#[inline(always)]
pub fn len(lengths: &Lengths, b: u32) -> i64 {
    if lengths.used != 0 {
        // SAFETY: there is one for each sequence.
        unsafe { number(lengths.used, b) }
    } else {
        room(lengths, b, false)
    }
}

/// First and last position of a range.
#[inline(always)]
pub fn range(params: &CheckParams, b: u32, at: u32) -> [i64; 2] {
    let offset = b as i64 * params.ranges.batch_stride + at as i64 * 8;
    let address = params.ranges.ptr.wrapping_add(offset as u64);
    // SAFETY: there are `count` pairs for each sequence.
    unsafe { [number(address, 0), number(address, 1)] }
}
