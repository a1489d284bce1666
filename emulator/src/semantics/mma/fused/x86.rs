//! The fused sums of whole tiles with AVX2; the same bits as the portable code, operation by operation.

use super::{FusedSum, MIDDLE, NO_TERM, Rounding, SPECIAL, TileA, TileB, TileC, ZERO, least};
use crate::semantics::mma::x86::{load, save};
use crate::semantics::{
    Float,
    cvt::{f16_to_f32, f32_to_f16},
};
use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx2")]
fn save_integers(x: &mut [i32; 8], v: __m256i) {
    // SAFETY: a reference to 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), v) }
}

/// See [`super::exponent`].
#[inline]
#[target_feature(enable = "avx2")]
fn exponent(x: __m256, least: __m256i) -> __m256i {
    let all = |x: i32| _mm256_set1_epi32(x);
    let magnitude = _mm256_and_si256(_mm256_castps_si256(x), all(0x7fff_ffff));
    let biased = _mm256_srli_epi32::<23>(magnitude);
    let exponent = _mm256_max_epi32(_mm256_sub_epi32(biased, all(127)), least);
    let special = _mm256_cmpgt_epi32(magnitude, all(0x7f7f_ffff));
    let exponent = _mm256_blendv_epi8(exponent, all(SPECIAL), special);
    let zero = _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256());
    _mm256_blendv_epi8(exponent, all(ZERO), zero)
}

/// The tiles, `P` products to a sum.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn multiply<const K: usize, const P: usize>(
    sum: FusedSum,
    operands: [Float; 2],
    a: &TileA<K>,
    b: &TileB<K>,
    c: &mut TileC,
) {
    let [least_a, least_b] = operands.map(|f| _mm256_set1_epi32(least(f)));
    let mut exponents_a = [[0; K]; 16];
    let eights = exponents_a.as_flattened_mut().as_chunks_mut().0.iter_mut();
    for (exponents, a) in eights.zip(a.as_flattened().as_chunks().0) {
        save_integers(exponents, exponent(load(a), least_a));
    }
    let mut exponents_b = [_mm256_setzero_si256(); K];
    for (e, b) in exponents_b.iter_mut().zip(b) {
        *e = exponent(load(b), least_b);
    }
    // All rows of one sum, then all of the next: rows do not wait for one another, sums of one row do.
    let sums = b
        .as_chunks::<P>()
        .0
        .iter()
        .zip(exponents_b.as_chunks::<P>().0);
    for (part, b) in sums.enumerate() {
        for ((a, ea), c) in a.iter().zip(&exponents_a).zip(c.iter_mut()) {
            let a = (&a.as_chunks::<P>().0[part], &ea.as_chunks::<P>().0[part]);
            if !row(sum, a, b, c) {
                sum.row_in_integers(operands, a.0, b.0, c);
            }
        }
    }
}

/// See [`FusedSum::row`].
#[inline]
#[target_feature(enable = "avx2")]
fn row<const P: usize>(
    sum: FusedSum,
    (a, ea): (&[f32; P], &[i32; P]),
    (b, eb): (&[[f32; 8]; P], &[__m256i; P]),
    c: &mut [f32; 8],
) -> bool {
    let all = |x: i32| _mm256_set1_epi32(x);
    let addend = load(c);
    let mut top = exponent(addend, all(sum.least_c()));
    for (&a, &b) in ea.iter().zip(eb) {
        top = _mm256_max_epi32(top, _mm256_add_epi32(all(a), b));
    }
    let none = _mm256_cmpgt_epi32(all(NO_TERM), top);
    let low = _mm256_cmpgt_epi32(all(*MIDDLE.start()), top);
    let high = _mm256_cmpgt_epi32(top, all(*MIDDLE.end()));
    let outside = _mm256_or_si256(_mm256_andnot_si256(none, low), high);
    if _mm256_movemask_epi8(outside) != 0 {
        return false;
    }
    let top = _mm256_andnot_si256(none, top);
    let fraction_bits = sum.fraction_bits as i32;
    let scale = _mm256_sub_epi32(all(fraction_bits + 127), top);
    let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(scale));
    let mut products = _mm256_setzero_si256();
    for (&a, b) in a.iter().zip(b) {
        let term = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(a), load(b)), scale);
        products = _mm256_add_epi32(products, _mm256_cvttps_epi32(term));
    }
    let addend = _mm256_cvttps_epi32(_mm256_mul_ps(addend, scale));
    let total = _mm256_add_epi32(products, addend);
    // The addend can make the sum of 16 products overflow: it did where both have the sign that the sum has not.
    let overflow = _mm256_and_si256(
        _mm256_xor_si256(products, total),
        _mm256_xor_si256(addend, total),
    );
    if _mm256_movemask_ps(_mm256_castsi256_ps(overflow)) != 0 {
        return false;
    }
    // To nearest, and one down where that was up: toward zero.
    let magnitude = _mm256_abs_epi32(total);
    let near = _mm256_cvtepi32_ps(magnitude);
    let up = _mm256_cmpgt_epi32(_mm256_cvttps_epi32(near), magnitude);
    let mut cut = _mm256_add_epi32(_mm256_castps_si256(near), up);
    match sum.rounding {
        Rounding::F32 => {}
        Rounding::E8m13 => cut = _mm256_and_si256(cut, all(!0x3ff)),
        Rounding::F16 => {
            // To odd, so that the second rounding, to f16, is as if it were the only one.
            let back = _mm256_cvttps_epi32(_mm256_castsi256_ps(cut));
            let inexact = _mm256_cmpgt_epi32(magnitude, back);
            cut = _mm256_or_si256(cut, _mm256_srli_epi32::<31>(inexact));
        }
    }
    let sign = _mm256_and_si256(total, all(i32::MIN));
    let signed = _mm256_castsi256_ps(_mm256_or_si256(cut, sign));
    let unit = _mm256_slli_epi32::<23>(_mm256_add_epi32(top, all(127 - fraction_bits)));
    save(c, _mm256_mul_ps(signed, _mm256_castsi256_ps(unit)));
    if sum.rounding == Rounding::F16 {
        *c = c.map(|x| f32::from_bits(f16_to_f32(f32_to_f16(x.to_bits()))));
    }
    true
}
