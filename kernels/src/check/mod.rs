//! Checks of the numbers that say where sequences are, by the rules of the host's own checks: [`lengths`] of attention, [`rows`] of caches.
//! [`report`] makes one offence of all that the threads find, the same one on every run, and tells the host. [`instances`] holds the
//! entry point.
//!
//! One thread of a sequence looks at its lengths, all threads of its blocks at its entries of the table. Whatever lengths are, nothing
//! is read but what exists.

#[cfg(all(target_arch = "nvptx64", flashtile_arch = "sm_80"))]
pub mod instances;
pub mod lengths;
pub mod report;
pub mod rows;

use crate::ptx::math::div_rem;
use crate::ptx::{copy, special, sync};
use flashtile_abi::CheckParams;
use flashtile_abi::check::{THREADS, flags};
use report::Worst;

/// CTA barriers in the kernel's code.
pub const BARRIERS: u32 = 1;

/// Where a thread is.
#[derive(Clone, Copy)]
pub struct Place {
    /// Sequence; 0 where there are slots.
    pub sequence: u32,
    /// The first entry, range or slot that the thread looks at.
    pub first: u32,
    /// From each to the next.
    pub step: u32,
}

impl Place {
    /// Whether the thread looks at what a sequence has once.
    #[inline(always)]
    fn leads(&self) -> bool {
        self.first == 0
    }
}

/// Runs the block.
#[inline(always)]
pub fn run(params: &CheckParams) {
    let (sequence, part) = div_rem(special::block_idx(), params.parts);
    let place = Place {
        sequence,
        first: part * THREADS + special::thread_idx(),
        step: params.parts * THREADS,
    };
    let mut worst = Worst::default();
    if params.flags & flags::ROWS != 0 {
        rows::check(params, &place, &mut worst);
    } else {
        lengths::check(params, &place, &mut worst);
    }
    worst.publish(params);
    sync::cta_sync();
    if special::thread_idx() == 0 {
        report::arrive(params);
    }
}

/// Number `at` of an array of i32.
///
/// # Safety
/// The array has it.
#[inline(always)]
unsafe fn number(array: u64, at: u32) -> i64 {
    // SAFETY: the caller's promise.
    unsafe { copy::ld_global_u32(array + 4 * at as u64) as i32 as i64 }
}

/// Entry `at` of a sequence in the table, as i32.
///
/// # Safety
/// The table has it.
#[inline(always)]
unsafe fn entry(params: &CheckParams, sequence: u32, at: u32) -> i64 {
    let pages = &params.pages;
    let offset = sequence as i64 * pages.sequence_stride + at as i64 * pages.entry_stride;
    // SAFETY: the caller's promise.
    unsafe { copy::ld_global_u32(pages.table.wrapping_add(offset as u64)) as i32 as i64 }
}
