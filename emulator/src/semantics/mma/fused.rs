//! How tensor cores add: several products and the accumulator at once, terms cut to a common last place.
//!
//! The rule of one sum, after MMA-Sim (arXiv 2511.10909):
//!
//! - A product's significand is the exact product of two significands in [1, 4), its exponent the sum of theirs; it is
//!   not normalised. A subnormal keeps its format's least exponent, and a significand below 1. The accumulator is one
//!   more term.
//! - `top` is the largest exponent of the terms that are not zero, and at least -126.
//! - Each term is cut, toward zero, to a multiple of 2^(top - fraction_bits). The cut terms are added exactly.
//! - The sum is rounded once: toward zero to f32, or to f32 with 13 fraction bits, or to nearest to f16. What is too
//!   large becomes infinite. A sum of zero is +0.
//! - A NaN, infinity times zero, or infinities of both signs give the canonical NaN; else an infinity gives infinity.
//!
//! [`multiply`] computes a row of eight elements at a time in f32: a product scaled by 2^(fraction_bits - top) and
//! converted to an integer, which cuts it. That is exact while `top` is in the middle of f32's range
//! (`MIDDLE`); other rows are computed one element at a time in integers.

use super::{TileA, TileB, TileC};
use crate::numerics::TensorCores;
use crate::semantics::{
    Float, Num, Round,
    cvt::{f16_to_f32, f32_to_f16},
};

/// What a sum is rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// f32, toward zero.
    F32,
    /// f32 whose low 10 bits are zero (8 exponent, 13 fraction bits), toward zero.
    E8m13,
    /// f16, to nearest even. The accumulator is f16 too.
    F16,
}

/// The parameters of the rule. Only those of hardware can be had: [`multiply`] relies on sums that fit an `i32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FusedSum {
    /// Fraction bits that terms keep, relative to the largest exponent.
    pub(super) fraction_bits: u32,
    /// Most products of one sum. A longer dot product is several sums, the first k first.
    pub(super) products: usize,
    /// The result of each sum.
    pub(super) rounding: Rounding,
}

/// `wgmma` with 8-bit operands and f32 results on Hopper.
pub const HOPPER_WGMMA_FP8: FusedSum = FusedSum {
    fraction_bits: 13,
    products: 32,
    rounding: Rounding::E8m13,
};

/// `mma.sync` with 8-bit operands on Ada.
pub(super) const ADA_FP8: FusedSum = FusedSum {
    fraction_bits: 13,
    products: 16,
    rounding: Rounding::E8m13,
};

/// `mma.sync` with f16 operands and f32 results on Hopper.
pub(super) const HOPPER_F16: FusedSum = FusedSum {
    fraction_bits: 25,
    products: 16,
    rounding: Rounding::F32,
};

impl FusedSum {
    /// `wgmma`; only Hopper has it. Operands of 8 bits keep fewer fraction bits.
    pub(in crate::semantics) const fn of_wgmma(
        cores: TensorCores,
        operands: Float,
        narrow: bool,
    ) -> Option<FusedSum> {
        if matches!(cores, TensorCores::Fast) {
            return None;
        }
        match (operands, narrow) {
            (Float::E4m3 | Float::E5m2, false) => Some(HOPPER_WGMMA_FP8),
            (Float::E4m3 | Float::E5m2, true) => Some(FusedSum {
                rounding: Rounding::F16,
                ..HOPPER_WGMMA_FP8
            }),
            _ => FusedSum::of(TensorCores::Hopper, operands, narrow),
        }
    }

    /// `mma.sync` with 16-bit operands, or tf32; results f32 or, with `narrow`, f16.
    pub(super) const fn of(cores: TensorCores, operands: Float, narrow: bool) -> Option<FusedSum> {
        // Tensor cores take so many bytes of a row at a time.
        let (fraction_bits, bytes) = match cores {
            TensorCores::Fast => return None,
            TensorCores::Ampere => (24, 16),
            TensorCores::Hopper => (25, 32),
        };
        let products = match operands {
            Float::Tf32 => bytes / 4,
            _ => bytes / 2,
        };
        let rounding = if narrow { Rounding::F16 } else { Rounding::F32 };
        Some(FusedSum {
            fraction_bits,
            products,
            rounding,
        })
    }
}

/// Exponents between which a row's largest may lie. Products are then below 2^(120 + 2) and do not overflow f32; those
/// that f32 cannot hold exactly, below 2^-126, are less than 2^(-100 - 25), the least last place, and are cut to zero
/// whichever way f32 rounds them.
const MIDDLE: std::ops::RangeInclusive<i32> = -100..=120;

/// The exponent of a zero, and of an infinity or a NaN. Sums with the exponents of others, from -149 to 127, and of
/// one another, tell: below [`NO_TERM`] one is zero and none special; beyond [`MIDDLE`] one is special.
const ZERO: i32 = -1000;
const SPECIAL: i32 = 4000;
const NO_TERM: i32 = -800;

/// The bits of an f64 significand that do not fit the result.
const BELOW_F32: u64 = (1 << 29) - 1;
const BELOW_E8M13: u64 = (1 << 39) - 1;

/// The least exponent of a normal number.
const fn least(f: Float) -> i32 {
    1 - f.bias()
}

/// The exponent of a number in a format whose normal numbers begin with exponent `least`.
#[inline(always)]
fn exponent(x: f32, least: i32) -> i32 {
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let exponent = ((magnitude >> 23) as i32 - 127).max(least);
    let exponent = if magnitude >= 0x7f80_0000 {
        SPECIAL
    } else {
        exponent
    };
    if magnitude == 0 { ZERO } else { exponent }
}

/// 2^n of a normal f32.
#[inline(always)]
fn power_f32(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// 2^n of a normal f64.
#[inline(always)]
fn power_f64(n: i32) -> f64 {
    f64::from_bits(((i64::from(n) + 1023) as u64) << 52)
}

/// `c = a * b + c`. The operands' formats have at most 11 significant bits.
pub fn multiply<const K: usize>(
    sum: FusedSum,
    operands: [Float; 2],
    a: &TileA<K>,
    b: &TileB<K>,
    c: &mut TileC,
) {
    // The number of products as a constant, so that loops over them are unrolled.
    match sum.products.min(K) {
        4 => multiply_by::<K, 4>(sum, operands, a, b, c),
        8 => multiply_by::<K, 8>(sum, operands, a, b, c),
        16 => multiply_by::<K, 16>(sum, operands, a, b, c),
        _ => multiply_by::<K, 32>(sum, operands, a, b, c),
    }
}

fn multiply_by<const K: usize, const P: usize>(
    sum: FusedSum,
    operands: [Float; 2],
    a: &TileA<K>,
    b: &TileB<K>,
    c: &mut TileC,
) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature that the function is compiled for.
        return unsafe { x86::multiply::<K, P>(sum, operands, a, b, c) };
    }
    multiply_portable::<K, P>(sum, operands, a, b, c);
}

fn multiply_portable<const K: usize, const P: usize>(
    sum: FusedSum,
    operands: [Float; 2],
    a: &TileA<K>,
    b: &TileB<K>,
    c: &mut TileC,
) {
    let [least_a, least_b] = operands.map(least);
    let mut ea = [[0; K]; 16];
    for (e, x) in ea.as_flattened_mut().iter_mut().zip(a.as_flattened()) {
        *e = exponent(*x, least_a);
    }
    let mut eb = [[0; 8]; K];
    for (e, x) in eb.as_flattened_mut().iter_mut().zip(b.as_flattened()) {
        *e = exponent(*x, least_b);
    }
    for row in 0..16 {
        let a = a[row]
            .as_chunks::<P>()
            .0
            .iter()
            .zip(ea[row].as_chunks::<P>().0);
        let b = b.as_chunks::<P>().0.iter().zip(eb.as_chunks::<P>().0);
        for (a, b) in a.zip(b) {
            if !sum.row::<P>(a, b, &mut c[row]) {
                sum.row_in_integers(operands, a.0, b.0, &mut c[row]);
            }
        }
    }
}

impl FusedSum {
    /// The least exponent of an accumulator.
    #[inline(always)]
    const fn least_c(self) -> i32 {
        match self.rounding {
            Rounding::F16 => -14,
            _ => -126,
        }
    }

    /// One sum for each element of a row; values and exponents. False, with nothing done, for a row that f32 cannot
    /// compute.
    #[inline(always)]
    fn row<const P: usize>(
        self,
        a: (&[f32; P], &[i32; P]),
        b: (&[[f32; 8]; P], &[[i32; 8]; P]),
        c: &mut [f32; 8],
    ) -> bool {
        let least_c = self.least_c();
        let mut top: [i32; 8] = std::array::from_fn(|n| exponent(c[n], least_c));
        for (&a, b) in a.1.iter().zip(b.1) {
            for n in 0..8 {
                top[n] = top[n].max(a + b[n]);
            }
        }
        let mut outside = false;
        for top in &mut top {
            let none = *top < NO_TERM;
            outside |= !none & ((*top < *MIDDLE.start()) | (*top > *MIDDLE.end()));
            // Where all terms are zero, any will do.
            *top = if none { 0 } else { *top };
        }
        if outside {
            return false;
        }
        let fraction_bits = self.fraction_bits as i32;
        let scale = top.map(|top| power_f32(fraction_bits - top));
        let cut = |x: f32| {
            // SAFETY: a term's magnitude is less than 4 * 2^top before scaling, so less than 2^27 here (2^25 is the
            // largest power of all sums), and none is NaN: operands that are not finite made the row `outside`.
            unsafe { x.to_int_unchecked::<i32>() }
        };
        // At most 16 products below (2 - 2^-10)^2 * 2^25, or 32 below 2^15: less than 2^31 - 2^20.
        let mut products = [0i32; 8];
        for (&a, b) in a.0.iter().zip(b.0) {
            for n in 0..8 {
                products[n] += cut(a * b[n] * scale[n]);
            }
        }
        for n in 0..8 {
            let total = f64::from(products[n]) + f64::from(cut(c[n] * scale[n]));
            c[n] = self.round(total * power_f64(top[n] - fraction_bits));
        }
        true
    }

    /// Rounds a sum between 2^-125 and 2^127, or 0.
    #[inline(always)]
    fn round(self, x: f64) -> f32 {
        let bits = x.to_bits();
        match self.rounding {
            Rounding::F32 => f64::from_bits(bits & !BELOW_F32) as f32,
            Rounding::E8m13 => f64::from_bits(bits & !BELOW_E8M13) as f32,
            Rounding::F16 => {
                // To odd, so that the second rounding is as if it were the only one.
                let odd = u64::from(bits & BELOW_F32 != 0) << 29;
                let near = f64::from_bits(bits & !BELOW_F32 | odd) as f32;
                f32::from_bits(f16_to_f32(f32_to_f16(near.to_bits())))
            }
        }
    }

    /// [`row`](Self::row) for any operands.
    #[cold]
    #[inline(never)]
    fn row_in_integers(self, operands: [Float; 2], a: &[f32], b: &[[f32; 8]], c: &mut [f32; 8]) {
        for (n, c) in c.iter_mut().enumerate() {
            let factors = a.iter().zip(b).map(|(&a, b)| (a, b[n]));
            *c = self.element(operands, factors, *c);
        }
    }

    /// One sum, by the rule.
    fn element(
        self,
        operands: [Float; 2],
        factors: impl Iterator<Item = (f32, f32)> + Clone,
        c: f32,
    ) -> f32 {
        // Products of f32 do not overflow f64: what is not finite here was not finite before.
        let not_finite = factors
            .clone()
            .map(|(a, b)| f64::from(a) * f64::from(b))
            .chain([f64::from(c)])
            .filter(|x| !x.is_finite())
            .reduce(|x, y| x + y);
        if let Some(x) = not_finite {
            let canonical = f32::from_bits(Float::F32.canonical_nan() as u32);
            return if x.is_nan() { canonical } else { x as f32 };
        }
        /// Fraction bits of the magnitudes below.
        const POINT: u32 = 40;
        let [least_a, least_b] = operands.map(least);
        // Negative, magnitude, exponent.
        let term = |x: f64, exponent: i32| {
            let magnitude = x.abs() * power_f64(POINT as i32 - exponent);
            (x < 0.0, magnitude as u64, exponent)
        };
        let terms = factors
            .map(|(a, b)| {
                let exponent = exponent(a, least_a) + exponent(b, least_b);
                (f64::from(a) * f64::from(b), exponent)
            })
            .chain([(f64::from(c), exponent(c, self.least_c()))])
            .filter(|&(x, _)| x != 0.0)
            .map(|(x, exponent)| term(x, exponent));
        let top = terms.clone().fold(-126, |top, (_, _, e)| top.max(e));
        let sum = terms.fold(0i64, |sum, (negative, magnitude, exponent)| {
            let shift = POINT - self.fraction_bits + (top - exponent) as u32;
            let cut = magnitude.checked_shr(shift).unwrap_or(0) as i64;
            sum + if negative { -cut } else { cut }
        });
        let place = top - self.fraction_bits as i32;
        let total = Num::Fin(sum < 0, u128::from(sum.unsigned_abs()), place);
        if self.rounding == Rounding::F16 {
            return f32::from_bits(f16_to_f32(total.pack(Float::F16, Round::Rn) as u32));
        }
        // Below 2^48, so exact.
        if (sum as f64 * power_f64(place)).abs() >= 2f64.powi(128) {
            return f32::INFINITY.copysign(sum as f32);
        }
        let bits = total.pack(Float::F32, Round::Rz) as u32;
        f32::from_bits(match self.rounding {
            Rounding::E8m13 => bits & !0x3ff,
            _ => bits,
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;
