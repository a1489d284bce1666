//! One offence of all that threads find, for the host to read.

use super::{entry, lengths, number, rows};
use crate::ptx::{atomic, copy, special};
use core::mem::offset_of;
use flashtile_abi::check::{CheckReport, CheckState, NUMBERS, Offence, What, flags, length, row};
use flashtile_abi::{CheckParams, serving::Lengths};

/// The first offence that a thread has found, as the complement of its packed form; 0: none.
#[derive(Default)]
pub struct Worst(u64);

impl Worst {
    /// Notes an offence.
    #[inline(always)]
    pub fn note(&mut self, what: What, sequence: u32, position: u32) {
        let offence = Offence {
            what,
            sequence,
            position,
        };
        self.0 = self.0.max(!offence.pack());
    }

    /// Tells the other threads.
    #[inline(always)]
    pub fn publish(&self, params: &CheckParams) {
        if self.0 != 0 {
            let worst = params.state + offset_of!(CheckState, worst) as u64;
            // SAFETY: the state is aligned to 8 bytes.
            unsafe { atomic::red_max_u64(worst, self.0) }
        }
    }
}

/// Counts the block, all of whose threads have published. The last block tells the host of the launch's offence, and leaves the state
/// as it was before.
#[inline(always)]
pub fn arrive(params: &CheckParams) {
    let last = special::grid_size() - 1;
    let arrived = params.state + offset_of!(CheckState, arrived) as u64;
    // SAFETY: the state is aligned to 8 bytes. The order that this makes reaches from what blocks published to the last one.
    if unsafe { atomic::inc_acq_rel_u32(arrived, last) } != last {
        return;
    }
    let worst = params.state + offset_of!(CheckState, worst) as u64;
    // SAFETY: as above.
    let packed = !unsafe { atomic::exchange_u64(worst, 0) };
    // None, without a single one.
    if packed != u64::MAX {
        tell(params, packed);
    }
}

/// Writes the report, unless the host has not read the one before.
#[inline(always)]
fn tell(params: &CheckParams, packed: u64) {
    let field = |offset: usize| params.report + offset as u64;
    // SAFETY: the report is aligned to 8 bytes.
    let [delivered, taken] = unsafe {
        [
            atomic::ld_acquire_sys_u64(field(offset_of!(CheckReport, delivered))),
            atomic::ld_acquire_sys_u64(field(offset_of!(CheckReport, taken))),
        ]
    };
    if delivered != taken {
        return;
    }
    let put = |address: u64, value: u64| {
        let words = [value as u32, (value >> 32) as u32];
        // SAFETY: as above.
        unsafe { copy::st_global_v2(address, words) }
    };
    put(field(offset_of!(CheckReport, offence)), packed);
    let numbers = numbers(params, packed);
    for i in 0..NUMBERS {
        put(
            field(offset_of!(CheckReport, numbers) + 8 * i),
            numbers[i] as u64,
        );
    }
    // SAFETY: as above.
    unsafe {
        atomic::st_release_sys_u64(field(offset_of!(CheckReport, delivered)), delivered + 1);
    }
}

/// The numbers that come with a packed offence.
#[inline(always)]
fn numbers(params: &CheckParams, packed: u64) -> [i64; NUMBERS] {
    let (what, b, position) = Offence::fields(packed);
    const fn is(what: u8, rule: What) -> bool {
        what == rule as u8
    }
    let either = |queries: What, keys: What| is(what, queries) || is(what, keys);
    let keys = what >= What::KStart as u8;
    let side: &Lengths = if keys { &params.k } else { &params.q };
    let paged = params.flags & flags::PAGED != 0;
    let blocks = params.pages.blocks as i64;
    if either(What::QStart, What::KStart) {
        [lengths::starts(side, 0)[0], 0, 0, 0]
    } else if either(What::QOrder, What::KOrder) {
        let [first, end] = lengths::starts(side, b);
        [first, end, 0, 0]
    } else if either(What::QEnd, What::KEnd) {
        [
            lengths::starts(side, params.batch - 1)[1],
            side.tokens as i64,
            0,
            0,
        ]
    } else if either(What::QLength, What::KLength) {
        let most = if position == length::USED {
            lengths::room(side, b, keys && paged)
        } else {
            side.longest as i64
        };
        [lengths::len(side, b), most, 0, 0]
    } else if is(what, What::Page) {
        let keys = lengths::len(&params.k, b);
        if position == 0 {
            let capacity = params.capacity;
            let (entries, _) = params.pages.page.div_rem(capacity);
            [
                keys,
                capacity as i64,
                entries as i64,
                (params.k.used != 0) as i64,
            ]
        } else {
            // SAFETY: the offence was found there.
            [unsafe { entry(params, b, position - 1) }, blocks, keys, 0]
        }
    } else if is(what, What::Range) {
        let [first, last] = lengths::range(params, b, position);
        [first, last, 0, 0]
    } else if is(what, What::Slot) {
        [rows::slot(params, position), params.capacity as i64, 0, 0]
    } else if is(what, What::Row) {
        let it = rows::Sequence::new(params, b);
        match position {
            row::START => [it.begin, 0, 0, 0],
            row::NEXT => [it.end, it.begin, params.k.tokens as i64, 0],
            row::USED => [it.used, it.end - it.begin, 0, 0],
            row::FIRST => [it.first, it.used, params.capacity as i64, 0],
            _ => {
                let (begin, _) = params.pages.page.div_rem(it.first as u32);
                let at = begin + position - row::ENTRY;
                // SAFETY: the offence was found there.
                [unsafe { entry(params, b, at) }, blocks, at as i64, 0]
            }
        }
    } else {
        // SAFETY: both rules that are left are about this number.
        let sequences = unsafe { number(params.sequences, 0) };
        if is(what, What::Past) {
            [lengths::len(&params.q, b), sequences, 0, 0]
        } else {
            [sequences, params.batch as i64, 0, 0]
        }
    }
}
