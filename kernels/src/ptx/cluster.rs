//! Blocks of a cluster. A launch without clusters is one of clusters of a single block.

use core::arch::asm;

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cluster.arrive.aligned"]
    fn nvvm_arrive();
    #[link_name = "llvm.nvvm.barrier.cluster.wait.aligned"]
    fn nvvm_wait();
}

/// `%cluster_nctarank`: blocks of a cluster.
#[inline(always)]
pub fn size() -> u32 {
    let out: u32;
    // SAFETY: reads a special register. So below.
    unsafe {
        asm!("mov.u32 {}, %cluster_nctarank;", out(reg32) out, options(pure, nomem, nostack));
    }
    out
}

/// `%cluster_ctarank`: this block's number in its cluster.
#[inline(always)]
pub fn rank() -> u32 {
    let out: u32;
    // SAFETY: as for `size`.
    unsafe {
        asm!("mov.u32 {}, %cluster_ctarank;", out(reg32) out, options(pure, nomem, nostack));
    }
    out
}

/// `mapa`: the cluster address of a shared address in the block of that number.
#[inline(always)]
pub fn map(address: u32, rank: u32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic on addresses.
    unsafe {
        asm!("mapa.shared::cluster.u32 {}, {}, {};", out(reg32) out, in(reg32) address, in(reg32) rank, options(pure, nomem, nostack));
    }
    out
}

/// `barrier.cluster.arrive` and `wait`: every thread of the cluster that has not exited.
#[inline(always)]
pub fn sync() {
    // SAFETY: the callers are on control flow that is uniform over the warp.
    unsafe {
        nvvm_arrive();
        nvvm_wait();
    }
}
