//! Transcendental and approximate instructions.
//!
//! A GPU's `.approx` results differ from the correctly rounded ones by up to 2 ulp and between generations; here each
//! function is computed in f64 and rounded once, so the error is at most 0.5 ulp of the result format plus about
//! 2^-28 ulp (from the f64 rounding). `rcp` and `sqrt` are exactly the correctly rounded results.
//! `ex2` is self-contained and gives the same bits on every machine; `lg2`, `sin`, `cos` and `tanh` take the standard
//! library's f64 routine, whose last f64 bit may depend on the platform. [`perturb`] makes four of them as wrong as the
//! manual allows.

pub mod perturb;

use super::{
    Float, Lanes, Num, Round,
    cvt::{bf16_to_f32, f16_to_f32},
    float::{canonical_f32, ftz_f32},
};

/// An approximate single-operand instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Special {
    /// `ex2.approx`: 2^x.
    Ex2,
    /// `lg2.approx`: log2 x.
    Lg2,
    /// `rcp.approx`: 1 / x.
    Rcp,
    /// `sqrt.approx`.
    Sqrt,
    /// `rsqrt.approx`.
    Rsqrt,
    /// `sin.approx`.
    Sin,
    /// `cos.approx`.
    Cos,
    /// `tanh.approx`.
    Tanh,
}

/// Adding and subtracting this rounds an f64 below 2^51 to an integer, left in its low bits.
const ROUNDER: f64 = 6_755_399_441_055_744.0;

/// ln(2)^k / k!, the Taylor coefficients of 2^r. On [-0.5, 0.5] the first term left out is below 2^-52.
const EX2: [f64; 13] = {
    let mut c = [1.0; 13];
    let mut k = 1;
    while k < 13 {
        c[k] = c[k - 1] * std::f64::consts::LN_2 / k as f64;
        k += 1;
    }
    c
};

/// 2^x for an x in f32 range, in f64 with a relative error near 2^-52: x = n + r with n an integer, |r| <= 0.5.
/// Multiplications and additions are not fused, so that the bits do not depend on the processor.
#[inline(always)]
fn ex2_f64(x: f64) -> f64 {
    let x = if x > 200.0 { 200.0 } else { x };
    let x = if x < -200.0 { -200.0 } else { x };
    let shifted = x + ROUNDER;
    let r = x - (shifted - ROUNDER);
    let r2 = r * r;
    let r4 = r2 * r2;
    // Estrin's scheme: four independent cubics, joined by powers of r^4.
    let cubic = |k: usize| (EX2[k] + EX2[k + 1] * r) + (EX2[k + 2] + EX2[k + 3] * r) * r2;
    let power = cubic(0) + r4 * (cubic(4) + r4 * (cubic(8) + r4 * EX2[12]));
    let scale = f64::from_bits((shifted.to_bits() << 52).wrapping_add(1023 << 52));
    power * scale
}

/// `ex2.approx{.ftz}.f32`: ex2(-inf) = +0, ex2(+-0) = 1; with `FTZ` subnormal results become +0.
#[inline(always)]
pub fn ex2_f32<const FTZ: bool>(x: u32) -> u32 {
    let y = (ex2_f64(f64::from(f32::from_bits(x))) as f32).to_bits();
    canonical_f32(if FTZ { ftz_f32(y) } else { y })
}

/// `ex2.approx{.ftz}.f32` in every lane.
pub fn ex2_f32_lanes(ftz: bool, d: &mut Lanes, a: &Lanes) {
    #[inline(always)]
    fn body(ftz: bool, d: &mut Lanes, a: &Lanes) {
        if ftz {
            for i in 0..32 {
                d[i] = ex2_f32::<true>(a[i]);
            }
        } else {
            for i in 0..32 {
                d[i] = ex2_f32::<false>(a[i]);
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide(ftz: bool, d: &mut Lanes, a: &Lanes) {
            body(ftz, d, a)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the feature that `wide` is compiled for.
            return unsafe { wide(ftz, d, a) };
        }
    }
    body(ftz, d, a)
}

/// The function in f64.
#[inline(always)]
fn value(op: Special, x: f64) -> f64 {
    match op {
        Special::Ex2 => ex2_f64(x),
        Special::Lg2 => x.log2(),
        Special::Rcp => 1.0 / x,
        Special::Sqrt => x.sqrt(),
        Special::Rsqrt => {
            // 1 / sqrt(-0) is -inf, as the manual's table has it.
            1.0 / x.sqrt()
        }
        Special::Sin => x.sin(),
        Special::Cos => x.cos(),
        Special::Tanh => x.tanh(),
    }
}

/// An `.approx{.ftz}.f32` instruction.
#[inline]
pub fn approx_f32(op: Special, ftz: bool, x: u32) -> u32 {
    let x = f32::from_bits(if ftz { ftz_f32(x) } else { x });
    let y = match op {
        Special::Rcp => 1.0 / x,
        Special::Sqrt => x.sqrt(),
        _ => value(op, f64::from(x)) as f32,
    };
    canonical_f32(if ftz {
        ftz_f32(y.to_bits())
    } else {
        y.to_bits()
    })
}

/// An `.approx{.ftz}.f32` instruction in every lane.
pub fn approx_f32_lanes(op: Special, ftz: bool, d: &mut Lanes, a: &Lanes) {
    if op == Special::Ex2 {
        return ex2_f32_lanes(ftz, d, a);
    }
    for (d, &a) in d.iter_mut().zip(a) {
        *d = approx_f32(op, ftz, a);
    }
}

/// An `.approx` instruction on the low half of `x`: `ex2` and `tanh` in f16 and bf16. With `ftz` subnormal operands
/// and results are flushed (f16's `.ftz`; the bf16 `ex2` form always has it).
pub fn approx_half(op: Special, f: Float, ftz: bool, x: u32) -> u32 {
    let flush = |bits: u64| if ftz { f.flush(bits) } else { bits };
    let x = flush(u64::from(x & 0xffff)) as u32;
    let wide = if f == Float::F16 {
        f16_to_f32(x)
    } else {
        bf16_to_f32(x)
    };
    let y = value(op, f64::from(f32::from_bits(wide)));
    flush(Num::unpack(Float::F64, y.to_bits()).pack(f, Round::Rn)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::tests::Rng;

    /// Error in ulps of the f32 result against an f64 reference.
    fn ulps(got: u32, want: f64) -> f64 {
        let got = f32::from_bits(got);
        if want.abs() > f64::from(f32::MAX) {
            return if f64::from(got) == want || got.is_infinite() {
                0.0
            } else {
                f64::MAX
            };
        }
        let near = (want as f32).abs();
        let ulp = f64::from(near.next_up()) - f64::from(near);
        (f64::from(got) - want).abs() / ulp
    }

    /// Dense samples against the standard library's f64 functions: the documented bound.
    #[test]
    fn within_half_an_ulp() {
        let mut rng = Rng(61);
        for i in 0..400_000u32 {
            let r = rng.next();
            let any = f32::from_bits((r >> 32) as u32);
            let small = (f64::from((r >> 32) as u32) / f64::from(u32::MAX) * 300.0 - 155.0) as f32;
            for x in [any, small, small / 100.0, i as f32 / 1e5] {
                if x.is_nan() {
                    continue;
                }
                let (bits, v) = (x.to_bits(), f64::from(x));
                let bound = 0.5 + 2f64.powi(-24);
                let e = ulps(ex2_f32::<false>(bits), v.exp2());
                assert!(e <= bound, "ex2({x:e}): {e}");
                if v > 0.0 {
                    for (op, want) in [(Special::Lg2, v.log2()), (Special::Rsqrt, v.sqrt().recip())]
                    {
                        let e = if v.is_infinite() {
                            0.0
                        } else {
                            ulps(approx_f32(op, false, bits), want)
                        };
                        assert!(e <= bound, "{op:?}({x:e}): {e}");
                    }
                }
                for (op, want) in [
                    (Special::Tanh, v.tanh()),
                    (Special::Sin, v.sin()),
                    (Special::Rcp, v.recip()),
                ] {
                    let e = if want.is_finite() {
                        ulps(approx_f32(op, false, bits), want)
                    } else {
                        0.0
                    };
                    assert!(e <= bound, "{op:?}({x:e}): {e}");
                }
            }
        }
    }

    /// The vectorised form and the scalar one give the same bits.
    #[test]
    fn lanes_equal_scalars() {
        let mut rng = Rng(67);
        for _ in 0..20_000 {
            let a: Lanes = std::array::from_fn(|_| {
                let r = rng.next();
                let x = ((r >> 40) as f32 / (1 << 24) as f32 - 0.5) * 320.0;
                if r & 3 == 0 {
                    rng.f32_bits()
                } else {
                    x.to_bits()
                }
            });
            let mut d = [0; 32];
            ex2_f32_lanes(false, &mut d, &a);
            assert_eq!(d, a.map(ex2_f32::<false>));
            ex2_f32_lanes(true, &mut d, &a);
            assert_eq!(d, a.map(ex2_f32::<true>));
        }
    }

    /// The tables of special operands in the manual.
    #[test]
    fn special_operands() {
        let (inf, ninf, nan, one) = (0x7f80_0000, 0xff80_0000, 0x7fff_ffff, 0x3f80_0000);
        for ftz in [false, true] {
            let f = |op, x| approx_f32(op, ftz, x);
            for (x, want) in [
                (ninf, 0),
                (inf, inf),
                (0, one),
                (0x8000_0000, one),
                (1, one),
                (0x7fc1_2345, nan),
            ] {
                assert_eq!(f(Special::Ex2, x), want);
                let mut d = [0; 32];
                ex2_f32_lanes(ftz, &mut d, &[x; 32]);
                assert_eq!(d, [want; 32]);
            }
            for (x, want) in [
                (ninf, nan),
                (inf, inf),
                (0, ninf),
                (0x8000_0000, ninf),
                (one, 0),
                (0xbf80_0000, nan),
            ] {
                assert_eq!(f(Special::Lg2, x), want);
            }
            for (x, want) in [
                (ninf, 0x8000_0000),
                (inf, 0),
                (0, inf),
                (0x8000_0000, ninf),
                (one, one),
            ] {
                assert_eq!(f(Special::Rcp, x), want);
            }
            for (x, want) in [
                (ninf, nan),
                (inf, 0),
                (0, inf),
                (0x8000_0000, ninf),
                (0x4080_0000, 0x3f00_0000),
            ] {
                assert_eq!(f(Special::Rsqrt, x), want);
            }
            for (x, want) in [
                (ninf, nan),
                (inf, inf),
                (0x8000_0000, 0x8000_0000),
                (0x4080_0000, 0x4000_0000),
            ] {
                assert_eq!(f(Special::Sqrt, x), want);
            }
            for (x, want) in [(inf, nan), (0x8000_0000, 0x8000_0000)] {
                assert_eq!(f(Special::Sin, x), want);
            }
            assert_eq!(f(Special::Cos, 0), one);
            assert_eq!(f(Special::Tanh, ninf), 0xbf80_0000);
        }
        // 2^-130 is subnormal: kept without .ftz, +0 with it. A subnormal operand of rcp is a zero with .ftz.
        let x = (-130f32).to_bits();
        assert_eq!(ex2_f32::<false>(x), 1 << 19);
        assert_eq!(ex2_f32::<true>(x), 0);
        assert_eq!(approx_f32(Special::Rcp, true, 0x8000_0001), ninf);
        assert_eq!(approx_f32(Special::Lg2, true, 1), ninf);
        assert_eq!(approx_f32(Special::Lg2, false, 1), (-149f32).to_bits());
        assert_eq!(ex2_f32::<false>(128f32.to_bits()), inf);
    }

    /// Exact powers of two, and the 16-bit forms by hand: 2^1.5 = 2.828..., tanh(1) = 0.7616.
    #[test]
    fn exact_and_half() {
        for n in -149..128 {
            assert_eq!(
                f32::from_bits(ex2_f32::<false>((n as f32).to_bits())),
                2f64.powi(n) as f32
            );
        }
        assert_eq!(approx_half(Special::Ex2, Float::F16, false, 0x3e00), 0x41a8);
        assert_eq!(
            approx_half(Special::Tanh, Float::F16, false, 0x3c00),
            0x3a18
        );
        assert_eq!(approx_half(Special::Ex2, Float::Bf16, true, 0x3f80), 0x4000);
        assert_eq!(approx_half(Special::Ex2, Float::Bf16, true, 0xff80), 0);
        assert_eq!(
            approx_half(Special::Tanh, Float::Bf16, false, 0x7fc0),
            0x7fff
        );
    }
}
