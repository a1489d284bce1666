//! Matrix products with AVX2, FMA and F16C; the same bits as the portable ones.

use super::{Float, Half, Lanes, TileA, TileB, TileC, fused, fused::FusedSum};
use std::arch::x86_64::*;

/// Whether the functions of this module may be called. The standard library caches the answer.
#[inline(always)]
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(x: &[f32; 8]) -> __m256 {
    // SAFETY: a reference to 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn save(x: &mut [f32; 8], v: __m256) {
    // SAFETY: a reference to 32 writable bytes; the store needs no alignment.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
}

/// Four registers of neighbouring lanes, from lane 4g.
#[inline]
#[target_feature(enable = "avx2")]
fn load4(x: &Lanes, g: usize) -> __m128i {
    let part = &x[4 * g..4 * g + 4];
    // SAFETY: a slice of 16 readable bytes; the load needs no alignment.
    unsafe { _mm_loadu_si128(part.as_ptr().cast()) }
}

/// Eight registers of neighbouring lanes, from lane 8i.
#[inline]
#[target_feature(enable = "avx2")]
fn load8(x: &Lanes, i: usize) -> __m256i {
    let part = &x[8 * i..8 * i + 8];
    // SAFETY: a slice of 32 readable bytes; the load needs no alignment.
    unsafe { _mm256_loadu_si256(part.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn save4(x: &mut Lanes, g: usize, v: __m128i) {
    let part = &mut x[4 * g..4 * g + 4];
    // SAFETY: a slice of 16 writable bytes; the store needs no alignment.
    unsafe { _mm_storeu_si128(part.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn canonical(x: __m256) -> __m256 {
    let nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
    _mm256_blendv_ps(x, nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x))
}

/// See [`super::multiply`]: eight rows at a time, so that their chains of additions overlap.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn multiply<const K: usize>(a: &TileA<K>, b: &TileB<K>, c: &mut TileC) {
    for half in [0, 8] {
        let mut sum = [_mm256_setzero_ps(); 8];
        for (sum, c) in sum.iter_mut().zip(&c[half..]) {
            *sum = load(c);
        }
        for (k, b) in b.iter().enumerate() {
            let b = load(b);
            for (row, sum) in sum.iter_mut().enumerate() {
                *sum = _mm256_fmadd_ps(_mm256_broadcast_ss(&a[half + row][k]), b, *sum);
            }
        }
        for (sum, c) in sum.into_iter().zip(&mut c[half..]) {
            save(c, canonical(sum));
        }
    }
}

/// See [`super::accumulate`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn accumulate<const K: usize>(
    sum: Option<FusedSum>,
    formats: [Float; 2],
    a: &TileA<K>,
    b: &TileB<K>,
    d: [&mut Lanes; 4],
    keep: bool,
) {
    let mut tile: TileC = [[0.0; 8]; 16];
    if keep {
        for (row, tile) in tile.iter_mut().enumerate() {
            let (g, low) = (row % 8, row / 8);
            let even = _mm256_castsi128_si256(load4(d[2 * low], g));
            let both = _mm256_inserti128_si256::<1>(even, load4(d[2 * low + 1], g));
            save(tile, _mm256_castsi256_ps(both));
        }
    }
    match sum {
        None => multiply(a, b, &mut tile),
        Some(sum) => fused::multiply(sum, formats, a, b, &mut tile),
    }
    for (row, c) in tile.iter().enumerate() {
        let (g, low) = (row % 8, row / 8);
        let both = _mm256_castps_si256(load(c));
        save4(d[2 * low], g, _mm256_castsi256_si128(both));
        save4(d[2 * low + 1], g, _mm256_extracti128_si256::<1>(both));
    }
}

/// The whole of m16n8k16 with 16-bit operands, from registers to registers.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn half_k16(
    sum: Option<FusedSum>,
    kind: Half,
    d: &mut [Lanes; 4],
    a: &[Lanes; 4],
    b: &[Lanes; 2],
    c: &[Lanes; 4],
) {
    let mut tile_a: TileA<16> = [[0.0; 16]; 16];
    let mut tile_b: TileB<16> = [[0.0; 8]; 16];
    let mut tile_c: TileC = [[0.0; 8]; 16];
    for row in 0..16 {
        let (g, low) = (row % 8, row / 8);
        // Lanes 4g..4g+4 of one register hold eight neighbouring elements of row g.
        let (first, second) = (load4(&a[low], g), load4(&a[2 + low], g));
        let widen = |x: __m128i| match kind {
            Half::F16 => _mm256_cvtph_ps(x),
            Half::Bf16 => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))),
        };
        let (left, right) = tile_a[row].split_at_mut(8);
        if let (Ok(left), Ok(right)) = (left.try_into(), right.try_into()) {
            save(left, widen(first));
            save(right, widen(second));
        }
        let even = _mm256_castsi128_si256(load4(&c[2 * low], g));
        let both = _mm256_inserti128_si256::<1>(even, load4(&c[2 * low + 1], g));
        save(&mut tile_c[row], _mm256_castsi256_ps(both));
    }
    for (i, register) in b.iter().enumerate() {
        // Lane 4n + t holds k = 2t and 2t + 1 of column n: transpose so that each vector holds one t and the
        // columns 0, 2, 4, 6, 1, 3, 5, 7, the accumulator's order.
        let [y0, y1, y2, y3] = [0, 1, 2, 3].map(|i| load8(register, i));
        let (low0, low1) = (_mm256_unpacklo_epi32(y0, y1), _mm256_unpacklo_epi32(y2, y3));
        let (high0, high1) = (_mm256_unpackhi_epi32(y0, y1), _mm256_unpackhi_epi32(y2, y3));
        let pairs = [
            _mm256_unpacklo_epi64(low0, low1),
            _mm256_unpackhi_epi64(low0, low1),
            _mm256_unpacklo_epi64(high0, high1),
            _mm256_unpackhi_epi64(high0, high1),
        ];
        for (t, pair) in pairs.into_iter().enumerate() {
            let (even, odd) = match kind {
                Half::Bf16 => {
                    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                    let even = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
                    (even, _mm256_castsi256_ps(_mm256_and_si256(pair, upper)))
                }
                Half::F16 => {
                    // Narrow each 32-bit element to its low (high) half: all low ones into the lower 128 bits.
                    let low = _mm256_and_si256(pair, _mm256_set1_epi32(0xffff));
                    let high = _mm256_srli_epi32::<16>(pair);
                    let packed =
                        _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
                    let lower = _mm256_castsi256_si128(packed);
                    (
                        _mm256_cvtph_ps(lower),
                        _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed)),
                    )
                }
            };
            save(&mut tile_b[8 * i + 2 * t], even);
            save(&mut tile_b[8 * i + 2 * t + 1], odd);
        }
    }
    match sum {
        None => multiply(&tile_a, &tile_b, &mut tile_c),
        Some(sum) => {
            fused::multiply(sum, [kind.format(); 2], &tile_a, &tile_b, &mut tile_c);
        }
    }
    for (row, c) in tile_c.iter().enumerate() {
        let (g, low) = (row % 8, row / 8);
        let both = _mm256_castps_si256(load(c));
        save4(&mut d[2 * low], g, _mm256_castsi256_si128(both));
        save4(&mut d[2 * low + 1], g, _mm256_extracti128_si256::<1>(both));
    }
}
