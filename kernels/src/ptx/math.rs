//! Arithmetic and conversions that Rust would not express exactly.

use core::arch::asm;

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.ex2.approx.ftz.f"]
    fn nvvm_ex2(x: f32) -> f32;
    #[link_name = "llvm.nvvm.lg2.approx.ftz.f"]
    fn nvvm_lg2(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rcp.rn.f"]
    fn nvvm_rcp(x: f32) -> f32;
    #[link_name = "llvm.nvvm.rcp.approx.ftz.f"]
    fn nvvm_rcp_approx(x: f32) -> f32;
    #[link_name = "llvm.nvvm.fma.rn.f"]
    fn nvvm_fma(a: f32, b: f32, c: f32) -> f32;
    #[link_name = "llvm.nvvm.fmax.f"]
    fn nvvm_max(a: f32, b: f32) -> f32;
    #[link_name = "llvm.nvvm.fmin.f"]
    fn nvvm_min(a: f32, b: f32) -> f32;
}

/// `ex2.approx.ftz.f32`: 2^x, at most 2 ulp; 2^-inf = 0.
#[inline(always)]
pub fn ex2(x: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { nvvm_ex2(x) }
}

/// `lg2.approx.ftz.f32`
#[inline(always)]
pub fn lg2(x: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { nvvm_lg2(x) }
}

/// `rcp.rn.f32`: 1/x, correctly rounded.
#[inline(always)]
pub fn rcp(x: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { nvvm_rcp(x) }
}

/// `rcp.approx.ftz.f32`: 1/x within 1 ulp.
#[inline(always)]
pub fn rcp_approx(x: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { nvvm_rcp_approx(x) }
}

/// `fma.rn.f32`: a * b + c, rounded once.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { nvvm_fma(a, b, c) }
}

/// `max.f32`: the operand that is not NaN, if only one is.
#[inline(always)]
pub fn max(a: f32, b: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { nvvm_max(a, b) }
}

/// `min.f32`: the operand that is not NaN, if only one is.
#[inline(always)]
pub fn min(a: f32, b: f32) -> f32 {
    // SAFETY: arithmetic.
    unsafe { nvvm_min(a, b) }
}

/// `cvt.f32.f16`
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let out: f32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.f32.f16 {}, {};", out(reg32) out, in(reg16) bits, options(pure, nomem, nostack));
    }
    out
}

/// `cvt.rn.f16x2.f32`: `lo` in the low half.
#[inline(always)]
pub fn pack_f16x2(lo: f32, hi: f32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rn.f16x2.f32 {}, {}, {};", out(reg32) out, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack));
    }
    out
}

/// `cvt.rn.bf16x2.f32`: `lo` in the low half.
#[inline(always)]
pub fn pack_bf16x2(lo: f32, hi: f32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rn.bf16x2.f32 {}, {}, {};", out(reg32) out, in(reg32) hi, in(reg32) lo, options(pure, nomem, nostack));
    }
    out
}

/// `cvt.f32.f16`, twice: the low half first.
#[inline(always)]
pub fn unpack_f16x2(x: u32) -> [f32; 2] {
    let (lo, hi): (f32, f32);
    // SAFETY: arithmetic.
    unsafe {
        asm!(
            "{{ .reg .b16 lo, hi; mov.b32 {{lo, hi}}, {}; cvt.f32.f16 {}, lo; cvt.f32.f16 {}, hi; }}",
            in(reg32) x, out(reg32) lo, out(reg32) hi,
            options(pure, nomem, nostack)
        );
    }
    [lo, hi]
}

/// `cvt.rn.satfinite.e4m3x2.f32`, twice: four numbers in the order of bytes, rounded to nearest even, at most 448 in magnitude.
#[inline(always)]
pub fn pack_e4m3x4(x: [f32; 4]) -> u32 {
    let out: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!(
            "{{ .reg .b16 lo, hi; cvt.rn.satfinite.e4m3x2.f32 lo, {}, {}; cvt.rn.satfinite.e4m3x2.f32 hi, {}, {}; mov.b32 {}, {{lo, hi}}; }}",
            in(reg32) x[1], in(reg32) x[0], in(reg32) x[3], in(reg32) x[2], out(reg32) out,
            options(pure, nomem, nostack)
        );
    }
    out
}

/// `fma.rn.bf16x2`: a * b + c, each half rounded once.
#[inline(always)]
pub fn fma_bf16x2(a: u32, b: u32, c: u32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("fma.rn.bf16x2 {}, {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, in(reg32) c, options(pure, nomem, nostack));
    }
    out
}

/// `prmt.b32`: the bytes of `a` (0 to 3) and `b` (4 to 7) that the digits of `selector` name, lowest first.
#[inline(always)]
pub fn permute_bytes<const SELECTOR: u32>(a: u32, b: u32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("prmt.b32 {}, {}, {}, {};", out(reg32) out, in(reg32) a, in(reg32) b, const SELECTOR, options(pure, nomem, nostack));
    }
    out
}

/// `cvt.rna.tf32.f32`: the nearest tf32 (8 exponent, 10 fraction bits), ties away from zero.
#[inline(always)]
pub fn round_tf32(x: f32) -> f32 {
    let out: f32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("cvt.rna.tf32.f32 {}, {};", out(reg32) out, in(reg32) x, options(pure, nomem, nostack));
    }
    out
}

/// `shl.b32`: 0 where `count` is 32 or more (unsigned), unlike Rust's.
#[inline(always)]
pub fn shl(value: u32, count: i32) -> u32 {
    let out: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("shl.b32 {}, {}, {};", out(reg32) out, in(reg32) value, in(reg32) count, options(pure, nomem, nostack));
    }
    out
}

/// `div.u32` and the remainder. A divisor of 0 gives an unspecified result, as the instruction does; no
/// parameter block that the host makes has one.
#[inline(always)]
pub fn div_rem(dividend: u32, divisor: u32) -> (u32, u32) {
    let quotient: u32;
    // SAFETY: arithmetic.
    unsafe {
        asm!("div.u32 {}, {}, {};", out(reg32) quotient, in(reg32) dividend, in(reg32) divisor, options(pure, nomem, nostack));
    }
    (quotient, dividend - quotient * divisor)
}
