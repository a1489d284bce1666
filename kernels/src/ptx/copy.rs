//! Loads, stores and asynchronous copies.

use core::arch::asm;

/// `cp.async.cg.shared.global` of 16 bytes, of which `bytes` (0 to 16) are read and the rest are zero.
///
/// # Safety
/// `dst` is a 16-byte aligned shared address inside the block's shared memory; `src` is 16-byte
/// aligned and has `bytes` readable bytes.
#[inline(always)]
pub unsafe fn cp_async_16(dst: u32, src: u64, bytes: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("cp.async.cg.shared.global [{}], [{}], 16, {};", in(reg32) dst, in(reg64) src, in(reg32) bytes, options(nostack));
    }
}

/// `cp.async.cg.shared.global` of 16 bytes, or of zeros if not `exists`: fewer instructions than a number of bytes takes.
///
/// # Safety
/// `dst` is a 16-byte aligned shared address inside the block's shared memory; `src` is 16-byte
/// aligned and has 16 readable bytes if `exists`.
#[inline(always)]
pub unsafe fn cp_async_16_if(dst: u32, src: u64, exists: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{{ .reg .pred p; setp.eq.u32 p, {}, 0; cp.async.cg.shared.global [{}], [{}], 16, p; }}",
            in(reg32) exists as u32, in(reg32) dst, in(reg64) src, options(nostack)
        );
    }
}

/// `ld.global.nc.u16`
///
/// # Safety
/// `src` is a readable, 2-byte aligned global address.
#[inline(always)]
pub unsafe fn ld_global_u16(src: u64) -> u16 {
    let out: u16;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.nc.u16 {}, [{}];", out(reg16) out, in(reg64) src, options(readonly, nostack))
    }
    out
}

/// `ld.global.nc.u32`
///
/// # Safety
/// `src` is a readable, 4-byte aligned global address.
#[inline(always)]
pub unsafe fn ld_global_u32(src: u64) -> u32 {
    let out: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.nc.u32 {}, [{}];", out(reg32) out, in(reg64) src, options(readonly, nostack))
    }
    out
}

/// `ld.global.nc.b64`
///
/// # Safety
/// `src` is a readable, 8-byte aligned global address.
#[inline(always)]
pub unsafe fn ld_global_u64(src: u64) -> u64 {
    let out: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.nc.b64 {}, [{}];", out(reg64) out, in(reg64) src, options(readonly, nostack))
    }
    out
}

/// `ld.global.u8`, of memory that the kernel may write.
///
/// # Safety
/// `src` is a readable global address.
#[inline(always)]
pub unsafe fn ld_global_written_u8(src: u64) -> u16 {
    let out: u16;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.u8 {}, [{}];", out(reg16) out, in(reg64) src, options(readonly, nostack))
    }
    out
}

/// `ld.global.u16`, of memory that the kernel may write.
///
/// # Safety
/// `src` is a readable, 2-byte aligned global address.
#[inline(always)]
pub unsafe fn ld_global_written_u16(src: u64) -> u16 {
    let out: u16;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.u16 {}, [{}];", out(reg16) out, in(reg64) src, options(readonly, nostack))
    }
    out
}

/// `ld.global.v2.u32`, of memory that the kernel may write.
///
/// # Safety
/// `src` is a readable, 8-byte aligned global address.
#[inline(always)]
pub unsafe fn ld_global_written_v2(src: u64) -> [u32; 2] {
    let (a, b): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "ld.global.v2.u32 {{{}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, in(reg64) src, options(readonly, nostack)
        );
    }
    [a, b]
}

/// `ld.global.v4.u32`, of memory that the kernel may write.
///
/// # Safety
/// `src` is a readable, 16-byte aligned global address.
#[inline(always)]
pub unsafe fn ld_global_written_v4(src: u64) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "ld.global.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) src,
            options(readonly, nostack)
        );
    }
    [a, b, c, d]
}

/// `ld.param.b64`
///
/// # Safety
/// `src` is an 8-byte aligned address inside a kernel's parameters, in the space of parameters.
#[inline(always)]
pub unsafe fn ld_param_u64(src: u64) -> u64 {
    let out: u64;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.param.b64 {}, [{}];", out(reg64) out, in(reg64) src, options(pure, readonly, nostack))
    }
    out
}

/// `st.global.u8`: the low byte.
///
/// # Safety
/// `dst` is a writable global address.
#[inline(always)]
pub unsafe fn st_global_u8(dst: u64, value: u16) {
    // SAFETY: the caller's promise.
    unsafe { asm!("st.global.u8 [{}], {};", in(reg64) dst, in(reg16) value, options(nostack)) }
}

/// `st.global.u16`
///
/// # Safety
/// `dst` is a writable, 2-byte aligned global address.
#[inline(always)]
pub unsafe fn st_global_u16(dst: u64, value: u16) {
    // SAFETY: the caller's promise.
    unsafe { asm!("st.global.u16 [{}], {};", in(reg64) dst, in(reg16) value, options(nostack)) }
}

/// `st.global.u32`
///
/// # Safety
/// `dst` is a writable, 4-byte aligned global address.
#[inline(always)]
pub unsafe fn st_global_u32(dst: u64, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("st.global.u32 [{}], {};", in(reg64) dst, in(reg32) value, options(nostack)) }
}

/// `st.global.v2.u32`
///
/// # Safety
/// `dst` is a writable, 8-byte aligned global address.
#[inline(always)]
pub unsafe fn st_global_v2(dst: u64, value: [u32; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.global.v2.u32 [{}], {{{}, {}}};", in(reg64) dst, in(reg32) value[0], in(reg32) value[1], options(nostack));
    }
}

/// `ld.global.nc.u8`
///
/// # Safety
/// `src` is a readable global address.
#[inline(always)]
pub unsafe fn ld_global_u8(src: u64) -> u16 {
    let out: u16;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.global.nc.u8 {}, [{}];", out(reg16) out, in(reg64) src, options(readonly, nostack))
    }
    out
}

/// `st.global.v4.u32`
///
/// # Safety
/// `dst` is a writable, 16-byte aligned global address.
#[inline(always)]
pub unsafe fn st_global_v4(dst: u64, value: [u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "st.global.v4.u32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) dst, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3],
            options(nostack)
        );
    }
}

/// `ld.shared.u16`
///
/// # Safety
/// `src` is a 2-byte aligned address inside the block's shared memory. So for the functions below,
/// with their sizes.
#[inline(always)]
pub unsafe fn ld_shared_u16(src: u32) -> u16 {
    let out: u16;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.shared.u16 {}, [{}];", out(reg16) out, in(reg32) src, options(readonly, nostack))
    }
    out
}

/// `ld.shared.u32`
///
/// # Safety
/// As [`ld_shared_u16`].
#[inline(always)]
pub unsafe fn ld_shared_u32(src: u32) -> u32 {
    let out: u32;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.shared.u32 {}, [{}];", out(reg32) out, in(reg32) src, options(readonly, nostack))
    }
    out
}

/// `ld.shared.v2.u32`
///
/// # Safety
/// As [`ld_shared_u16`].
#[inline(always)]
pub unsafe fn ld_shared_v2(src: u32) -> [u32; 2] {
    let (a, b): (u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ld.shared.v2.u32 {{{}, {}}}, [{}];", out(reg32) a, out(reg32) b, in(reg32) src, options(readonly, nostack));
    }
    [a, b]
}

/// `ld.shared.v4.u32`
///
/// # Safety
/// As [`ld_shared_u16`].
#[inline(always)]
pub unsafe fn ld_shared_v4(src: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "ld.shared.v4.u32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) src,
            options(readonly, nostack)
        );
    }
    [a, b, c, d]
}

/// `st.shared.u32`
///
/// # Safety
/// As [`ld_shared_u16`].
#[inline(always)]
pub unsafe fn st_shared_u32(dst: u32, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("st.shared.u32 [{}], {};", in(reg32) dst, in(reg32) value, options(nostack)) }
}

/// `st.shared.v2.u32`
///
/// # Safety
/// As [`ld_shared_u16`].
#[inline(always)]
pub unsafe fn st_shared_v2(dst: u32, value: [u32; 2]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("st.shared.v2.u32 [{}], {{{}, {}}};", in(reg32) dst, in(reg32) value[0], in(reg32) value[1], options(nostack));
    }
}

/// `st.shared.v4.u32`
///
/// # Safety
/// As [`ld_shared_u16`].
#[inline(always)]
pub unsafe fn st_shared_v4(dst: u32, value: [u32; 4]) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "st.shared.v4.u32 [{}], {{{}, {}, {}, {}}};",
            in(reg32) dst, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3],
            options(nostack)
        );
    }
}

/// `red.relaxed.cluster.shared::cluster.or.b32`
///
/// # Safety
/// `dst` is the 4-byte aligned cluster address of shared memory of a block that has not ended.
#[inline(always)]
pub unsafe fn red_or_cluster(dst: u32, bits: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("red.relaxed.cluster.shared::cluster.or.b32 [{}], {};", in(reg32) dst, in(reg32) bits, options(nostack));
    }
}
