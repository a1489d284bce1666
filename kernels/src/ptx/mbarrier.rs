//! mbarrier objects in shared memory: 8 bytes that count arrivals and bytes, phase after phase. Manual: section 9.7.13.15.

use core::arch::asm;

/// `mbarrier.init`: phases of `count` arrivals.
///
/// # Safety
/// `barrier` is an 8-byte aligned address inside the block's shared memory that no other thread uses yet.
#[inline(always)]
pub unsafe fn init(barrier: u32, count: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) barrier, in(reg32) count, options(nostack))
    }
}

/// `fence.mbarrier_init.release.cluster`: what was initialised is there for other blocks and for the copy engine.
#[inline(always)]
pub fn fence_init() {
    // SAFETY: a fence.
    unsafe { asm!("fence.mbarrier_init.release.cluster;", options(nostack)) }
}

/// `mbarrier.arrive.expect_tx`: one arrival, and the phase waits for so many bytes too.
///
/// # Safety
/// `barrier` is an mbarrier of this block. So for the functions below.
#[inline(always)]
pub unsafe fn arrive_expect_tx(barrier: u32, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [{}], {};", in(reg32) barrier, in(reg32) bytes, options(nostack));
    }
}

/// `mbarrier.arrive`
///
/// # Safety
/// As for [`arrive_expect_tx`].
#[inline(always)]
pub unsafe fn arrive(barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.arrive.shared::cta.b64 _, [{}];", in(reg32) barrier, options(nostack));
    }
}

/// `mbarrier.arrive` at a barrier of any block of the cluster.
///
/// # Safety
/// `barrier` is the cluster address ([`super::cluster::map`]) of an mbarrier of a block that has not ended.
#[inline(always)]
pub unsafe fn arrive_cluster(barrier: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("mbarrier.arrive.shared::cluster.b64 _, [{}];", in(reg32) barrier, options(nostack));
    }
}

/// `mbarrier.try_wait.parity` until the phase of this parity has ended. A fresh barrier counts as having ended one of
/// parity 1.
///
/// # Safety
/// As for [`arrive_expect_tx`].
#[inline(always)]
pub unsafe fn wait(barrier: u32, parity: u32) {
    // SAFETY: the caller's promise.
    while !unsafe { has_ended(barrier, parity) } {}
}

/// `mbarrier.try_wait.parity`: whether the phase of this parity has ended, perhaps after a while.
///
/// # Safety
/// As for [`arrive_expect_tx`].
#[inline(always)]
pub unsafe fn has_ended(barrier: u32, parity: u32) -> bool {
    let done: u32;
    // SAFETY: the caller's promise. The memory clobber keeps later reads after it.
    unsafe {
        asm!(
            "{{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [{}], {}; selp.u32 {}, 1, 0, p; }}",
            in(reg32) barrier, in(reg32) parity, out(reg32) done,
            options(nostack)
        );
    }
    done != 0
}
