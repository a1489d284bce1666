//! Barriers, shuffles, votes and asynchronous-copy groups.

use core::arch::asm;

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    fn barrier_cta_sync_aligned_all(id: u32);
    #[link_name = "llvm.nvvm.barrier.cta.red.or.aligned.all"]
    fn barrier_cta_red_or_aligned_all(id: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.bar.warp.sync"]
    fn bar_warp_sync(mask: u32);
    #[link_name = "llvm.nvvm.vote.any.sync"]
    fn vote_any_sync(mask: u32, predicate: bool) -> bool;
    #[link_name = "llvm.nvvm.shfl.sync.bfly.f32"]
    fn shfl_sync_bfly_f32(mask: u32, value: f32, lane_mask: u32, clamp: u32) -> f32;
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shfl_sync_idx_i32(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    fn barrier_cta_sync_aligned_count(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    fn barrier_cta_arrive_aligned_count(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.inc.sync.aligned.u32"]
    fn setmaxnreg_inc(registers: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.dec.sync.aligned.u32"]
    fn setmaxnreg_dec(registers: u32);
    #[link_name = "llvm.nvvm.elect.sync"]
    fn elect_sync(mask: u32) -> Elected;
}

#[repr(C)]
struct Elected {
    lane: u32,
    elected: bool,
}

const FULL_WARP: u32 = 0xffff_ffff;

/// `barrier.cta.sync.aligned.all 0`: every thread of the block.
#[inline(always)]
pub fn cta_sync() {
    // SAFETY: the callers are on control flow that is uniform over the block.
    unsafe { barrier_cta_sync_aligned_all(0) }
}

/// `barrier.cta.red.or.pred.aligned.all 0`: [`cta_sync`], and whether any thread brought `true`.
#[inline(always)]
pub fn cta_any(predicate: bool) -> bool {
    // SAFETY: as for `cta_sync`.
    unsafe { barrier_cta_red_or_aligned_all(0, predicate) }
}

/// `bar.warp.sync`: every lane, and their memory accesses.
#[inline(always)]
pub fn warp_sync() {
    // SAFETY: the callers are on control flow that is uniform over the warp.
    unsafe { bar_warp_sync(FULL_WARP) }
}

/// `vote.sync.any.pred`: whether any lane brought `true`.
#[inline(always)]
pub fn warp_any(predicate: bool) -> bool {
    // SAFETY: as for `warp_sync`.
    unsafe { vote_any_sync(FULL_WARP, predicate) }
}

/// `shfl.sync.bfly.b32`: the value of lane `lane ^ LANE_MASK`.
#[inline(always)]
pub fn shuffle_xor<const LANE_MASK: u32>(value: f32) -> f32 {
    // SAFETY: as for `warp_sync`; 0x1f is the clamp of a full warp.
    unsafe { shfl_sync_bfly_f32(FULL_WARP, value, LANE_MASK, 0x1f) }
}

/// `shfl.sync.idx.b32` from lane 0: tells ptxas that the value is uniform over the warp.
#[inline(always)]
pub fn broadcast(value: u32) -> u32 {
    // SAFETY: as for `warp_sync`.
    unsafe { shfl_sync_idx_i32(FULL_WARP, value, 0, 0x1f) }
}

/// `shfl.sync.idx.b32`: the value of lane `from`.
#[inline(always)]
pub fn shuffle(value: u32, from: u32) -> u32 {
    // SAFETY: as for `shuffle_xor`.
    unsafe { shfl_sync_idx_i32(FULL_WARP, value, from, 0x1f) }
}

/// `cp.async.commit_group`
#[inline(always)]
pub fn cp_async_commit() {
    // SAFETY: closes the group of copies issued so far.
    unsafe { asm!("cp.async.commit_group;", options(nostack)) }
}

/// `cp.async.wait_group PENDING`: all but the newest PENDING groups of this thread have landed.
#[inline(always)]
pub fn cp_async_wait<const PENDING: usize>() {
    // SAFETY: waits; the memory clobber orders later reads after it.
    unsafe { asm!("cp.async.wait_group {};", const PENDING, options(nostack)) }
}

/// `barrier.cta.sync.aligned ID, THREADS`: waits until so many threads have come to the barrier.
#[inline(always)]
pub fn named_sync(id: u32, threads: u32) {
    // SAFETY: the callers are on control flow that is uniform over the warp, and agree on the number of threads.
    unsafe { barrier_cta_sync_aligned_count(id, threads) }
}

/// `barrier.cta.arrive.aligned ID, THREADS`: comes to the barrier and goes on.
#[inline(always)]
pub fn named_arrive(id: u32, threads: u32) {
    // SAFETY: as for `named_sync`.
    unsafe { barrier_cta_arrive_aligned_count(id, threads) }
}

/// `setmaxnreg.inc`: the warpgroup's threads have so many registers from now on (24 to 256, a multiple of 8), once there are as many.
#[inline(always)]
pub fn registers_inc<const REGISTERS: u32>() {
    // SAFETY: the callers are on control flow that is uniform over the warpgroup.
    unsafe { setmaxnreg_inc(REGISTERS) }
}

/// `setmaxnreg.dec`: gives registers back.
#[inline(always)]
pub fn registers_dec<const REGISTERS: u32>() {
    // SAFETY: as for `registers_inc`.
    unsafe { setmaxnreg_dec(REGISTERS) }
}

/// `elect.sync`: true in one lane of the warp, the same every time.
#[inline(always)]
pub fn elect() -> bool {
    // SAFETY: as for `warp_sync`.
    unsafe { elect_sync(FULL_WARP) }.elected
}
