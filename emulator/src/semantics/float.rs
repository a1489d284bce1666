//! Floating-point arithmetic, minimum and maximum, sign operations and comparisons for f32, f64, f16 and bf16.
//!
//! NaN results are canonical ([`Float::canonical_nan`]) for f32, f16 and bf16; f64 results give the canonical f64 NaN.
//! `.ftz` flushes subnormal operands and results (the result after rounding) to a zero of the same sign.
//! Round-to-nearest f32 uses the host's IEEE arithmetic; everything else goes through the exact core in the parent
//! module, so that each result is rounded once.

use super::{Float, Lanes, Num, Round, half, int::Cmp};
use std::cmp::Ordering;

/// What an instruction's suffixes say about its operands and result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mods {
    /// Rounding direction.
    pub round: Round,
    /// `.ftz`.
    pub ftz: bool,
    /// `.sat`.
    pub sat: bool,
    /// `.relu` (16-bit formats).
    pub relu: bool,
}

impl Mods {
    #[inline(always)]
    pub(super) fn input(self, f: Float, bits: u64) -> Num {
        Num::unpack(f, if self.ftz { f.flush(bits) } else { bits })
    }

    #[inline(always)]
    fn output(self, f: Float, value: Num) -> u64 {
        self.finish(f, value.pack(f, self.round))
    }

    /// What the suffixes do to a rounded result.
    #[inline(always)]
    pub(super) fn finish(self, f: Float, mut bits: u64) -> u64 {
        if self.ftz {
            bits = f.flush(bits);
        }
        if self.sat {
            bits = f.saturate(bits);
        }
        if self.relu {
            bits = f.relu(bits);
        }
        bits
    }
}

/// `add` in any format.
pub fn add(f: Float, a: u64, b: u64, m: Mods) -> u64 {
    if let Some(bits) = half::fma_rn(f, a, f.one(), b, m) {
        return bits;
    }
    m.output(f, m.input(f, a).add(m.input(f, b), m.round))
}

/// `sub` in any format.
pub fn sub(f: Float, a: u64, b: u64, m: Mods) -> u64 {
    if let Some(bits) = half::fma_rn(f, a, f.one(), b ^ f.sign_bit(), m) {
        return bits;
    }
    m.output(f, m.input(f, a).add(m.input(f, b).neg(), m.round))
}

/// `mul` in any format.
pub fn mul(f: Float, a: u64, b: u64, m: Mods) -> u64 {
    // -0 is the addend that changes nothing.
    if let Some(bits) = half::fma_rn(f, a, b, f.sign_bit(), m) {
        return bits;
    }
    m.output(f, m.input(f, a).mul(m.input(f, b)))
}

/// `fma` in any format, rounded once.
pub fn fma(f: Float, a: u64, b: u64, c: u64, m: Mods) -> u64 {
    if let Some(bits) = half::fma_rn(f, a, b, c, m) {
        return bits;
    }
    m.output(f, m.input(f, a).fma(m.input(f, b), m.input(f, c), m.round))
}

/// `div` in any format, correctly rounded. `.approx` and `.full` forms use this with round-to-nearest.
pub fn div(f: Float, a: u64, b: u64, m: Mods) -> u64 {
    m.output(f, m.input(f, a).div(m.input(f, b)))
}

/// `rcp` in any format, correctly rounded.
pub fn rcp(f: Float, a: u64, m: Mods) -> u64 {
    div(f, f.one(), a, m)
}

/// `sqrt` in any format, correctly rounded.
pub fn sqrt(f: Float, a: u64, m: Mods) -> u64 {
    m.output(f, m.input(f, a).sqrt())
}

/// Flushes a subnormal f32 to a zero of the same sign.
#[inline(always)]
pub fn ftz_f32(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 {
        x & 0x8000_0000
    } else {
        x
    }
}

/// Replaces any f32 NaN by the canonical one.
#[inline(always)]
pub fn canonical_f32(x: u32) -> u32 {
    if x & 0x7fff_ffff > 0x7f80_0000 {
        0x7fff_ffff
    } else {
        x
    }
}

#[inline(always)]
fn input_f32<const FTZ: bool>(x: u32) -> f32 {
    f32::from_bits(if FTZ { ftz_f32(x) } else { x })
}

#[inline(always)]
fn output_f32<const FTZ: bool>(x: f32) -> u32 {
    let bits = if FTZ {
        ftz_f32(x.to_bits())
    } else {
        x.to_bits()
    };
    canonical_f32(bits)
}

/// `add.rn{.ftz}.f32`.
#[inline(always)]
pub fn add_rn_f32<const FTZ: bool>(a: u32, b: u32) -> u32 {
    output_f32::<FTZ>(input_f32::<FTZ>(a) + input_f32::<FTZ>(b))
}

/// `sub.rn{.ftz}.f32`.
#[inline(always)]
pub fn sub_rn_f32<const FTZ: bool>(a: u32, b: u32) -> u32 {
    output_f32::<FTZ>(input_f32::<FTZ>(a) - input_f32::<FTZ>(b))
}

/// `mul.rn{.ftz}.f32`.
#[inline(always)]
pub fn mul_rn_f32<const FTZ: bool>(a: u32, b: u32) -> u32 {
    output_f32::<FTZ>(input_f32::<FTZ>(a) * input_f32::<FTZ>(b))
}

/// `fma.rn{.ftz}.f32`. Without FMA hardware the standard library's software routine rounds once as well.
#[inline(always)]
pub fn fma_rn_f32<const FTZ: bool>(a: u32, b: u32, c: u32) -> u32 {
    output_f32::<FTZ>(input_f32::<FTZ>(a).mul_add(input_f32::<FTZ>(b), input_f32::<FTZ>(c)))
}

/// `max{.ftz}.f32` without `.NaN`: the non-NaN operand, +0 above -0, canonical NaN when both are NaN.
#[inline(always)]
pub fn max_f32<const FTZ: bool>(a: u32, b: u32) -> u32 {
    let (a, b) = if FTZ {
        (ftz_f32(a), ftz_f32(b))
    } else {
        (a, b)
    };
    let larger = if order_f32(a) >= order_f32(b) { a } else { b };
    pick_f32(a, b, larger)
}

/// `min{.ftz}.f32` without `.NaN`.
#[inline(always)]
pub fn min_f32<const FTZ: bool>(a: u32, b: u32) -> u32 {
    let (a, b) = if FTZ {
        (ftz_f32(a), ftz_f32(b))
    } else {
        (a, b)
    };
    let smaller = if order_f32(a) <= order_f32(b) { a } else { b };
    pick_f32(a, b, smaller)
}

/// A signed key that orders non-NaN floats like their values, with -0 below +0.
#[inline(always)]
fn order_f32(x: u32) -> i32 {
    let x = x as i32;
    x ^ ((x >> 31) as u32 >> 1) as i32
}

#[inline(always)]
fn pick_f32(a: u32, b: u32, chosen: u32) -> u32 {
    let nan = |x: u32| x & 0x7fff_ffff > 0x7f80_0000;
    let chosen = if nan(b) { a } else { chosen };
    let chosen = if nan(a) { b } else { chosen };
    canonical_f32(chosen)
}

/// Runs a lane function over the warp, compiled once more for AVX2 and FMA where the processor has them. The bits are
/// the same either way.
macro_rules! lanes {
    ($(#[$doc:meta])* $name:ident, $one:ident, $($arg:ident),+) => {
        $(#[$doc])*
        pub fn $name(ftz: bool, d: &mut Lanes, $($arg: &Lanes),+) {
            #[inline(always)]
            fn body(ftz: bool, d: &mut Lanes, $($arg: &Lanes),+) {
                if ftz {
                    for i in 0..32 {
                        d[i] = $one::<true>($($arg[i]),+);
                    }
                } else {
                    for i in 0..32 {
                        d[i] = $one::<false>($($arg[i]),+);
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide(ftz: bool, d: &mut Lanes, $($arg: &Lanes),+) {
                    body(ftz, d, $($arg),+)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has the features that `wide` is compiled for.
                    return unsafe { wide(ftz, d, $($arg),+) };
                }
            }
            body(ftz, d, $($arg),+)
        }
    };
}

lanes!(
    /// `fma.rn{.ftz}.f32` in every lane.
    fma_rn_f32_lanes, fma_rn_f32, a, b, c
);
lanes!(
    /// `add.rn{.ftz}.f32` in every lane.
    add_rn_f32_lanes, add_rn_f32, a, b
);
lanes!(
    /// `sub.rn{.ftz}.f32` in every lane.
    sub_rn_f32_lanes, sub_rn_f32, a, b
);
lanes!(
    /// `mul.rn{.ftz}.f32` in every lane.
    mul_rn_f32_lanes, mul_rn_f32, a, b
);
lanes!(
    /// `max{.ftz}.f32` in every lane.
    max_f32_lanes, max_f32, a, b
);
lanes!(
    /// `min{.ftz}.f32` in every lane.
    min_f32_lanes, min_f32, a, b
);

/// Suffixes of `min` and `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MinMax {
    /// `.ftz`.
    pub ftz: bool,
    /// `.NaN`: a NaN operand makes the result the canonical NaN.
    pub nan: bool,
    /// `.xorsign.abs`: compare magnitudes, the result's sign is the exclusive or of the operands'.
    pub xorsign_abs: bool,
}

/// `max` (`want_max`) or `min` in any format with every suffix.
pub fn min_max(f: Float, a: u64, b: u64, want_max: bool, m: MinMax) -> u64 {
    let (mut a, mut b) = if m.ftz {
        (f.flush(a), f.flush(b))
    } else {
        (a, b)
    };
    let sign = f.sign_bit();
    let xor = (a ^ b) & sign;
    if m.xorsign_abs {
        (a, b) = (a & !sign, b & !sign);
    }
    let result = match (f.is_nan(a), f.is_nan(b)) {
        (true, true) => return f.canonical_nan(),
        (true, false) | (false, true) if m.nan => return f.canonical_nan(),
        (true, false) => b,
        (false, true) => a,
        (false, false) => {
            // Sign and magnitude to an ordered key; -0 sorts just below +0.
            let key = |x: u64| {
                if x & sign != 0 {
                    -((x & !sign) as i128) - 1
                } else {
                    x as i128
                }
            };
            if (key(a) > key(b)) == want_max { a } else { b }
        }
    };
    if m.xorsign_abs {
        result & !sign | xor
    } else {
        result
    }
}

/// `neg`: flips the sign (a NaN stays a NaN). `.ftz` flushes a subnormal operand.
#[inline(always)]
pub fn neg(f: Float, a: u64, ftz: bool) -> u64 {
    (if ftz { f.flush(a) } else { a }) ^ f.sign_bit()
}

/// `abs`: clears the sign.
#[inline(always)]
pub fn abs(f: Float, a: u64, ftz: bool) -> u64 {
    (if ftz { f.flush(a) } else { a }) & !f.sign_bit()
}

/// `copysign d, a, b`: the sign of `a` on the magnitude of `b`.
#[inline(always)]
pub fn copysign(f: Float, a: u64, b: u64) -> u64 {
    a & f.sign_bit() | b & !f.sign_bit()
}

/// The properties that `testp` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the manual's.
pub enum TestP {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// `testp`. As in the manual, zero is normal, not subnormal.
pub fn testp(f: Float, a: u64, property: TestP) -> bool {
    let magnitude = a & (f.sign_bit() - 1);
    match property {
        TestP::Finite => magnitude < f.infinity(),
        TestP::Infinite => magnitude == f.infinity() && !f.is_nan(a),
        TestP::Number => !f.is_nan(a),
        TestP::NotANumber => f.is_nan(a),
        TestP::Normal => magnitude < f.infinity() && !f.is_subnormal(a),
        TestP::Subnormal => f.is_subnormal(a),
    }
}

/// Order of two values of a format; `None` when one is NaN.
pub fn order(f: Float, a: u64, b: u64, ftz: bool) -> Option<Ordering> {
    let value = |x: u64| -> f64 {
        let x = if ftz { f.flush(x) } else { x };
        match f {
            Float::F64 => f64::from_bits(x),
            Float::F32 | Float::Tf32 => f64::from(f32::from_bits(x as u32)),
            Float::Bf16 => f64::from(f32::from_bits((x as u32) << 16)),
            _ => f64::from_bits(Num::unpack(f, x).pack(Float::F64, Round::Rn)),
        }
    };
    value(a).partial_cmp(&value(b))
}

/// `setp` / `set` in any format.
#[inline]
pub fn compare(f: Float, op: Cmp, a: u64, b: u64, ftz: bool) -> bool {
    op.holds(order(f, a, b, ftz))
}

/// `setp{.ftz}.f32`.
#[inline(always)]
pub fn compare_f32<const FTZ: bool>(op: Cmp, a: u32, b: u32) -> bool {
    op.holds(input_f32::<FTZ>(a).partial_cmp(&input_f32::<FTZ>(b)))
}

/// `add{.sat}{.ftz}{.round}.f32`.
#[inline]
pub fn add_f32(a: u32, b: u32, m: Mods) -> u32 {
    add(Float::F32, a.into(), b.into(), m) as u32
}

/// `mul{.sat}{.ftz}{.round}.f32`.
#[inline]
pub fn mul_f32(a: u32, b: u32, m: Mods) -> u32 {
    mul(Float::F32, a.into(), b.into(), m) as u32
}

/// `fma{.sat}{.ftz}{.round}.f32`.
#[inline]
pub fn fma_f32(a: u32, b: u32, c: u32, m: Mods) -> u32 {
    fma(Float::F32, a.into(), b.into(), c.into(), m) as u32
}

#[cfg(test)]
mod tests;
