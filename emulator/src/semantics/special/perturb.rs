//! Approximate functions that are as wrong as the manual lets them be.
//!
//! What a GPU's `.approx` instructions return is not documented to the bit, only how far it may be from the value.
//! Here a result lies anywhere in that range: at a place that seed, function and operand alone decide, so that an
//! operand has one result in every lane and every run. Other seeds are other GPUs, so to say.

use super::{Special, approx_f32, canonical_f32, ftz_f32, value};
use crate::semantics::Lanes;

/// How far a result may be from the value; `None` for functions that are not perturbed.
#[inline(always)]
fn bound(op: Special, x: f32, value: f64) -> Option<f64> {
    /// 2^-11, 2^-22.
    const TANH: f64 = 1.0 / 2048.0;
    const LG2: f64 = 1.0 / 4_194_304.0;
    match op {
        Special::Ex2 => Some(2.0 * ulp(value)),
        Special::Rcp => Some(ulp(value)),
        Special::Lg2 if x > 0.5 && x < 2.0 => Some(LG2),
        Special::Lg2 => Some(LG2 * value.abs()),
        Special::Tanh => Some(TANH * value.abs()),
        Special::Sqrt | Special::Rsqrt | Special::Sin | Special::Cos => None,
    }
}

/// The distance between the f32 on both sides of a value.
#[inline(always)]
fn ulp(value: f64) -> f64 {
    let exponent = (value.to_bits() >> 52 & 0x7ff).max(1023 - 126);
    f64::from_bits((exponent - 23) << 52)
}

/// A number in [-1, 1) that looks random: the finaliser of MurmurHash3, twice.
#[inline(always)]
fn draw(seed: u64, op: Special, x: u32) -> f64 {
    let mix = |mut h: u64| {
        h = (h ^ h >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h = (h ^ h >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ h >> 33
    };
    let h = mix(mix(seed ^ 0x9e37_79b9_7f4a_7c15) ^ (op as u64) << 32 ^ u64::from(x));
    h as i64 as f64 * 2f64.powi(-63)
}

/// An `.approx{.ftz}.f32` instruction, off by what the manual allows.
///
/// Operands of which the manual's tables give the result (zeros, subnormal numbers, infinities, NaN) have that result.
/// A result that is zero, infinite or NaN stays so, and no other becomes so; none but `lg2`'s changes its sign.
#[inline]
pub fn perturbed_f32(op: Special, seed: u64, ftz: bool, x: u32) -> u32 {
    let operand = f32::from_bits(x);
    if !operand.is_normal() {
        return approx_f32(op, ftz, x);
    }
    let value = value(op, f64::from(operand));
    let Some(bound) = bound(op, operand, value) else {
        return approx_f32(op, ftz, x);
    };
    let flush = |x: f32| {
        f32::from_bits(if ftz {
            ftz_f32(x.to_bits())
        } else {
            x.to_bits()
        })
    };
    let near = flush(value as f32);
    if !near.is_finite() || near == 0.0 {
        return canonical_f32(near.to_bits());
    }
    let moved = flush((value + bound * draw(seed, op, x)) as f32);
    let same_sign = op == Special::Lg2 || moved.is_sign_negative() == near.is_sign_negative();
    // Rounding to f32 may have left the range.
    let within = (f64::from(moved) - value).abs() <= bound;
    if within && moved.is_finite() && moved != 0.0 && same_sign {
        moved.to_bits()
    } else {
        near.to_bits()
    }
}

/// [`perturbed_f32`] in every lane.
pub fn perturbed_f32_lanes(op: Special, seed: u64, ftz: bool, d: &mut Lanes, a: &Lanes) {
    for (d, &a) in d.iter_mut().zip(a) {
        *d = perturbed_f32(op, seed, ftz, a);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::tests::Rng;
    use std::collections::BTreeSet;

    const PERTURBED: [Special; 4] = [Special::Ex2, Special::Rcp, Special::Lg2, Special::Tanh];

    /// The results over many seeds, in steps of the last bit from the nearest one.
    fn steps(op: Special, x: f32) -> BTreeSet<i64> {
        let near = i64::from(approx_f32(op, false, x.to_bits()));
        let result = |seed| i64::from(perturbed_f32(op, seed, false, x.to_bits()));
        (0..2000).map(|seed| result(seed) - near).collect()
    }

    /// By hand, from the values' digits in units of the last place of the nearest f32.
    #[test]
    fn all_that_is_allowed() {
        // 1/3 = 0xaaaaaa.aaa... * 2^-25: the nearest is 0xaaaaab, 1/3 above; 1 ulp allows 0xaaaaaa, 2/3 below.
        assert_eq!(steps(Special::Rcp, 3.0), BTreeSet::from([-1, 0]));
        // -1/1.5 = -0xaaaaaa.aaa... * 2^-24: the steps are those of the magnitude.
        assert_eq!(steps(Special::Rcp, -1.5), BTreeSet::from([-1, 0]));
        // sqrt(2) = 0xb504f3.33f... * 2^-23: within 2 ulp lie f2, f3, f4 and f5.
        assert_eq!(steps(Special::Ex2, 0.5), BTreeSet::from([-1, 0, 1, 2]));
        // log2(10) = 3.3219... = 0xd49a78.4bc... * 2^-22, 0.30 above the nearest. 2^-22 of it is 3.32 such units: from
        // 3 below the nearest (3.30 off) to 3 above (2.70 off).
        assert_eq!(steps(Special::Lg2, 10.0), (-3..=3).collect());
        // log2(1.5) = 0.58496... = 0x95c01a.39f... * 2^-24, 0.23 above the nearest. 2^-22, absolute, is 4 such units.
        assert_eq!(steps(Special::Lg2, 1.5), (-3..=4).collect());
        // tanh(0.5) = 0.46211...: a 2^-11th of it is 0.46211 * 2^14 = 7571 units of 2^-25.
        let tanh = steps(Special::Tanh, 0.5);
        let (first, last) = (*tanh.first().unwrap(), *tanh.last().unwrap());
        assert!(first >= -7572 && last <= 7572, "{first} {last}");
        assert!(first < -7000 && last > 7000, "{first} {last}");
        // Others are left alone.
        assert_eq!(steps(Special::Sqrt, 3.0), BTreeSet::from([0]));
    }

    /// The manual's tables of results, under many seeds.
    #[test]
    fn exact_results() {
        let (inf, ninf, nan, one) = (0x7f80_0000, 0xff80_0000, 0x7fff_ffff, 0x3f80_0000);
        let (zero, nzero) = (0, 0x8000_0000);
        for seed in 0..200 {
            for ftz in [false, true] {
                let check = |op, table: &[(u32, u32)]| {
                    for &(x, want) in table {
                        assert_eq!(perturbed_f32(op, seed, ftz, x), want, "{op:?} {x:#x}");
                    }
                };
                // -200 and 200: results that f32 does not hold.
                let (below, above) = ((-200f32).to_bits(), 200f32.to_bits());
                check(
                    Special::Ex2,
                    &[
                        (ninf, 0),
                        (inf, inf),
                        (zero, one),
                        (nzero, one),
                        (1, one),
                        (0x8000_0001, one),
                        (0xffc0_0001, nan),
                        (below, 0),
                        (above, inf),
                    ],
                );
                check(
                    Special::Rcp,
                    &[
                        (ninf, nzero),
                        (inf, 0),
                        (zero, inf),
                        (nzero, ninf),
                        (nan, nan),
                    ],
                );
                check(
                    Special::Lg2,
                    &[
                        (ninf, nan),
                        (inf, inf),
                        (zero, ninf),
                        (nzero, ninf),
                        (one, 0),
                    ],
                );
                check(
                    Special::Tanh,
                    &[(ninf, 0xbf80_0000), (inf, one), (zero, 0), (nzero, nzero)],
                );
            }
        }
    }

    /// Any operand: within the manual's bound, finite where the nearest is, of its sign.
    #[test]
    fn within_bounds() {
        let mut rng = Rng(89);
        let mut moved = [0u32; 4];
        for seed in 0..400_000 {
            let r = rng.next();
            let ordinary = (r >> 40) as f32 / (1 << 24) as f32 * 260.0 - 130.0;
            let x = if r & 1 == 0 {
                rng.f32_bits()
            } else {
                ordinary.to_bits()
            };
            let v = f64::from(f32::from_bits(x));
            for (op, moved) in PERTURBED.into_iter().zip(&mut moved) {
                let ftz = r & 2 == 0;
                let near = approx_f32(op, ftz, x);
                let got = perturbed_f32(op, seed, ftz, x);
                *moved += u32::from(got != near);
                let (want, y) = (f32::from_bits(near), f32::from_bits(got));
                if !want.is_finite() || want == 0.0 {
                    assert_eq!(got, near, "{op:?}({v:e})");
                    continue;
                }
                let (exact, allowed) = match op {
                    Special::Ex2 => (v.exp2(), 2.0 * ulp(v.exp2())),
                    Special::Rcp => (v.recip(), ulp(v.recip())),
                    Special::Lg2 if v > 0.5 && v < 2.0 => (v.log2(), 2f64.powi(-22)),
                    Special::Lg2 => (v.log2(), 2f64.powi(-22) * v.log2().abs()),
                    _ => (v.tanh(), 2f64.powi(-11) * v.tanh().abs()),
                };
                // The f64 functions of both sides may differ in their last bit.
                let slack = 1.0 + 2f64.powi(-20);
                assert!(y.is_finite() && y != 0.0, "{op:?}({v:e}) = {y:e}");
                assert!(
                    op == Special::Lg2 || y.is_sign_negative() == want.is_sign_negative(),
                    "{op:?}({v:e}) = {y:e}"
                );
                assert!(
                    (f64::from(y) - exact).abs() <= allowed * slack,
                    "{op:?}({v:e}) = {y:e}"
                );
            }
        }
        // Not vacuous: a good part of all results moves.
        assert!(moved.iter().all(|&n| n > 20_000), "{moved:?}");
    }

    /// One result for an operand, whatever the lane; other seeds and functions draw otherwise.
    #[test]
    fn a_function_of_seed_and_operand() {
        let mut rng = Rng(97);
        let a: Lanes = std::array::from_fn(|_| (rng.next() >> 40) as u32 | 0x3f00_0000);
        for op in PERTURBED {
            let (mut d, mut other) = ([0; 32], [0; 32]);
            perturbed_f32_lanes(op, 1, false, &mut d, &a);
            assert_eq!(d, a.map(|x| perturbed_f32(op, 1, false, x)));
            perturbed_f32_lanes(op, 2, false, &mut other, &a);
            assert_ne!(d, other, "{op:?}");
        }
        assert_ne!(draw(1, Special::Ex2, 7), draw(1, Special::Rcp, 7));
        // The same on every host, so that a seed that found something finds it again.
        let sample = [1, 2, 3, 4, 5, 6, 7, 8]
            .map(|seed| perturbed_f32(Special::Ex2, seed, true, 0x3f00_0000));
        assert_eq!(sample.map(|x| x - 0x3fb5_04f0), [3, 3, 3, 3, 5, 3, 3, 3]);
    }
}
