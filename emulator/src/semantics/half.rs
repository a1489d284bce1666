//! 16-bit arithmetic rounded to nearest, by way of f64, and the packed (`x2`) forms.
//!
//! The product of two 16-bit floats is exact in f64. The sum with the addend is made "round to odd": whenever f64
//! cannot hold it, the last bit is set, which no later rounding to a much shorter format can mistake for a tie. So each
//! result is rounded once.

use super::{
    Float, Round,
    cvt::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16},
    float::Mods,
};

/// `a * b + c` in f16 or bf16, to nearest; `None` for other formats and directions.
#[inline(always)]
pub(super) fn fma_rn(f: Float, a: u64, b: u64, c: u64, m: Mods) -> Option<u64> {
    if m.round != Round::Rn || !matches!(f, Float::F16 | Float::Bf16) {
        return None;
    }
    let wide = |x: u64| {
        let x = if m.ftz { f.flush(x) } else { x } as u32;
        f64::from(f32::from_bits(if f == Float::F16 {
            f16_to_f32(x)
        } else {
            bf16_to_f32(x)
        }))
    };
    let sum = to_f32_odd(add_odd(wide(a) * wide(b), wide(c)));
    let bits = if f == Float::F16 {
        f32_to_f16(sum)
    } else {
        f32_to_bf16(sum)
    };
    Some(m.finish(f, bits.into()))
}

/// `x + y`; when inexact, the one of the two neighbouring f64s whose last bit is set.
#[inline(always)]
fn add_odd(x: f64, y: f64) -> f64 {
    let sum = x + y;
    // Knuth's exact error of the sum. NaN or infinite operands give a NaN or 0 here and leave the sum alone.
    let back = sum - x;
    let error = (x - (sum - back)) + (y - back);
    let bits = sum.to_bits();
    let inexact = error.abs() > 0.0;
    let outward = (error > 0.0) == (sum > 0.0);
    let odd = if outward {
        bits.wrapping_add(1)
    } else {
        bits.wrapping_sub(1)
    };
    f64::from_bits(if inexact && bits & 1 == 0 { odd } else { bits })
}

/// The bits of `x` as f32, rounded to odd. Overflow may give infinity, where a 16-bit format overflows as well.
#[inline(always)]
fn to_f32_odd(x: f64) -> u32 {
    let near = x as f32;
    let bits = near.to_bits();
    let back = f64::from(near);
    let inexact = back != x && back.is_finite();
    let odd = if x.abs() > back.abs() {
        bits.wrapping_add(1)
    } else {
        bits.wrapping_sub(1)
    };
    if inexact && bits & 1 == 0 { odd } else { bits }
}

/// A packed 16-bit operation of one operand, on both halves.
#[inline(always)]
pub fn x2_unary(a: u32, f: impl Fn(u64) -> u64) -> u32 {
    let half = |shift: u32| (f(u64::from(a >> shift & 0xffff)) as u32) << shift;
    half(0) | half(16)
}

/// A packed 16-bit operation of two operands: `x2(a, b, |a, b| add(Float::F16, a, b, m))`.
#[inline(always)]
pub fn x2(a: u32, b: u32, f: impl Fn(u64, u64) -> u64) -> u32 {
    let half = |shift: u32| {
        (f(
            u64::from(a >> shift & 0xffff),
            u64::from(b >> shift & 0xffff),
        ) as u32)
            << shift
    };
    half(0) | half(16)
}

/// A packed 16-bit operation of three operands.
#[inline(always)]
pub fn x2_ternary(a: u32, b: u32, c: u32, f: impl Fn(u64, u64, u64) -> u64) -> u32 {
    let part = |x: u32, shift: u32| u64::from(x >> shift & 0xffff);
    let half = |shift: u32| (f(part(a, shift), part(b, shift), part(c, shift)) as u32) << shift;
    half(0) | half(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::{
        Num,
        float::{add, fma, mul, sub},
        tests::Rng,
    };

    /// The f64 route against the exact core, over all exponents.
    #[test]
    fn agrees_with_the_core() {
        let mut rng = Rng(29);
        for _ in 0..300_000 {
            let r = rng.next();
            let [a, b, c] = [r & 0xffff, r >> 16 & 0xffff, r >> 32 & 0xffff];
            let m = Mods {
                ftz: r >> 48 & 1 == 1,
                ..Mods::default()
            };
            for f in [Float::F16, Float::Bf16] {
                let exact = m.input(f, a).fma(m.input(f, b), m.input(f, c), Round::Rn);
                let want = m.finish(f, exact.pack(f, Round::Rn));
                assert_eq!(fma(f, a, b, c, m), want, "{f:?} {a:#x} {b:#x} {c:#x}");
                let want = m.finish(
                    f,
                    m.input(f, a)
                        .add(m.input(f, c).neg(), Round::Rn)
                        .pack(f, Round::Rn),
                );
                assert_eq!(sub(f, a, c, m), want, "{f:?} {a:#x} {c:#x}");
                let want = m.finish(f, m.input(f, a).mul(m.input(f, b)).pack(f, Round::Rn));
                assert_eq!(mul(f, a, b, m), want, "{f:?} {a:#x} {b:#x}");
            }
        }
        // -0 * 1 stays -0.
        assert_eq!(mul(Float::F16, 0x8000, 0x3c00, Mods::default()), 0x8000);
        assert_eq!(Num::unpack(Float::F16, 0x8000), Num::Fin(true, 0, -24));
    }

    /// Half arithmetic: the product and sum of two f16 are exact in f64, so the `half` crate's f64 conversion is an
    /// oracle; fma is checked where the plain route through f32 would round twice.
    #[test]
    fn half_precision() {
        let mut rng = Rng(23);
        let m = Mods::default();
        for _ in 0..200_000 {
            let r = rng.next();
            let (a, b) = (r as u16, (r >> 16) as u16);
            let (x, y) = (
                ::half::f16::from_bits(a).to_f64(),
                ::half::f16::from_bits(b).to_f64(),
            );
            let want = |v: f64| {
                if v.is_nan() {
                    0x7fff
                } else {
                    u64::from(::half::f16::from_f64(v).to_bits())
                }
            };
            assert_eq!(add(Float::F16, a.into(), b.into(), m), want(x + y));
            assert_eq!(mul(Float::F16, a.into(), b.into(), m), want(x * y));
        }
        // 1.0009765625^2 + 2^-24: the product 1 + 2^-9 + 2^-20 sits below a tie; a tiny negative addend matters.
        let got = fma(Float::F16, 0x3c01, 0x3c01, 0x8001, m);
        assert_eq!(got, 0x3c02);
        // (1 + 2^-10) * (1 + 2^-1) = 1.5 + 2^-10 + 2^-11, a tie; the smallest subnormal decides it.
        assert_eq!(fma(Float::F16, 0x3c01, 0x3e00, 0, m), 0x3e02);
        assert_eq!(fma(Float::F16, 0x3c01, 0x3e00, 0x8001, m), 0x3e01);
        let relu = Mods { relu: true, ..m };
        assert_eq!(fma(Float::Bf16, 0x3f80, 0xbf80, 0, relu), 0);
        assert_eq!(add(Float::F16, 0x7e00, 0, m), 0x7fff);
        assert_eq!(add(Float::F16, 1, 1, Mods { ftz: true, ..m }), 0);
        assert_eq!(
            x2(0x3c00_4000, 0x3c00_3c00, |a, b| add(Float::F16, a, b, m)),
            0x4000_4200
        );
    }
}
