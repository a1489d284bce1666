//! `cvt`: conversions between integers and floating-point formats.

use super::{Float, Lanes, Num, Round, float::canonical_f32};

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Int {
    /// Width in bits: 8, 16, 32 or 64.
    pub bits: u32,
    /// Two's complement.
    pub signed: bool,
}

impl Int {
    /// An unsigned type.
    pub const fn unsigned(bits: u32) -> Int {
        Int {
            bits,
            signed: false,
        }
    }

    /// A signed type.
    pub const fn signed(bits: u32) -> Int {
        Int { bits, signed: true }
    }

    /// The smallest and largest values.
    const fn range(self) -> (i128, i128) {
        if self.signed {
            (-(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1)
        } else {
            (0, (1 << self.bits) - 1)
        }
    }

    /// The value of the low bits of `x`.
    #[inline(always)]
    const fn value(self, x: u64) -> i128 {
        let shift = 64 - self.bits;
        if self.signed {
            ((x << shift) as i64 >> shift) as i128
        } else {
            (x << shift >> shift) as i128
        }
    }
}

/// Integer to integer. The result is sign- or zero-extended to 64 bits by the destination's signedness, as `cvt`
/// extends into a wider register. `.sat` clamps to the destination's range; without it the value is truncated.
#[inline]
pub fn int_to_int(dst: Int, src: Int, sat: bool, x: u64) -> u64 {
    let value = src.value(x);
    let (lo, hi) = dst.range();
    let value = if sat { value.clamp(lo, hi) } else { value };
    dst.value(value as u64) as u64
}

/// Integer to float. `.sat` clamps to [0, 1].
#[inline]
pub fn int_to_float(dst: Float, src: Int, round: Round, sat: bool, x: u64) -> u64 {
    let value = src.value(x);
    if dst == Float::F32 && round == Round::Rn && !sat {
        // The host's conversion rounds to nearest even as well; a value of 64 bits fits one of these.
        let y = if src.signed {
            value as i64 as f32
        } else {
            value as u64 as f32
        };
        return y.to_bits().into();
    }
    let bits = Num::Fin(value < 0, value.unsigned_abs(), 0).pack(dst, round);
    if sat { dst.saturate(bits) } else { bits }
}

/// Float to integer with `.rni`, `.rzi`, `.rmi` or `.rpi`. Values out of range clamp (with or without `.sat`). NaN
/// gives 0, except from f64 or to a 64-bit type, where the manual says that only the top bit is set. The result is
/// extended to 64 bits by the destination's signedness.
#[inline]
pub fn float_to_int(dst: Int, src: Float, round: Round, ftz: bool, x: u64) -> u64 {
    let x = if ftz { src.flush(x) } else { x };
    if src == Float::F32 && dst.bits == 32 {
        return f32_to_int32(dst.signed, round, x as u32);
    }
    let (lo, hi) = dst.range();
    let value = match Num::unpack(src, x).round_integral(round) {
        Num::Nan if matches!(src, Float::F64) || dst.bits == 64 => {
            return dst.value(1 << (dst.bits - 1)) as u64;
        }
        Num::Nan => 0,
        Num::Inf(negative) => [hi, lo][negative as usize],
        Num::Fin(_, 0, _) => 0,
        Num::Fin(negative, magnitude, exponent) => {
            let top = 127 - magnitude.leading_zeros() as i32 + exponent;
            let magnitude = if top > 64 {
                1 << 100
            } else {
                (magnitude << exponent.max(0)) as i128
            };
            if negative { -magnitude } else { magnitude }
        }
    };
    value.clamp(lo, hi) as u64
}

/// The same for f32 to a 32-bit integer, with the host's arithmetic: Rust's `as` truncates, clamps and takes NaN to 0.
#[inline(always)]
fn f32_to_int32(signed: bool, round: Round, x: u32) -> u64 {
    let x = f32::from_bits(x);
    let x = match round {
        Round::Rz => x,
        Round::Rn => x.round_ties_even(),
        Round::Rm => x.floor(),
        Round::Rp => x.ceil(),
        Round::Rna => x.round(),
    };
    if signed {
        x as i32 as u64
    } else {
        u64::from(x as u32)
    }
}

/// Suffixes of a float-to-float `cvt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mods {
    /// Rounding direction.
    pub round: Round,
    /// The rounding was an integer one (`.rni` ...): round to an integral value.
    pub integral: bool,
    /// `.ftz`: flush an f32 operand and an f32 result.
    pub ftz: bool,
    /// `.sat`: clamp to [0, 1], NaN to +0.
    pub sat: bool,
    /// `.relu`: negative to +0.
    pub relu: bool,
    /// `.satfinite`: overflow and infinity give the largest finite value; NaN stays NaN.
    pub satfinite: bool,
}

/// Float to float.
#[inline]
pub fn float_to_float(dst: Float, src: Float, m: Mods, x: u64) -> u64 {
    let flush = |f: Float, x: u64| {
        if m.ftz && f == Float::F32 {
            f.flush(x)
        } else {
            x
        }
    };
    let mut value = Num::unpack(src, flush(src, x));
    if m.integral {
        value = value.round_integral(m.round);
    }
    let mut bits = flush(dst, value.pack(dst, m.round));
    let magnitude = bits & (dst.sign_bit() - 1);
    if m.satfinite && value != Num::Nan && magnitude >= dst.infinity() {
        bits = bits & dst.sign_bit() | dst.max_finite();
    }
    if m.sat {
        bits = dst.saturate(bits);
    }
    if m.relu {
        bits = dst.relu(bits);
    }
    bits
}

/// A packed conversion of two f32: `a` gives the upper part of the result, `b` the lower: `cvt.*.f16x2.f32`,
/// `bf16x2`, `e4m3x2`, `e5m2x2`.
#[inline]
pub fn pack2(dst: Float, m: Mods, a: u32, b: u32) -> u32 {
    let part = |x: u32| float_to_float(dst, Float::F32, m, x.into()) as u32;
    let width = dst.man_bits() + dst.exp_bits() + 1;
    part(a) << width | part(b)
}

/// `cvt.rn{.relu}.f16x2.{e4m3x2,e5m2x2}`: exact.
#[inline]
pub fn fp8x2_to_f16x2(src: Float, relu: bool, x: u16) -> u32 {
    let part = |x: u16| {
        let half = float_to_float(
            Float::F16,
            src,
            Mods {
                relu,
                ..Mods::default()
            },
            u64::from(x & 0xff),
        );
        half as u32
    };
    part(x >> 8) << 16 | part(x)
}

/// `cvt.rn.satfinite{.relu}.{e4m3x2,e5m2x2}.f16x2`.
#[inline]
pub fn f16x2_to_fp8x2(dst: Float, relu: bool, x: u32) -> u16 {
    let m = Mods {
        relu,
        satfinite: true,
        ..Mods::default()
    };
    let part = |x: u32| float_to_float(dst, Float::F16, m, u64::from(x & 0xffff)) as u16;
    part(x >> 16) << 8 | part(x)
}

/// `cvt.pack.sat.{u16,s16}.s32.b32` and, with `c`, the 8-bit forms: `a` and `b` saturated to `dst`, `b` lowest; for
/// types of 8 bits and fewer the old `c` shifts up above them.
pub fn pack_sat(dst: Int, a: u32, b: u32, c: u32) -> u32 {
    let mask = (1u32 << dst.bits.min(16)) - 1;
    let part = |x: u32| int_to_int(dst, Int::signed(32), true, x.into()) as u32 & mask;
    let both = part(a) << dst.bits.min(16) | part(b);
    if dst.bits >= 16 {
        both
    } else {
        c << (2 * dst.bits) | both
    }
}

/// `cvt.rn.bf16.f32`.
#[inline(always)]
pub fn f32_to_bf16(x: u32) -> u32 {
    // NaN first, so that the addition below cannot carry it into the sign.
    let rounded = x.wrapping_add(0x7fff + (x >> 16 & 1)) >> 16;
    if x & 0x7fff_ffff > 0x7f80_0000 {
        0x7fff
    } else {
        rounded
    }
}

/// `cvt.rn.f16.f32`.
#[inline(always)]
pub fn f32_to_f16(x: u32) -> u32 {
    let sign = x >> 16 & 0x8000;
    let magnitude = x & 0x7fff_ffff;
    // Below 2^-14 the result is subnormal: adding 0.5, whose ulp is 2^-24, rounds at the right bit.
    let subnormal = (f32::from_bits(magnitude) + 0.5)
        .to_bits()
        .wrapping_sub(0x3f00_0000);
    // Rebias by 112 exponents, round to nearest even 13 bits up.
    let normal = magnitude
        .wrapping_sub(112 << 23)
        .wrapping_add(0xfff + (magnitude >> 13 & 1))
        >> 13;
    let finite = if magnitude < 0x3880_0000 {
        subnormal
    } else {
        normal
    };
    let bounded = if magnitude >= 0x4780_0000 {
        0x7c00
    } else {
        finite
    };
    if magnitude > 0x7f80_0000 {
        0x7fff
    } else {
        sign | bounded
    }
}

/// `cvt.f32.f16` of the low half of `x`: exact; NaN becomes canonical.
#[inline(always)]
pub fn f16_to_f32(x: u32) -> u32 {
    let sign = (x & 0x8000) << 16;
    let shifted = (x & 0x7fff) << 13;
    let normal = shifted + (112 << 23);
    // A subnormal's bits under the exponent of 2^-14, minus 2^-14, leave its value.
    let subnormal = (f32::from_bits(shifted + (113 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let finite = if shifted < 1 << 23 { subnormal } else { normal };
    let value = if shifted >= 0x0f80_0000 {
        shifted + (224 << 23)
    } else {
        finite
    };
    canonical_f32_signed(sign, value)
}

#[inline(always)]
fn canonical_f32_signed(sign: u32, magnitude: u32) -> u32 {
    if magnitude > 0x7f80_0000 {
        0x7fff_ffff
    } else {
        sign | magnitude
    }
}

/// `cvt.f32.bf16` of the low half of `x`: exact; NaN becomes canonical.
#[inline(always)]
pub fn bf16_to_f32(x: u32) -> u32 {
    canonical_f32(x << 16)
}

/// `cvt.rn.bf16x2.f32 d, a, b`.
#[inline(always)]
pub fn f32_to_bf16x2(a: u32, b: u32) -> u32 {
    f32_to_bf16(a) << 16 | f32_to_bf16(b)
}

/// `cvt.rn.f16x2.f32 d, a, b`.
#[inline(always)]
pub fn f32_to_f16x2(a: u32, b: u32) -> u32 {
    f32_to_f16(a) << 16 | f32_to_f16(b)
}

/// `cvt.rna.tf32.f32`: ties away from zero; NaN becomes canonical.
#[inline(always)]
pub fn f32_to_tf32_rna(x: u32) -> u32 {
    let rounded = x.wrapping_add(0x1000) & !0x1fff;
    if x & 0x7f80_0000 == 0x7f80_0000 {
        canonical_f32(x)
    } else {
        rounded
    }
}

/// Runs a lane function over the warp, also compiled for AVX2.
macro_rules! lanes {
    ($(#[$doc:meta])* $name:ident, $one:ident, $($arg:ident),+) => {
        $(#[$doc])*
        pub fn $name(d: &mut Lanes, $($arg: &Lanes),+) {
            #[inline(always)]
            fn body(d: &mut Lanes, $($arg: &Lanes),+) {
                for i in 0..32 {
                    d[i] = $one($($arg[i]),+);
                }
            }
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide(d: &mut Lanes, $($arg: &Lanes),+) {
                    body(d, $($arg),+)
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has the feature that `wide` is compiled for.
                    return unsafe { wide(d, $($arg),+) };
                }
            }
            body(d, $($arg),+)
        }
    };
}

lanes!(
    /// `cvt.rn.bf16x2.f32` in every lane.
    f32_to_bf16x2_lanes, f32_to_bf16x2, a, b
);
lanes!(
    /// `cvt.rn.f16x2.f32` in every lane.
    f32_to_f16x2_lanes, f32_to_f16x2, a, b
);
lanes!(
    /// `cvt.f32.f16` in every lane.
    f16_to_f32_lanes, f16_to_f32, a
);
lanes!(
    /// `cvt.f32.bf16` in every lane.
    bf16_to_f32_lanes, bf16_to_f32, a
);
lanes!(
    /// `cvt.rna.tf32.f32` in every lane.
    f32_to_tf32_rna_lanes, f32_to_tf32_rna, a
);

#[cfg(test)]
mod tests;
