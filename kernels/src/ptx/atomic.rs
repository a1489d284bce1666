//! Atomics on global memory, and accesses that order others.

use core::arch::asm;

/// `red.relaxed.gpu.global.max.u64`
///
/// # Safety
/// `dst` is a writable, 8-byte aligned global address.
#[inline(always)]
pub unsafe fn red_max_u64(dst: u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("red.relaxed.gpu.global.max.u64 [{}], {};", in(reg64) dst, in(reg64) value, options(nostack))
    }
}

/// `atom.acq_rel.gpu.global.inc.u32`: adds 1, or goes back to 0 from `limit`; what it was before.
///
/// # Safety
/// `dst` is a writable, 4-byte aligned global address.
#[inline(always)]
pub unsafe fn inc_acq_rel_u32(dst: u64, limit: u32) -> u32 {
    let out: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("atom.acq_rel.gpu.global.inc.u32 {}, [{}], {};", out(reg32) out, in(reg64) dst, in(reg32) limit, options(nostack));
    }
    out
}

/// `atom.relaxed.gpu.global.exch.b64`
///
/// # Safety
/// `dst` is a writable, 8-byte aligned global address.
#[inline(always)]
pub unsafe fn exchange_u64(dst: u64, value: u64) -> u64 {
    let out: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("atom.relaxed.gpu.global.exch.b64 {}, [{}], {};", out(reg64) out, in(reg64) dst, in(reg64) value, options(nostack));
    }
    out
}

/// `ld.acquire.sys.global.u64`: also of memory that the host writes.
///
/// # Safety
/// `src` is a readable, 8-byte aligned global address.
#[inline(always)]
pub unsafe fn ld_acquire_sys_u64(src: u64) -> u64 {
    let out: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.acquire.sys.global.u64 {}, [{}];", out(reg64) out, in(reg64) src, options(nostack))
    }
    out
}

/// `st.release.sys.global.u64`: who sees it, be it the host, sees what this thread wrote before.
///
/// # Safety
/// `dst` is a writable, 8-byte aligned global address.
#[inline(always)]
pub unsafe fn st_release_sys_u64(dst: u64, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.release.sys.global.u64 [{}], {};", in(reg64) dst, in(reg64) value, options(nostack))
    }
}
