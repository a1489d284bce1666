//! Copies of boxes of tensors by the copy engine (TMA). Tensor maps say what a tensor and a box are; coordinates are in
//! elements, the contiguous dimension first. What lies outside a tensor arrives as zeros, and is not written. Manual:
//! section 9.7.9.25.5.

use core::arch::asm;

/// Place in a tensor of five dimensions.
pub type Coordinates = [i32; 5];

/// What the L2 cache should do with what is read (CUTLASS's `TMA::CacheHintSm90`).
#[derive(Clone, Copy)]
pub enum CachePolicy {
    /// It is read once.
    EvictFirst,
    /// It is read again soon, by other blocks.
    EvictLast,
}

impl CachePolicy {
    const fn bits(self) -> u64 {
        match self {
            Self::EvictFirst => 0x12f0_0000_0000_0000,
            Self::EvictLast => 0x14f0_0000_0000_0000,
        }
    }
}

/// `prefetch.tensormap`
///
/// # Safety
/// `map` is the generic address of a tensor map in parameter memory. So for the functions below.
#[inline(always)]
pub unsafe fn prefetch_map(map: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("prefetch.tensormap [{}];", in(reg64) map, options(nostack)) }
}

/// `cp.async.bulk.tensor.5d` from global to the block's shared memory: `barrier` counts the box's bytes.
///
/// # Safety
/// `dst` is a 128-byte aligned address of a whole box inside the block's shared memory, `barrier` an mbarrier of it, and
/// nobody touches the box until the barrier's phase has ended.
#[inline(always)]
pub unsafe fn load(dst: u32, map: u64, at: Coordinates, barrier: u32, policy: CachePolicy) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint \
             [{}], [{}, {{{}, {}, {}, {}, {}}}], [{}], {};",
            in(reg32) dst, in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3],
            in(reg32) at[4], in(reg32) barrier, in(reg64) policy.bits(),
            options(nostack)
        );
    }
}

/// [`load`] to the same place in every block of the cluster that `blocks` has a bit of, where the barrier at the same place
/// counts.
///
/// # Safety
/// As for [`load`], in each of the blocks.
#[inline(always)]
pub unsafe fn load_multicast(
    dst: u32,
    map: u64,
    at: Coordinates,
    barrier: u32,
    blocks: u16,
    policy: CachePolicy,
) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint \
             [{}], [{}, {{{}, {}, {}, {}, {}}}], [{}], {}, {};",
            in(reg32) dst, in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3],
            in(reg32) at[4], in(reg32) barrier, in(reg16) blocks, in(reg64) policy.bits(),
            options(nostack)
        );
    }
}

/// `cp.async.bulk.tensor.5d` from shared to global memory, as part of this thread's next group.
///
/// # Safety
/// `src` is a 128-byte aligned address of a whole box in the block's shared memory, which stays unchanged until
/// [`wait_group_read`]; what was written there is fenced ([`fence_shared`]) by those who wrote it.
#[inline(always)]
pub unsafe fn store(map: u64, at: Coordinates, src: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group [{}, {{{}, {}, {}, {}, {}}}], [{}];",
            in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3], in(reg32) at[4],
            in(reg32) src,
            options(nostack)
        );
    }
}

/// `cp.async.bulk.commit_group`
#[inline(always)]
pub fn commit_group() {
    // SAFETY: closes the group of copies issued so far.
    unsafe { asm!("cp.async.bulk.commit_group;", options(nostack)) }
}

/// `cp.async.bulk.wait_group.read 0`: the sources of all groups of this thread have been read.
#[inline(always)]
pub fn wait_group_read() {
    // SAFETY: waits; the memory clobber orders later writes after it.
    unsafe { asm!("cp.async.bulk.wait_group.read 0;", options(nostack)) }
}

/// `cp.async.bulk.wait_group 0`: all groups of this thread are done.
#[inline(always)]
pub fn wait_group() {
    // SAFETY: as for `wait_group_read`.
    unsafe { asm!("cp.async.bulk.wait_group 0;", options(nostack)) }
}

/// `fence.proxy.async.shared::cta`: between this thread's ordinary accesses to shared memory and those of the copy engine
/// and the tensor cores.
#[inline(always)]
pub fn fence_shared() {
    // SAFETY: a fence.
    unsafe { asm!("fence.proxy.async.shared::cta;", options(nostack)) }
}
